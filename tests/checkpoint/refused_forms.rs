//! Compressed weights that the file's own metadata describes: what contradicts it, or itself, is refused.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tersor::{Bits, Coding, CompressedWeight, DType, DenseValues, Granularity, LayoutKind, Mask, Precision};

use crate::common::{File, f32s, i64s, read_all, safetensors, stored};
use crate::drafts::{
    Draft, INT6, NAME, dense_int, draft, f8_weight, factors, float_weight, granularities, int_weight,
    layouts, one_of_two, pattern, scales_of, sparse, two_of_four,
};
use crate::refused;

#[test]
fn metadata_that_is_no_json_is_refused() {
    let metadata = BTreeMap::from([("tersor".to_owned(), "{".to_owned())]);
    let file = File::new(safetensors(&[], &metadata));
    refused!(file.open(), Config, file.path, ["metadata `tersor`", "EOF", "line 1"]);
    let metadata = BTreeMap::from([("tersor".to_owned(), "[".repeat(100_000))]);
    let file = File::new(safetensors(&[], &metadata));
    refused!(file.open(), Config, file.path, ["metadata `tersor`"]);
}

#[test]
fn metadata_of_a_newer_version_is_refused() {
    let mut draft = dense_int();
    draft.document["version"] = 2.into();
    let file = draft.file();
    refused!(file.open(), Config, file.path, ["version 2", "reads 1"]);
    // what a later version says about its weights is not for this one to judge
    draft.document["weights"][NAME] = "something new".into();
    let file = draft.file();
    refused!(file.open(), Config, file.path, ["version 2", "reads 1"]);
}

#[test]
fn metadata_without_version_or_weights_is_refused() {
    for (document, missing) in [(json!({"weights": {}}), "version"), (json!({"version": 1}), "weights")] {
        let file = Draft { tensors: vec![], document }.file();
        refused!(file.open(), Config, file.path, ["metadata `tersor`", missing]);
    }
}

#[test]
fn an_unknown_layout_is_refused() {
    for layout in ["columns", "0:4", "5:4", "2:17", "2:4:8", "-1:4", ":", ""] {
        let file = dense_int().with("layout", layout.into()).file();
        refused!(file.open(), Tensor, file.path, ["`fc.weight`", &format!("unknown layout `{layout}`")]);
    }
}

#[test]
fn an_unknown_coding_is_refused() {
    let file = dense_int().with("coding.type", "vectors".into()).file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight`", "unknown variant `vectors`"]);
    let file = dense_int().with("coding.strategy", "token".into()).file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight`", "unknown variant `token`"]);
    let file = dense_int().with("coding.scale_dtype", "F64".into()).file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight`", "unknown variant `F64`"]);
}

#[test]
fn bits_that_no_code_has_are_refused() {
    for bits in [0, 1, 9, 255] {
        let file = dense_int().with("coding.bits", bits.into()).file();
        refused!(
            file.open(),
            Tensor,
            file.path,
            ["`fc.weight`", &format!("{bits} bits are not between 2 and 8")]
        );
    }
    let file = dense_int().with("coding.bits", 300.into()).file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight`", "300"]);
}

#[test]
fn groups_of_nothing_are_refused() {
    let group = Granularity::Group(4.try_into().unwrap());
    let weight = draft(&int_weight(LayoutKind::Dense, 4, true, group, Precision::F32));
    let file = weight.with("coding.group_size", 0.into()).file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight`", "`0`", "nonzero"]);
    let block = Granularity::Block(2.try_into().unwrap(), 4.try_into().unwrap());
    let weight = draft(&int_weight(LayoutKind::Dense, 4, true, block, Precision::F32));
    let file = weight.with("coding.block", json!([2, 0])).file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight`", "`0`", "nonzero"]);
}

#[test]
fn a_group_size_that_asks_for_other_scales_is_refused() {
    let group = Granularity::Group(4.try_into().unwrap());
    let weight = draft(&int_weight(LayoutKind::Dense, 4, true, group, Precision::F32));
    let file = weight.with("coding.group_size", 6.into()).file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight_scale`", "[5, 3]", "[5, 2]", "int4, group 6"]);
}

#[test]
fn transposed_scales_are_refused() {
    let group = Granularity::Group(4.try_into().unwrap());
    let weight = draft(&int_weight(LayoutKind::Dense, 4, true, group, Precision::F32));
    let file = weight.with_part("_scale", DType::F32, &[3, 5], f32s(&[1.0; 15])).file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight_scale`", "[3, 5]", "[5, 3]"]);
}

#[test]
fn more_kept_values_than_there_are_places_are_refused() {
    let file = dense_int().with("kept", 61.into()).file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight`", "kept values: expected 60, got 61"]);
    for layout in [LayoutKind::Bitmask, LayoutKind::CompressedRows] {
        let file = sparse(layout).with("kept", 7.into()).file();
        refused!(file.open(), Tensor, file.path, ["`fc.weight`", "kept values: expected 6, got 7"]);
        let file = sparse(layout).with("kept", u64::MAX.into()).file();
        refused!(file.open(), Tensor, file.path, ["`fc.weight`", "got 18446744073709551615"]);
    }
    let file = one_of_two().with("kept", 5.into()).file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight`", "kept values: expected 4, got 5"]);
}

#[test]
fn a_number_of_kept_values_that_the_positions_contradict_is_refused() {
    // seven and eight 4-bit codes fill the same word, so that only the positions can tell
    let (codes, scales) = ([1i8; 8], scales_of(Granularity::Tensor, Precision::F32, true, 1, 8));
    let values = DenseValues::Int(Bits::new(4).unwrap(), &codes, &scales);
    let weight = CompressedWeight::encode(&[1, 8], LayoutKind::Bitmask, None, values).unwrap();
    let file = draft(&weight).with("kept", 7.into()).file();
    refused!(read_all(&file.path), Weight, file.path, ["`fc.weight`", "kept values: expected 7, got 8"]);
}

#[test]
fn a_missing_part_is_refused() {
    let weight = int_weight(LayoutKind::CompressedRows, 4, false, Granularity::Channel, Precision::F32);
    for part in ["_values", "_row_offsets", "_columns", "_scale", "_zero_point", "_shape"] {
        let mut draft = draft(&weight);
        draft.tensors.retain(|t| !t.name.ends_with(part));
        let file = draft.file();
        let missing = format!("`fc.weight{part}`, which is not there");
        refused!(file.open(), Tensor, file.path, ["tensor `fc.weight`", &missing]);
    }
}

#[test]
fn a_part_of_another_dtype_is_refused() {
    let file = dense_int().with_part("_packed", DType::F32, &[5, 2], [0; 40]).file();
    refused!(read_all(&file.path), Tensor, file.path, ["`fc.weight_packed`", "F32", "int4, channel", "I32"]);
    let file = dense_int().with_part("_scale", DType::F16, &[5, 1], [0; 10]).file();
    refused!(read_all(&file.path), Tensor, file.path, ["`fc.weight_scale`", "F16", "F32"]);
    let file = dense_int().with_part("_shape", DType::I32, &[2], [5, 0, 0, 0, 12, 0, 0, 0]).file();
    refused!(read_all(&file.path), Tensor, file.path, ["`fc.weight_shape`", "I32", "I64"]);
    let file = sparse(LayoutKind::Bitmask).with_part("_bitmask", DType::I8, &[2, 1], [5, 2]).file();
    refused!(read_all(&file.path), Tensor, file.path, ["`fc.weight_bitmask`", "I8", "U8"]);
    let file = sparse(LayoutKind::CompressedRows).with_part("_columns", DType::I16, &[3], [0; 6]).file();
    refused!(read_all(&file.path), Tensor, file.path, ["`fc.weight_columns`", "I16", "U16"]);
    let file = sparse(LayoutKind::CompressedRows).with_part("_values", DType::F16, &[3], [0; 6]).file();
    refused!(read_all(&file.path), Tensor, file.path, ["`fc.weight_values`", "F16", "F32"]);
}

#[test]
fn a_wrong_number_of_words_is_refused() {
    for words in [1, 3] {
        let file = dense_int().with_part("_packed", DType::I32, &[5, words], vec![0; 20 * words]).file();
        let shape = format!("[5, {words}]");
        refused!(file.open(), Tensor, file.path, ["`fc.weight_packed`", &shape, "[5, 2]", "int4, channel"]);
    }
    let file = one_of_two().with_part("_positions", DType::I32, &[2], [0; 8]).file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight_positions`", "[2]", "[1]", "1:2"]);
}

#[test]
fn a_wrong_number_of_values_is_refused() {
    for layout in [LayoutKind::Bitmask, LayoutKind::CompressedRows] {
        let file = sparse(layout).with_part("_values", DType::F32, &[2], [0; 8]).file();
        refused!(file.open(), Tensor, file.path, ["`fc.weight_values`", "[2]", "[3]"]);
    }
}

#[test]
fn a_wrong_number_of_zero_points_is_refused() {
    let weight = int_weight(LayoutKind::Dense, 4, false, Granularity::Channel, Precision::F32);
    let file = draft(&weight).with_part("_zero_point", DType::I32, &[2, 1], [0; 8]).file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight_zero_point`", "[2, 1]", "[1, 1]"]);
    let file = draft(&weight).with_part("_zero_point", DType::I8, &[4, 1], [0; 4]).file();
    refused!(read_all(&file.path), Weight, file.path, ["`fc.weight`", "zero points: expected 5, got 4"]);
}

#[test]
fn scales_that_are_no_scales_are_refused() {
    for (value, text) in [(f32::NAN, "NaN"), (-0.5, "-0.5"), (f32::INFINITY, "inf"), (-f32::INFINITY, "-inf")]
    {
        let file = dense_int().with_data("_scale", f32s(&[1.0, 1.0, 1.0, value, 1.0])).file();
        refused!(
            read_all(&file.path),
            Weight,
            file.path,
            ["`fc.weight`", &format!("scale {text} at index 3")]
        );
    }
}

#[test]
fn a_bit_beyond_the_last_column_is_refused() {
    let file = sparse(LayoutKind::Bitmask).with_data("_bitmask", [0b101, 0b1010]).file();
    refused!(read_all(&file.path), Weight, file.path, ["`fc.weight`", "row 1", "last of 3 columns"]);
}

#[test]
fn a_bitmask_of_other_population_is_refused() {
    for (bits, count) in [(0b111, 4), (0b100, 2)] {
        let file = sparse(LayoutKind::Bitmask).with_data("_bitmask", [bits, 0b010]).file();
        let clash = format!("expected 3, got {count}");
        refused!(read_all(&file.path), Weight, file.path, ["`fc.weight`", "kept values", &clash]);
    }
}

#[test]
fn positions_out_of_order_are_refused() {
    // 2, 1 instead of 1, 2
    let file = two_of_four().with_data("_positions", [0b0110, 0, 0, 0]).file();
    refused!(read_all(&file.path), Weight, file.path, ["`fc.weight`", "row 0", "column 1 is out of order"]);
    let file = two_of_four().with_data("_positions", [0b0101, 0, 0, 0]).file();
    refused!(read_all(&file.path), Weight, file.path, ["`fc.weight`", "row 0", "column 1 is out of order"]);
}

#[test]
fn positions_beyond_the_last_column_are_refused() {
    // three columns under 2:4: position 3 of the only group
    let weight = two_of_four().with("shape", json!([1, 3])).with_data("_shape", i64s(&[1, 3]));
    let file = weight.with_data("_positions", [0b1101, 0, 0, 0]).file();
    refused!(
        read_all(&file.path),
        Weight,
        file.path,
        ["`fc.weight`", "row 0", "column 3", "beyond 3 columns"]
    );
}

#[test]
fn positions_beyond_their_group_are_refused() {
    // 1:3 needs two bits, so that position 3 can be written but belongs to the next group
    let mask = Mask::from_fn(1, 6, |_, col| col % 3 == 0);
    let values = DenseValues::Float(Precision::F32, &[1.0; 6]);
    let weight = CompressedWeight::encode(&[1, 6], pattern(1, 3), Some(&mask), values).unwrap();
    let file = draft(&weight).with_data("_positions", [0b0111, 0, 0, 0]).file();
    refused!(
        read_all(&file.path),
        Weight,
        file.path,
        ["`fc.weight`", "row 0", "group 0 keeps 0", "1:3 has 1"]
    );
}

#[test]
fn row_offsets_that_decrease_are_refused() {
    let file = sparse(LayoutKind::CompressedRows).with_data("_row_offsets", i64s(&[0, 2, 1])).file();
    refused!(read_all(&file.path), Weight, file.path, ["`fc.weight`", "row 1", "2 to 1", "3 columns"]);
}

#[test]
fn row_offsets_beyond_the_columns_are_refused() {
    let draft = || sparse(LayoutKind::CompressedRows);
    let file = draft().with_data("_row_offsets", i64s(&[0, 2, 4])).file();
    refused!(read_all(&file.path), Weight, file.path, ["`fc.weight`", "row 1", "2 to 4", "3 columns"]);
    let file = draft().with_data("_row_offsets", i64s(&[0, 2, -1])).file();
    refused!(read_all(&file.path), Weight, file.path, ["`fc.weight`", "row 1", "2 to 18446744073709551615"]);
}

#[test]
fn row_offsets_that_leave_columns_out_are_refused() {
    let draft = || sparse(LayoutKind::CompressedRows);
    let file = draft().with_data("_row_offsets", i64s(&[1, 2, 3])).file();
    refused!(read_all(&file.path), Weight, file.path, ["`fc.weight`", "row 0", "1 to 2"]);
    let file = draft().with_data("_row_offsets", i64s(&[0, 2, 2])).file();
    refused!(read_all(&file.path), Weight, file.path, ["`fc.weight`", "columns", "expected 2, got 3"]);
}

#[test]
fn columns_out_of_range_are_refused() {
    let draft = || sparse(LayoutKind::CompressedRows);
    let file = draft().with_data("_columns", [0, 0, 3, 0, 1, 0]).file();
    refused!(read_all(&file.path), Weight, file.path, ["`fc.weight`", "row 0", "column 3", "below 3"]);
    let file = draft().with_data("_columns", [0, 0, 2, 0, 0xff, 0xff]).file();
    refused!(read_all(&file.path), Weight, file.path, ["`fc.weight`", "row 1", "column 65535", "below 3"]);
}

#[test]
fn columns_out_of_order_are_refused() {
    for columns in [[2, 0, 0, 0, 1, 0], [2, 0, 2, 0, 1, 0]] {
        let file = sparse(LayoutKind::CompressedRows).with_data("_columns", columns).file();
        refused!(read_all(&file.path), Weight, file.path, ["`fc.weight`", "row 0", "out of order"]);
    }
}

#[test]
fn a_shape_tensor_that_contradicts_the_metadata_is_refused() {
    let file = dense_int().with_data("_shape", i64s(&[5, 13])).file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight_shape`", "[5, 13]", "[5, 12]"]);
    let file = dense_int().with_data("_shape", i64s(&[-5, 12])).file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight_shape`", "-5"]);
    let file = dense_int().with_data("_shape", i64s(&[i64::MAX, i64::MAX])).file();
    refused!(file.open(), Weight, file.path, ["`fc.weight_shape`", "9223372036854775807", "address"]);
}

#[test]
fn a_form_of_another_shape_than_its_tensor_is_refused() {
    let draft = draft(&float_weight(LayoutKind::Dense, Precision::F32)).with("shape", json!([12, 5]));
    let file = draft.file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight`", "[5, 12]", "[12, 5]", "f32"]);
}

#[test]
fn nan_codes_are_refused() {
    for (index, code) in [(7, 0x7f), (59, 0xff)] {
        let mut draft = draft(&f8_weight(LayoutKind::Dense, Granularity::Channel, Precision::F32));
        draft.part("").bytes[index] = code;
        let file = draft.file();
        refused!(read_all(&file.path), Tensor, file.path, ["`fc.weight`", &format!("NaN at index {index}")]);
    }
}

#[test]
fn forms_that_claim_more_than_the_file_holds_are_refused_before_memory_is_taken() {
    for layout in layouts() {
        for symmetric in [true, false] {
            for granularity in granularities() {
                for (rows, cols) in [(1u64 << 40, 64), (64, 1 << 40), (1 << 40, 0), (0, 1 << 40)] {
                    let weight = int_weight(layout, 4, symmetric, granularity, Precision::F32);
                    let mut draft = draft(&weight).with("shape", json!([rows, cols]));
                    let kept = match layout {
                        LayoutKind::Dense => rows * cols,
                        LayoutKind::NofM(_) => rows * cols / 2,
                        _ => 60.min(rows * cols),
                    };
                    draft = draft
                        .with("kept", kept.into())
                        .with_data("_shape", i64s(&[rows as i64, cols as i64]));
                    let file = draft.file();
                    let error = read_all(&file.path).unwrap_err();
                    assert!(tersor::one_line(&error).contains("`fc.weight"), "{error}");
                }
            }
        }
    }
}

/// A weight of `rows` × `cols` without elements and with parts that agree with it.
fn hollow(layout: &str, rows: usize, cols: usize, coding: &Value) -> Draft {
    let (group_rows, group_cols) =
        if coding["strategy"] == "tensor" { (1, 1) } else { (rows, cols.div_ceil(4)) };
    let mut tensors = vec![stored("fc.weight_shape", DType::I64, &[2], i64s(&[rows as i64, cols as i64]))];
    tensors.push(match (layout, coding["type"] == "float") {
        ("dense", _) => stored("fc.weight_packed", DType::I32, &[rows, cols.div_ceil(8)], []),
        (_, false) => stored("fc.weight_values", DType::I32, &[0], []),
        (_, true) => stored("fc.weight_values", DType::F32, &[0], []),
    });
    match layout {
        "bitmask" => tensors.push(stored("fc.weight_bitmask", DType::U8, &[rows, cols.div_ceil(8)], [])),
        "2:4" => tensors.push(stored("fc.weight_positions", DType::I32, &[0], [])),
        _ => {}
    }
    if coding["type"] == "int" {
        let bytes = vec![0; 4 * group_rows * group_cols];
        tensors.push(stored("fc.weight_scale", DType::F32, &[group_rows, group_cols], bytes));
        if coding["symmetric"] == false {
            tensors.push(if coding["strategy"] == "tensor" {
                stored("fc.weight_zero_point", DType::I8, &[1], [0])
            } else {
                stored("fc.weight_zero_point", DType::I32, &[rows.div_ceil(8), group_cols], [])
            });
        }
    }
    let form = json!({"shape": [rows, cols], "layout": layout, "kept": 0, "coding": coding});
    Draft { tensors, document: json!({"version": 1, "weights": {NAME: form}}) }
}

#[test]
fn hollow_weights_of_huge_dimensions_cost_nothing() {
    let float = json!({"type": "float", "dtype": "F32"});
    let int = |symmetric: bool, strategy: &str| {
        json!({"type": "int", "bits": 4, "symmetric": symmetric, "strategy": strategy, "group_size": 4,
            "scale_dtype": "F32"})
    };
    for (rows, cols) in [(1usize << 40, 0), (1 << 57, 0), (0, 1 << 40), (0, 1 << 57)] {
        for layout in ["bitmask", "2:4"] {
            read_all(&hollow(layout, rows, cols, &float).file().path).unwrap();
        }
        for layout in ["dense", "bitmask", "2:4"] {
            for symmetric in [true, false] {
                read_all(&hollow(layout, rows, cols, &int(symmetric, "tensor")).file().path).unwrap();
                read_all(&hollow(layout, rows, cols, &int(symmetric, "group")).file().path).unwrap();
            }
        }
    }
    // 2^60 and more are not worth supporting
    for (rows, cols) in [(1usize << 60, 0), (0, 1 << 60)] {
        let file = hollow("bitmask", rows, cols, &float).file();
        refused!(file.open(), Tensor, file.path, ["`fc.weight`", "1152921504606846976", "address"]);
    }
}

/// A few bytes cannot ask for petabytes of zeros.
#[test]
fn a_sparse_weight_of_almost_nothing_is_refused() {
    let form = json!({"shape": [1, 1u64 << 56], "layout": "rows", "kept": 0, "coding": {"type": "float", "dtype": "F32"}});
    let tensors = vec![
        stored("fc.weight_shape", DType::I64, &[2], i64s(&[1, 1 << 56])),
        stored("fc.weight_values", DType::F32, &[0], []),
        stored("fc.weight_row_offsets", DType::I64, &[2], i64s(&[0, 0])),
        stored("fc.weight_columns", DType::U32, &[0], []),
    ];
    let file = Draft { tensors, document: json!({"version": 1, "weights": {NAME: form}}) }.file();
    refused!(
        read_all(&file.path),
        Tensor,
        file.path,
        ["`fc.weight`", "[1, 72057594037927936]", "72057594037927936 elements", "16 bytes"]
    );
}

#[test]
fn dimensions_that_overflow_are_refused() {
    for shape in [
        json!([1u64 << 40, 1u64 << 40]),
        json!([u64::MAX, 1]),
        json!([u64::MAX, 0]),
        json!([1u64 << 40, 1u64 << 40, 0]),
    ] {
        let first = shape[0].to_string();
        let file = dense_int().with("shape", shape).with("kept", 0.into()).file();
        refused!(file.open(), Tensor, file.path, ["`fc.weight`", &first, "address"]);
    }
    let file = dense_int().with("shape", json!([-5, 12])).file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight`", "`-5`"]);
}

#[test]
fn a_plain_tensor_of_the_name_of_a_compressed_weight_is_refused() {
    let mut draft = dense_int();
    draft.tensors.push(stored(NAME, DType::F32, &[5, 12], [0; 240]));
    let file = draft.file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight`", "compressed weight of the same name"]);
}

#[test]
fn a_part_of_two_weights_is_refused() {
    let mut draft = dense_int();
    draft.document["weights"]["fc.weight_scale"] =
        json!({"shape": [5, 1], "layout": "dense", "kept": 5, "coding": {"type": "float", "dtype": "F32"}});
    let file = draft.file();
    refused!(file.open(), Tensor, file.path, ["`fc.weight_scale`", "two compressed weights", "`fc.weight`"]);
}

#[test]
fn factors_that_do_not_fit_are_refused() {
    let f16 = Coding::Float(Precision::F16);
    let product = || draft(&CompressedWeight::low_rank(&[5, 12], factors(2, f16)).unwrap());
    let corrected = || {
        let base = int_weight(LayoutKind::Dense, 4, true, Granularity::Channel, Precision::F32);
        draft(&base.with_correction(factors(2, INT6)).unwrap())
    };
    let float = json!({"type": "float", "dtype": "F16"});
    let of_rank = |rank: Value| json!({"rank": rank, "coding": float});
    let without = |draft: Draft, suffix: &str| {
        let Draft { mut tensors, document } = draft;
        tensors.retain(|tensor| tensor.name != format!("{NAME}{suffix}"));
        Draft { tensors, document }
    };
    for (draft, parts) in [
        (product().with("low_rank", of_rank(json!(3))), &["fc.weight_u", "[5, 2]", "[5, 3]"][..]),
        (product().with("low_rank", of_rank(json!(0))), &["fc.weight", "rank 0", "5 × 12"]),
        (product().with("low_rank", of_rank(json!(6))), &["fc.weight", "rank 6", "5 × 12"]),
        (product().with("low_rank", of_rank(json!(-1))), &["fc.weight", "-1"]),
        (product().with("low_rank", of_rank(json!(u64::MAX))), &["fc.weight", "rank 18446744073709551615"]),
        (product().with("low_rank", Value::Null), &["fc.weight", "an empty layout"]),
        (product().with("kept", json!(1)), &["fc.weight", "an empty layout"]),
        (
            product().with("coding", json!({"type": "float", "dtype": "F32"})),
            &["fc.weight", "its own coding"],
        ),
        (product().with("shape", json!([5, 11])), &["fc.weight_shape", "[5, 12]", "[5, 11]"]),
        (product().with("layout", json!("dense")), &["fc.weight", "expected 60, got 0"]),
        (without(product(), "_u"), &["fc.weight", "fc.weight_u", "not there"]),
        (without(corrected(), "_v_scale"), &["fc.weight", "fc.weight_v_scale", "not there"]),
        (
            product().with_part("_v", DType::F16, &[12, 2], vec![0; 48]),
            &["fc.weight_v", "[12, 2]", "[2, 12]"],
        ),
        (product().with_part("_v", DType::F32, &[2, 12], vec![0; 96]), &["fc.weight_v", "F32", "F16"]),
        (corrected().with("low_rank", of_rank(json!(2))), &["fc.weight", "fc.weight_u", "not there"]),
        (corrected().with("input", json!({"dynamic": 3, "symmetric": true})), &["fc.weight"]),
        (
            product().with("input", json!({"dynamic": true, "symmetric": true})),
            &["fc.weight", "integer codes"],
        ),
    ] {
        let file = draft.file();
        let error = file.open().and_then(|checkpoint| checkpoint.weight(NAME)).unwrap_err();
        let error = tersor::one_line(&error);
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
    }
    // a few bytes that ask for all memory there is
    let huge = json!({"version": 1, "weights": {NAME: {"shape": [1 << 20, 1 << 20], "layout": "empty", "kept": 0,
        "coding": float, "low_rank": of_rank(json!(1))}}});
    let draft = Draft { document: huge, ..product() };
    let error = tersor::one_line(&draft.file().open().unwrap_err());
    assert!(error.contains("4194304 bytes"), "{error}");
}
