//! Compressed weights that the file's own metadata describes (key `tersor`): all that is well-formed reads back.

use std::collections::BTreeMap;

use serde_json::json;
use tersor::{
    Bits, CheckpointError, CompressedWeight, DType, DenseValues, Granularity, LayoutKind, Precision, Stored,
    stored_tensors,
};

use crate::common::{File, f32s, i64s, read_all, safetensors, stored};
use crate::drafts::{
    NAME, dense_int, describe, draft, every_form, granularities, int_weight, layouts, scales_of,
};

#[test]
fn every_layout_and_coding_reads_back_equal() {
    let weights = every_form();
    assert_eq!(weights.len(), 4 * (3 + 5 * 18) + 11);
    for weight in &weights {
        let file = draft(weight).file();
        let checkpoint = file.open().unwrap();
        let [entry] = checkpoint.entries() else { panic!("{} is not one entry", weight.form()) };
        let tensors = stored_tensors(NAME, weight);
        assert_eq!(entry.name, NAME);
        assert_eq!(entry.shape, weight.shape());
        assert_eq!(entry.describe(), weight.form().to_string());
        assert_eq!(entry.tensors, tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>());
        assert_eq!(entry.bytes, tensors.iter().map(|t| t.bytes.len() as u64).sum::<u64>());
        assert_eq!(&checkpoint.weight(NAME).unwrap(), weight, "{}", weight.form());
        let dense = checkpoint.dense(NAME).unwrap();
        assert_eq!(Some(&dense[..]), weight.dequantize().as_slice(), "{}", weight.form());
        match &entry.stored {
            Stored::Compressed(form) => assert_eq!(form, weight.form()),
            // a dense float needs no form to be read, but the metadata names one
            Stored::Plain(dtype) => panic!("{dtype:?}"),
        }
    }
}

#[test]
fn values_stand_where_the_documented_parts_say() {
    // by hand: int4 codes 1 and −8 at (0, 1) and (1, 0) of a 2 × 2 matrix, zero point 1, scale 1/2
    let tensors = [
        stored("w_values", DType::I32, &[1], vec![0x09, 0, 0, 0]),
        stored("w_row_offsets", DType::I64, &[3], i64s(&[0, 1, 2])),
        stored("w_columns", DType::U16, &[2], vec![1, 0, 0, 0]),
        stored("w_scale", DType::F32, &[1], f32s(&[0.5])),
        stored("w_zero_point", DType::I8, &[1], vec![1]),
        stored("w_shape", DType::I64, &[2], i64s(&[2, 2])),
    ];
    let document = r#"{"version":1,"weights":{"w":{"shape":[2,2],"layout":"rows","kept":2,"coding":
        {"type":"int","bits":4,"symmetric":false,"strategy":"tensor","scale_dtype":"F32"}}}}"#;
    let file =
        File::new(safetensors(&tensors, &BTreeMap::from([("tersor".to_owned(), document.to_owned())])));
    let checkpoint = file.open().unwrap();
    assert_eq!(checkpoint.dense("w").unwrap(), [0.0, 0.0, -4.5, 0.0]);
    assert_eq!(checkpoint.entries()[0].describe(), "rows × int4 asym, tensor");
}

#[test]
fn empty_weights_read_back() {
    for shape in [[0, 12], [5, 0], [0, 0]] {
        for layout in layouts() {
            for granularity in granularities() {
                for symmetric in [true, false] {
                    let scales = scales_of(granularity, Precision::F32, symmetric, shape[0], shape[1]);
                    let values = DenseValues::Int(Bits::new(4).unwrap(), &[], &scales);
                    let weight = CompressedWeight::encode(&shape, layout, None, values);
                    let Ok(weight) = weight else { panic!("{shape:?} {layout} {granularity}") };
                    let file = draft(&weight).file();
                    assert_eq!(
                        file.open().unwrap().weight(NAME).unwrap(),
                        weight,
                        "{shape:?} {}",
                        weight.form()
                    );
                    read_all(&file.path).unwrap();
                }
            }
        }
    }
}

#[test]
fn compressed_convolutions_keep_their_shape() {
    let scales = scales_of(Granularity::Channel, Precision::F32, true, 2, 18);
    let values = DenseValues::Int(Bits::new(8).unwrap(), &[3; 36], &scales);
    let weight = CompressedWeight::encode(&[2, 2, 3, 3], LayoutKind::Dense, None, values).unwrap();
    let file = draft(&weight).file();
    let checkpoint = file.open().unwrap();
    assert_eq!(checkpoint.entry(NAME).unwrap().shape, [2, 2, 3, 3]);
    assert_eq!(checkpoint.weight(NAME).unwrap(), weight);
}

#[test]
fn weights_beside_plain_tensors_keep_their_order() {
    let weight = int_weight(LayoutKind::Dense, 4, true, Granularity::Channel, Precision::F16);
    let mut draft = dense_int();
    draft.tensors = stored_tensors(NAME, &weight);
    draft.document = json!({"version": 1, "weights": {NAME: describe(weight.form())}});
    draft.tensors.insert(0, stored("a", DType::F32, &[1], f32s(&[1.0])));
    draft.tensors.push(stored("z", DType::F32, &[1], f32s(&[2.0])));
    let file = draft.file();
    let checkpoint = file.open().unwrap();
    assert_eq!(checkpoint.entries().iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["a", NAME, "z"]);
    let entry = checkpoint.entry(NAME).unwrap();
    assert_eq!((entry.module(), entry.precision()), ("fc", Some(Precision::F16)));
    assert_eq!(entry.class.to_string(), "linear");
    assert!(matches!(checkpoint.dense("fc.weight_packed"), Err(CheckpointError::Missing { .. })));
    assert_eq!(checkpoint.tensor("fc.weight_packed").unwrap().dtype, DType::I32);
}

#[test]
fn factors_stand_where_the_documented_parts_say() {
    let tensors = [
        stored("w_shape", DType::I64, &[2], i64s(&[3, 2])),
        stored("w_u", DType::F32, &[3, 1], f32s(&[1.0, 2.0, -3.0])),
        stored("w_v", DType::F32, &[1, 2], f32s(&[0.5, 4.0])),
    ];
    let document = r#"{"version":1,"weights":{"w":{"shape":[3,2],"layout":"empty","kept":0,"coding":
        {"type":"float","dtype":"F32"},"low_rank":{"rank":1,"coding":{"type":"float","dtype":"F32"}}}}}"#;
    let file =
        File::new(safetensors(&tensors, &BTreeMap::from([("tersor".to_owned(), document.to_owned())])));
    let checkpoint = file.open().unwrap();
    assert_eq!(checkpoint.dense("w").unwrap(), [0.5, 4.0, 1.0, 8.0, -1.5, -12.0]);
    assert_eq!(checkpoint.entries()[0].describe(), "rank 1 × f32");
}
