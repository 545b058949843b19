//! Mask files.

use std::collections::BTreeMap;

use tersor::{DType, Mask, load_masks, save_masks};

use crate::common::{File, Folder, raw, safetensors, stored};
use crate::refused;

const COLUMNS: &str = "tersor.mask_columns";

/// A mask file with tensor `a` as told, and these columns.
fn file(dtype: DType, shape: &[usize], bytes: &[u8], columns: &str) -> File {
    let metadata = BTreeMap::from([(COLUMNS.to_owned(), columns.to_owned())]);
    File::new(safetensors(&[stored("a", dtype, shape, bytes)], &metadata))
}

#[test]
fn masks_load_as_they_were_saved() {
    let folder = Folder::new();
    let path = folder.path().join("masks.safetensors");
    let masks = BTreeMap::from([
        ("fc1.weight".to_owned(), Mask::from_fn(3, 17, |row, col| (row + col) % 3 == 0)),
        ("fc1.weight_scale".to_owned(), Mask::keep_all(2, 8)),
        ("empty".to_owned(), Mask::keep_all(0, 5)),
        ("narrow".to_owned(), Mask::keep_all(5, 0)),
    ]);
    save_masks(&path, &masks).unwrap();
    assert_eq!(load_masks(&path).unwrap(), masks);
}

#[test]
fn the_bits_stand_as_documented() {
    let masks = load_masks(file(DType::U8, &[2, 2], &[0b1, 0b1, 0b1000_0000, 0], r#"{"a":9}"#).path).unwrap();
    assert_eq!(masks["a"], Mask::from_fn(2, 9, |row, col| [(0, 0), (0, 8), (1, 7)].contains(&(row, col))));
}

#[test]
fn an_existing_file_is_not_replaced() {
    let folder = Folder::new();
    let path = folder.put("masks.safetensors", "mine");
    refused!(save_masks(&path, &BTreeMap::new()), OutputExists, path, ["already exists"]);
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

#[test]
fn nothing_is_left_where_masks_cannot_be_written() {
    let folder = Folder::new();
    let path = folder.path().join("none/masks.safetensors");
    refused!(save_masks(&path, &BTreeMap::new()), Io, path, ["cannot create"]);
}

#[test]
fn a_file_without_columns_is_refused() {
    let plain = File::new(raw("{}", &[]));
    refused!(load_masks(&plain.path), Config, plain.path, [COLUMNS, "no mask file"]);
    for columns in ["", "[]", r#"{"a":-1}"#, r#"{"a":"9"}"#] {
        let file = file(DType::U8, &[2, 2], &[0; 4], columns);
        refused!(load_masks(&file.path), Config, file.path, [COLUMNS]);
    }
}

#[test]
fn columns_of_an_absent_mask_are_refused() {
    let file = file(DType::U8, &[2, 2], &[0; 4], r#"{"a":9,"b":9}"#);
    refused!(load_masks(&file.path), Missing, file.path, ["`b`"]);
}

#[test]
fn a_mask_without_columns_is_refused() {
    let file = file(DType::U8, &[2, 2], &[0; 4], "{}");
    refused!(load_masks(&file.path), Tensor, file.path, ["`a`", COLUMNS]);
}

#[test]
fn a_mask_of_other_bytes_is_refused() {
    for columns in [8, 17] {
        let file = file(DType::U8, &[2, 2], &[0; 4], &format!(r#"{{"a":{columns}}}"#));
        let expected = format!("expected {}, got 4", if columns == 8 { 2 } else { 6 });
        refused!(load_masks(&file.path), Weight, file.path, ["`a`", "bitmask bytes", &expected]);
    }
}

#[test]
fn a_mask_of_impossible_columns_is_refused() {
    let file = file(DType::U8, &[2, 2], &[0; 4], &format!(r#"{{"a":{}}}"#, u64::MAX));
    refused!(load_masks(&file.path), Weight, file.path, ["`a`", "bitmask bytes", "got 4"]);
}

#[test]
fn a_mask_with_a_bit_beyond_its_columns_is_refused() {
    let file = file(DType::U8, &[2, 2], &[0, 0, 0, 2], r#"{"a":9}"#);
    refused!(load_masks(&file.path), Weight, file.path, ["`a`", "row 1", "last of 9 columns"]);
}

#[test]
fn a_mask_that_is_no_matrix_is_refused() {
    let file = file(DType::U8, &[4], &[0; 4], r#"{"a":9}"#);
    refused!(load_masks(&file.path), Tensor, file.path, ["`a`", "two dimensions", "[4]"]);
}

#[test]
fn a_mask_of_another_dtype_is_refused() {
    let file = file(DType::I16, &[2, 1], &[0; 4], r#"{"a":9}"#);
    refused!(load_masks(&file.path), Tensor, file.path, ["`a`", "U8", "I16"]);
}

#[test]
fn a_mask_cannot_take_the_name_that_the_format_keeps() {
    let folder = Folder::new();
    let path = folder.path().join("masks.safetensors");
    let masks = BTreeMap::from([("__metadata__".to_owned(), Mask::keep_all(1, 1))]);
    refused!(save_masks(&path, &masks), Tensor, path, ["`__metadata__`"]);
    assert!(!path.exists());
}
