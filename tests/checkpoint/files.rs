//! One safetensors file: its header and its plain tensors.

use tersor::{Checkpoint, DType, Stored, TensorClass};

use crate::common::{File, Folder, f32s, info, raw, safetensors, stored};
use crate::refused;

/// A file with one U8 tensor `a` of four bytes.
fn small() -> Vec<u8> {
    raw(format!(r#"{{"a":{}}}"#, info("U8", "[4]", 0, 4)), &[1, 2, 3, 4])
}

/// A file with tensor `a`, described as told, and `bytes` bytes of data.
fn one(dtype: &str, shape: &str, offsets: [u64; 2], bytes: usize) -> File {
    File::new(raw(format!(r#"{{"a":{}}}"#, info(dtype, shape, offsets[0], offsets[1])), &vec![0; bytes]))
}

/// A file with U8 tensors `a` and `b` and `bytes` bytes of data.
fn two(a: [u64; 2], b: [u64; 2], bytes: usize) -> File {
    let info = |[from, to]: [u64; 2]| info("U8", &format!("[{}]", to - from), from, to);
    File::new(raw(format!(r#"{{"a":{},"b":{}}}"#, info(a), info(b)), &vec![0; bytes]))
}

#[test]
fn a_missing_file_is_refused() {
    let folder = Folder::new();
    let path = folder.path().join("none.safetensors");
    refused!(Checkpoint::open(&path), Io, path, ["cannot open", "No such file"]);
}

#[test]
fn an_empty_file_is_refused() {
    let file = File::new([]);
    refused!(file.open(), Header, file.path, ["0 bytes are too few", "8 bytes"]);
}

#[test]
fn a_file_cut_in_the_length_is_refused() {
    let file = File::new(&small()[..7]);
    refused!(file.open(), Header, file.path, ["7 bytes are too few", "8 bytes"]);
}

#[test]
fn a_file_cut_in_the_header_is_refused() {
    let whole = small();
    let length = whole[0];
    let file = File::new(&whole[..28]);
    refused!(
        file.open(),
        Header,
        file.path,
        [&format!("claims {length} bytes"), "only 20 follow", "truncated"]
    );
}

#[test]
fn a_file_cut_in_the_data_is_refused() {
    let whole = small();
    let file = File::new(&whole[..whole.len() - 1]);
    refused!(file.open(), Tensor, file.path, ["`a`", "0 to 4", "3 bytes of data", "truncated"]);
}

#[test]
fn every_cut_of_a_file_is_refused() {
    let whole = small();
    for end in 0..whole.len() {
        assert!(File::new(&whole[..end]).open().is_err(), "cut at {end}");
    }
    assert!(File::new(&whole).open().is_ok());
}

#[test]
fn a_header_longer_than_the_file_is_refused() {
    let mut bytes = small();
    bytes[..8].copy_from_slice(&1_000_000u64.to_le_bytes());
    let file = File::new(&bytes);
    let rest = format!("only {} follow", bytes.len() - 8);
    refused!(file.open(), Header, file.path, ["claims 1000000 bytes", &rest]);
}

#[test]
fn a_header_length_of_2_to_the_63_is_refused() {
    let mut bytes = small();
    bytes[..8].copy_from_slice(&(1u64 << 63).to_le_bytes());
    let file = File::new(bytes);
    refused!(file.open(), Header, file.path, ["claims 9223372036854775808 bytes", "100000000"]);
}

#[test]
fn the_largest_header_length_is_refused() {
    let mut bytes = small();
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let file = File::new(bytes);
    refused!(file.open(), Header, file.path, ["claims 18446744073709551615 bytes", "100000000"]);
}

#[test]
fn a_header_of_no_bytes_is_refused() {
    let file = File::new([0; 16]);
    refused!(file.open(), Header, file.path, ["does not begin with `{`", "unfinished"]);
}

#[test]
fn overlapping_tensors_are_refused() {
    let file = two([0, 4], [2, 6], 6);
    refused!(file.open(), Tensor, file.path, ["`b`", "begins at 2", "ends at 4", "overlaps"]);
}

#[test]
fn two_tensors_at_one_place_are_refused() {
    let file = two([0, 4], [0, 4], 4);
    refused!(file.open(), Tensor, file.path, ["`b`", "begins at 0", "ends at 4", "overlaps"]);
}

#[test]
fn a_gap_between_tensors_is_refused() {
    let file = two([0, 4], [5, 8], 8);
    refused!(file.open(), Tensor, file.path, ["`b`", "begins at 5", "ends at 4", "gap"]);
}

#[test]
fn a_gap_before_the_first_tensor_is_refused() {
    let file = one("U8", "[2]", [1, 3], 3);
    refused!(file.open(), Tensor, file.path, ["`a`", "begins at 1", "ends at 0", "gap"]);
}

#[test]
fn an_empty_tensor_inside_another_is_refused() {
    let file = two([0, 4], [2, 2], 4);
    refused!(file.open(), Tensor, file.path, ["`b`", "begins at 2", "ends at 4"]);
}

#[test]
fn offsets_beyond_the_data_are_refused() {
    let file = one("U8", "[9]", [0, 9], 8);
    refused!(file.open(), Tensor, file.path, ["`a`", "0 to 9", "8 bytes of data"]);
    let file = one("U8", "[4]", [u64::MAX - 4, u64::MAX], 8);
    refused!(
        file.open(),
        Tensor,
        file.path,
        ["`a`", "18446744073709551611 to 18446744073709551615", "8 bytes"]
    );
}

#[test]
fn reversed_offsets_are_refused() {
    let file = one("U8", "[4]", [4, 0], 4);
    refused!(file.open(), Tensor, file.path, ["`a`", "4 to 0", "4 bytes of data"]);
}

#[test]
fn negative_offsets_are_refused() {
    let file = File::new(raw(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}"#, &[0]));
    refused!(file.open(), Header, file.path, ["`a`", "`-1`"]);
}

#[test]
fn bytes_after_the_last_tensor_are_refused() {
    let file = one("U8", "[4]", [0, 4], 7);
    refused!(file.open(), Header, file.path, ["end at byte 4", "7 bytes are there"]);
}

#[test]
fn a_shape_that_takes_other_bytes_is_refused() {
    let file = one("F32", "[2,3]", [0, 20], 20);
    refused!(file.open(), Tensor, file.path, ["`a`", "[2, 3] of F32 takes 24 bytes", "0 to 20 hold 20"]);
}

#[test]
fn a_shape_whose_product_overflows_is_refused() {
    let file = one("F32", "[4294967296,4294967296,4294967296]", [0, 4], 4);
    refused!(file.open(), Tensor, file.path, ["`a`", "[4294967296, 4294967296, 4294967296]", "address"]);
}

#[test]
fn a_shape_whose_bits_overflow_is_refused() {
    // 2^58 elements of 64 bits are 2^64 bits
    let file = one("F64", "[288230376151711744]", [0, 0], 0);
    refused!(file.open(), Tensor, file.path, ["`a`", "[288230376151711744]", "address"]);
}

#[test]
fn huge_dimensions_beside_a_zero_are_refused() {
    for shape in
        ["[1099511627776,1099511627776,0]", "[1099511627776,0,1099511627776]", "[18446744073709551615,0]"]
    {
        let file = one("F32", shape, [0, 0], 0);
        let dimension = shape[1..].split(',').next().unwrap();
        match file.open() {
            Err(error) => {
                let line = tersor::one_line(&error);
                assert!(
                    line.contains("`a`") && line.contains(dimension) && line.contains("address"),
                    "{line}"
                );
            }
            Ok(_) => panic!("{shape} was not refused"),
        }
    }
}

#[test]
fn a_name_that_occurs_twice_is_refused() {
    let a = info("U8", "[4]", 0, 4);
    let file = File::new(raw(format!(r#"{{"a":{a},"a":{a}}}"#), &[0; 4]));
    refused!(file.open(), Header, file.path, ["`a` occurs twice"]);
}

#[test]
fn metadata_that_occurs_twice_is_refused() {
    let file = File::new(raw(r#"{"__metadata__":{},"__metadata__":{}}"#, &[]));
    refused!(file.open(), Header, file.path, ["`__metadata__` occurs twice"]);
}

#[test]
fn a_key_that_occurs_twice_in_metadata_is_refused() {
    let file = File::new(raw(r#"{"__metadata__":{"a":"1","a":"2"}}"#, &[]));
    refused!(file.open(), Header, file.path, ["`__metadata__`", "`a` occurs twice"]);
    let weights = r#"{\"version\":1,\"weights\":{\"x\":{},\"x\":{}}}"#;
    let file = File::new(raw(format!(r#"{{"__metadata__":{{"tersor":"{weights}"}}}}"#), &[]));
    refused!(file.open(), Config, file.path, ["`tersor`", "`x` occurs twice"]);
}

#[test]
fn an_unknown_dtype_is_refused() {
    let file = one("F128", "[1]", [0, 16], 16);
    refused!(file.open(), Header, file.path, ["`a`", "unknown variant `F128`"]);
}

#[test]
fn a_header_that_is_not_utf8_is_refused() {
    let file = File::new(raw(b"{\"a\xff\":{}}", &[]));
    refused!(file.open(), Header, file.path, ["not UTF-8", "byte 3"]);
}

#[test]
fn a_header_that_is_no_object_is_refused() {
    for header in ["[]", "1", "null", "\"a\"", " {}"] {
        let file = File::new(raw(header, &[]));
        refused!(file.open(), Header, file.path, ["does not begin with `{`"]);
    }
}

#[test]
fn a_header_that_is_no_json_is_refused() {
    let file = File::new(raw(r#"{"a":"#, &[]));
    refused!(file.open(), Header, file.path, ["header:", "EOF"]);
    let file = File::new(raw("{}{}", &[]));
    refused!(file.open(), Header, file.path, ["header:", "trailing characters"]);
}

#[test]
fn a_tensor_without_a_description_is_refused() {
    for (description, missing) in [
        (r#"{"shape":[1],"data_offsets":[0,1]}"#, "dtype"),
        (r#"{"dtype":"U8","data_offsets":[0,1]}"#, "shape"),
        (r#"{"dtype":"U8","shape":[1]}"#, "data_offsets"),
        (r#"{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}"#, "duplicate field `dtype`"),
    ] {
        let file = File::new(raw(format!(r#"{{"a":{description}}}"#), &[0]));
        refused!(file.open(), Header, file.path, ["`a`", missing]);
    }
}

#[test]
fn metadata_that_are_not_strings_are_refused() {
    for (metadata, found) in [(r#"{"k":1}"#, "integer `1`"), (r#"{"k":{}}"#, "map"), ("[]", "sequence")] {
        let file = File::new(raw(format!(r#"{{"__metadata__":{metadata}}}"#), &[]));
        refused!(file.open(), Header, file.path, ["header:", found]);
    }
}

#[test]
fn a_negative_shape_is_refused() {
    let file = one("U8", "[-4]", [0, 4], 4);
    refused!(file.open(), Header, file.path, ["`a`", "`-4`"]);
}

#[test]
fn a_fractional_shape_is_refused() {
    let file = one("U8", "[4.0]", [0, 4], 4);
    refused!(file.open(), Header, file.path, ["`a`", "`4.0`"]);
}

#[test]
fn half_a_byte_is_refused() {
    let file = one("F4", "[3]", [0, 2], 2);
    refused!(file.open(), Tensor, file.path, ["`a`", "[3] of F4", "12 bits", "whole bytes"]);
    let file = one("F6_E2M3", "[3]", [0, 3], 3);
    refused!(file.open(), Tensor, file.path, ["`a`", "[3] of F6_E2M3", "18 bits", "whole bytes"]);
}

#[test]
fn deep_nesting_in_the_header_is_refused() {
    let deep = |n: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(n), "]".repeat(n));
    let file = File::new(raw(deep(1_000_000), &[]));
    refused!(file.open(), Header, file.path, ["`a`"]);
    let ignored = format!(
        r#"{{"a":{{"x":{}{},"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#,
        "[".repeat(1_000_000),
        "]".repeat(1_000_000)
    );
    // whether an unknown key may be deep is serde_json's to say; the stack must hold
    let _ = File::new(raw(ignored, &[0])).open();
}

#[test]
fn a_folder_named_like_a_file_is_a_folder() {
    let folder = Folder::new();
    let path = folder.path().join("x.safetensors");
    std::fs::create_dir(&path).unwrap();
    refused!(Checkpoint::open(&path), NotACheckpoint, path, ["neither model.safetensors nor", "index.json"]);
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_without_waiting_for_its_other_end() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let folder = Folder::new();
    let path = folder.path().join("x.safetensors");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    let opened = path.clone();
    std::thread::spawn(move || send.send(Checkpoint::open(opened)).ok());
    let result = receive.recv_timeout(std::time::Duration::from_secs(5)).expect("opening the pipe waits");
    refused!(result, NotACheckpoint, path, ["not a regular file"]);
}

#[cfg(unix)]
#[test]
fn a_pipe_is_no_index_config_or_image() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    for name in ["model.safetensors.index.json", "config.json", "images"] {
        let folder = Folder::new();
        folder.put("model.safetensors", small());
        let path = folder.path().join(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        let root = folder.path().to_path_buf();
        std::thread::spawn(move || {
            let error = match name {
                "images" => tersor::ImageSet::open(root.join(name), root.join(name))
                    .map(|_| ())
                    .map_err(|e| e.to_string()),
                _ => Checkpoint::open(&root).map(|_| ()).map_err(|e| tersor::one_line(&e)),
            };
            send.send(error).ok();
        });
        let error = receive.recv_timeout(std::time::Duration::from_secs(5)).expect("opening the pipe waits");
        let error = error.unwrap_err();
        assert!(error.contains(path.to_str().unwrap()) && error.contains("not a regular file"), "{error}");
    }
    let device = tersor::open_regular("/dev/zero").unwrap_err().to_string();
    assert!(device.contains("not a regular file"), "{device}");
}

/// Looking up every tensor by its name takes no longer than listing them.
#[test]
fn many_tensors_are_found_by_name() {
    let names: Vec<String> = (0..40_000).map(|i| format!("layers.{i}.a_rather_long_name.weight")).collect();
    let tensors: Vec<_> = names.iter().map(|n| stored(n, DType::U8, &[0], [])).collect();
    let checkpoint = File::new(safetensors(&tensors, &[].into()));
    let checkpoint = checkpoint.open().unwrap();
    let start = std::time::Instant::now();
    for name in &names {
        assert_eq!(checkpoint.entry(name).unwrap().name, *name);
    }
    // one by one it is 800 million comparisons
    assert!(start.elapsed() < std::time::Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn a_tensor_that_is_not_there_is_named() {
    let file = File::new(small());
    let checkpoint = file.open().unwrap();
    refused!(checkpoint.tensor("b"), Missing, file.path, ["`b`"]);
    refused!(checkpoint.entry("b"), Missing, file.path, ["`b`"]);
    refused!(checkpoint.dense("b"), Missing, file.path, ["`b`"]);
    refused!(checkpoint.weight("b"), Missing, file.path, ["`b`"]);
}

#[test]
fn integers_have_no_dense_values() {
    let file = File::new(small());
    let checkpoint = file.open().unwrap();
    refused!(checkpoint.dense("a"), Tensor, file.path, ["`a`", "U8"]);
    refused!(checkpoint.weight("a"), Tensor, file.path, ["`a`", "U8"]);
}

#[test]
fn a_file_without_tensors_opens() {
    let file = File::new(raw("{}", &[]));
    let checkpoint = file.open().unwrap();
    assert!(checkpoint.entries().is_empty());
    assert_eq!(checkpoint.file_bytes(), 10);
}

#[test]
fn tensors_come_in_the_order_of_their_data() {
    let header = format!(
        r#"{{"__metadata__":{{"k":"v"}},"z":{},"a":{}}}  "#,
        info("U8", "[1]", 0, 1),
        info("U8", "[2]", 1, 3)
    );
    let file = File::new(raw(header, &[7, 8, 9]));
    let checkpoint = file.open().unwrap();
    assert_eq!(checkpoint.entries().iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["z", "a"]);
    assert_eq!(checkpoint.tensor("a").unwrap().bytes, [8, 9]);
    assert_eq!(checkpoint.metadata(0).unwrap()["k"], "v");
}

#[test]
fn empty_tensors_and_scalars_open_and_read() {
    let tensors = [
        stored("empty.first", DType::F32, &[0], []),
        stored("scalar", DType::F32, &[], f32s(&[2.5])),
        stored("empty.weight", DType::F16, &[0, 768], []),
        stored("narrow.weight", DType::BF16, &[768, 0], []),
        stored("row.weight", DType::F32, &[1, 2], f32s(&[1.0, -3.0])),
        stored("empty.last", DType::I64, &[3, 0, 2], []),
    ];
    let file = File::new(safetensors(&tensors, &[].into()));
    let checkpoint = file.open().unwrap();
    assert_eq!(checkpoint.entries().len(), 6);
    for tensor in &tensors {
        let read = checkpoint.tensor(&tensor.name).unwrap();
        assert_eq!(
            (read.dtype, read.shape, read.bytes),
            (tensor.dtype, &tensor.shape[..], &tensor.bytes[..])
        );
        assert_eq!(checkpoint.entry(&tensor.name).unwrap().shape, tensor.shape);
    }
    assert_eq!(checkpoint.dense("scalar").unwrap(), [2.5]);
    assert_eq!(checkpoint.weight("scalar").unwrap().dequantize(), ndarray::array![[2.5]]);
    assert_eq!(checkpoint.dense("row.weight").unwrap(), [1.0, -3.0]);
    for (name, shape) in [("empty.weight", [0, 768]), ("narrow.weight", [768, 0])] {
        assert!(checkpoint.dense(name).unwrap().is_empty());
        assert_eq!(checkpoint.weight(name).unwrap().dequantize().shape(), shape);
    }
}

#[test]
fn every_dtype_opens() {
    let types = [
        ("F64", 64, TensorClass::Linear),
        ("F32", 32, TensorClass::Linear),
        ("F16", 16, TensorClass::Linear),
        ("BF16", 16, TensorClass::Linear),
        ("F8_E4M3", 8, TensorClass::Linear),
        ("F8_E5M2", 8, TensorClass::Linear),
        ("F8_E8M0", 8, TensorClass::Other),
        ("F8_E4M3FNUZ", 8, TensorClass::Other),
        ("F8_E5M2FNUZ", 8, TensorClass::Other),
        ("F6_E2M3", 6, TensorClass::Other),
        ("F6_E3M2", 6, TensorClass::Other),
        ("F4", 4, TensorClass::Other),
        ("C64", 64, TensorClass::Other),
        ("I64", 64, TensorClass::Other),
        ("I32", 32, TensorClass::Other),
        ("I16", 16, TensorClass::Other),
        ("I8", 8, TensorClass::Other),
        ("U64", 64, TensorClass::Other),
        ("U32", 32, TensorClass::Other),
        ("U16", 16, TensorClass::Other),
        ("U8", 8, TensorClass::Other),
        ("BOOL", 8, TensorClass::Other),
    ];
    let (mut header, mut end) = (Vec::new(), 0);
    for (name, bits, _) in types {
        let bytes = 8 * bits / 8;
        header.push(format!(r#""{name}.weight":{}"#, info(name, "[2,4]", end, end + bytes)));
        end += bytes;
    }
    let file = File::new(raw(format!("{{{}}}", header.join(",")), &vec![0; end as usize]));
    let checkpoint = file.open().unwrap();
    assert_eq!(checkpoint.entries().len(), types.len());
    for (entry, (name, bits, class)) in checkpoint.entries().iter().zip(types) {
        assert_eq!((entry.describe(), entry.module(), entry.class), (name.to_owned(), name, class));
        assert_eq!((entry.bytes, entry.elements()), (bits, 8), "{name}");
        assert!(matches!(entry.stored, Stored::Plain(dtype) if dtype.bitsize() as u64 == bits));
        assert_eq!(entry.precision().is_some(), class == TensorClass::Linear);
        assert_eq!(checkpoint.dense(&entry.name).is_ok(), class == TensorClass::Linear, "{name}");
    }
}

#[test]
fn floats_are_widened_exactly() {
    let bytes16 = |words: &[u16]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    let p = |n: i32| 2f32.powi(n);
    let cases = [
        (
            DType::F16,
            bytes16(&[0x3c00, 0x0001, 0x7bff, 0x8000, 0xfc00]),
            [1.0, p(-24), 65504.0, -0.0, -f32::INFINITY],
        ),
        (
            DType::BF16,
            bytes16(&[0x3f80, 0x0001, 0x7f7f, 0x8000, 0xff80]),
            [1.0, f32::from_bits(1 << 16), p(127) * (2.0 - p(-7)), -0.0, -f32::INFINITY],
        ),
        (DType::F8_E4M3, vec![0x38, 0x01, 0x7e, 0x80, 0xb9], [1.0, p(-9), 448.0, -0.0, -1.125]),
        (DType::F8_E5M2, vec![0x3c, 0x01, 0x7b, 0x80, 0xfc], [1.0, p(-16), 57344.0, -0.0, -f32::INFINITY]),
        (DType::F32, f32s(&[0.1, p(-149), f32::MAX, -0.0, 3.5]), [0.1, p(-149), f32::MAX, -0.0, 3.5]),
    ];
    for (dtype, bytes, expected) in cases {
        let file = File::new(safetensors(&[stored("w", dtype, &[5], bytes)], &[].into()));
        let checkpoint = file.open().unwrap();
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&checkpoint.dense("w").unwrap()), bits(&expected), "{dtype:?}");
        let weight = checkpoint.weight("w").unwrap().dequantize();
        assert_eq!(bits(weight.as_slice().unwrap()), bits(&expected), "{dtype:?}");
    }
}

#[test]
fn f64_is_rounded_to_the_nearest_f32() {
    // 1 + 2^-24 is halfway between 1 and the next f32, and goes to the even one
    let values = [0.1f64, 1.0 + 2f64.powi(-24), 1.0 + 3.0 * 2f64.powi(-24), -f64::INFINITY, 1e-300];
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let file = File::new(safetensors(&[stored("w", DType::F64, &[5], bytes)], &[].into()));
    let expected = [0.1f32, 1.0, 1.0 + 2f32.powi(-22), -f32::INFINITY, 0.0];
    assert_eq!(file.open().unwrap().dense("w").unwrap(), expected);
}

#[test]
fn f64_beyond_the_largest_f32_is_not_called_infinite() {
    let bytes: Vec<u8> = [f64::NAN, 1.0, -1e300].iter().flat_map(|x| x.to_le_bytes()).collect();
    let file = File::new(safetensors(&[stored("w", DType::F64, &[3], bytes)], &[].into()));
    let parts = ["`w`", "-1e300 at index 2", "3.4028235e38, the largest f32"];
    for result in [file.open().unwrap().dense("w").map(|_| ()), file.open().unwrap().weight("w").map(|_| ())]
    {
        refused!(result, Tensor, file.path, [parts[0], parts[1], parts[2]]);
    }
}

#[test]
fn unaligned_data_reads_the_same() {
    for padding in 0..8 {
        let header = format!(r#"{{"a":{}}}{}"#, info("F32", "[2]", 0, 8), " ".repeat(padding));
        let file = File::new(raw(header, &f32s(&[1.25, -7.0])));
        assert_eq!(file.open().unwrap().dense("a").unwrap(), [1.25, -7.0]);
    }
}
