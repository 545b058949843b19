//! Folders: shards with their index, `config.json`, and what is there without either.

use std::path::PathBuf;

use serde_json::{Value, json};
use tersor::{Checkpoint, DType, StoredTensor};

use crate::common::{Folder, f32s, safetensors, stored};
use crate::refused;

const INDEX: &str = "model.safetensors.index.json";

fn tensor(name: &str, value: f32) -> StoredTensor {
    stored(name, DType::F32, &[1], f32s(&[value]))
}

/// Shard `1` holds `a` and `b`, shard `2` holds `c`; the index says `map`.
fn sharded(map: Value) -> (Folder, PathBuf) {
    let folder = Folder::new();
    folder.put("1.safetensors", safetensors(&[tensor("b", 2.0), tensor("a", 1.0)], &[].into()));
    folder.put("2.safetensors", safetensors(&[tensor("c", 3.0)], &[].into()));
    let index = folder.put(INDEX, json!({"metadata": {"total_size": 12}, "weight_map": map}).to_string());
    (folder, index)
}

#[test]
fn shards_open_in_order() {
    let (folder, _) = sharded(json!({"c": "2.safetensors", "a": "1.safetensors", "b": "1.safetensors"}));
    let checkpoint = folder.open().unwrap();
    let entries: Vec<_> = checkpoint.entries().iter().map(|e| (e.name.as_str(), e.file)).collect();
    assert_eq!(entries, [("b", 0), ("a", 0), ("c", 1)]);
    let files: Vec<_> = checkpoint.files().map(|f| f.file_name().unwrap().to_owned()).collect();
    assert_eq!(files, ["1.safetensors", "2.safetensors"]);
    for (name, value) in [("a", 1.0), ("b", 2.0), ("c", 3.0)] {
        assert_eq!(checkpoint.dense(name).unwrap(), [value]);
    }
    assert_eq!(checkpoint.tensor("c").unwrap().path, folder.path().join("2.safetensors"));
}

#[test]
fn a_file_that_the_index_does_not_name_is_not_read() {
    let (folder, _) = sharded(json!({"a": "1.safetensors", "b": "1.safetensors"}));
    assert_eq!(folder.open().unwrap().entries().len(), 2);
}

#[test]
fn a_missing_shard_is_refused() {
    let (folder, index) = sharded(
        json!({"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors", "d": "3.safetensors"}),
    );
    refused!(folder.open(), Index, index, ["`3.safetensors`", "not a file of this folder"]);
}

#[test]
fn an_index_that_names_an_absent_tensor_is_refused() {
    let (folder, index) = sharded(
        json!({"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors", "d": "2.safetensors"}),
    );
    refused!(folder.open(), Index, index, ["`d`", "not in its shard 2.safetensors"]);
}

#[test]
fn a_tensor_that_the_index_does_not_name_is_refused() {
    let (folder, index) = sharded(json!({"a": "1.safetensors", "c": "2.safetensors"}));
    refused!(folder.open(), Index, index, ["does not name", "`b`"]);
}

#[test]
fn a_tensor_in_another_shard_than_the_index_says_is_refused() {
    let (folder, index) = sharded(json!({"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}));
    refused!(folder.open(), Index, index, ["`b` is in 2.safetensors", "it is in 1.safetensors"]);
}

#[test]
fn a_shard_outside_the_folder_is_refused() {
    let outside = Folder::new();
    let absolute = outside.put("9.safetensors", safetensors(&[tensor("a", 1.0)], &[].into()));
    for name in ["../1.safetensors", "./../x/1.safetensors", "..", ".", "", "/", absolute.to_str().unwrap()] {
        let (folder, index) = sharded(json!({"a": name}));
        refused!(folder.open(), Index, index, [&format!("`{name}`"), "not a file of this folder"]);
    }
}

#[test]
fn a_shard_that_is_a_folder_is_refused() {
    let (folder, index) = sharded(json!({"a": "shards"}));
    std::fs::create_dir(folder.path().join("shards")).unwrap();
    refused!(folder.open(), Index, index, ["`shards`", "not a file of this folder"]);
}

#[test]
fn a_tensor_that_a_weight_map_names_twice_is_refused() {
    let (folder, index) = sharded(json!({"a": "model-00001-of-00002.safetensors"}));
    let twice = r#"{"weight_map": {"a": "model-00002-of-00002.safetensors", "a": "model-00001-of-00002.safetensors"}}"#;
    folder.put("model.safetensors.index.json", twice);
    refused!(folder.open(), Index, index, ["`a` occurs twice"]);
}

#[test]
fn an_empty_weight_map_is_refused() {
    let (folder, index) = sharded(json!({}));
    refused!(folder.open(), Index, index, ["`weight_map` is empty"]);
}

#[test]
fn an_index_without_a_weight_map_is_refused() {
    for text in ["{}", "[]", "3", r#"{"weight_map":[]}"#] {
        let folder = Folder::new();
        let index = folder.put(INDEX, text);
        refused!(folder.open(), Index, index, ["no `weight_map`"]);
    }
}

#[test]
fn a_weight_map_without_file_names_is_refused() {
    let (folder, index) = sharded(json!({"a": 1}));
    refused!(folder.open(), Index, index, ["`a`", "no file name"]);
}

#[test]
fn an_index_that_is_no_json_is_refused() {
    let folder = Folder::new();
    let index = folder.put(INDEX, r#"{"weight_map":"#);
    refused!(folder.open(), Index, index, ["not JSON", "line 1"]);
    let index = folder.put(INDEX, "[".repeat(100_000));
    refused!(folder.open(), Index, index, ["not JSON", "recursion"]);
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let (folder, _) = sharded(json!({"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}));
    let second = folder.put("2.safetensors", safetensors(&[tensor("c", 3.0), tensor("a", 1.0)], &[].into()));
    refused!(folder.open(), Tensor, second, ["`a`", "also stands in", "1.safetensors"]);
}

#[test]
fn a_malformed_shard_is_named() {
    let (folder, _) = sharded(json!({"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}));
    let second = folder.put("2.safetensors", [1, 2, 3]);
    refused!(folder.open(), Header, second, ["3 bytes are too few"]);
}

#[test]
fn a_config_that_is_no_json_is_refused() {
    let folder = Folder::new();
    folder.put("model.safetensors", safetensors(&[tensor("a", 1.0)], &[].into()));
    let config = folder.put("config.json", "{");
    refused!(folder.open(), Config, config, ["not JSON", "line 1"]);
    let config = folder.put("config.json", [0xff, 0xfe]);
    refused!(folder.open(), Config, config, ["not JSON"]);
    let config = folder.put("config.json", format!(r#"{{"a":{}"#, "[".repeat(100_000)));
    refused!(folder.open(), Config, config, ["not JSON", "recursion"]);
}

#[test]
fn a_config_that_is_no_object_is_refused() {
    let folder = Folder::new();
    folder.put("model.safetensors", safetensors(&[tensor("a", 1.0)], &[].into()));
    for text in ["[]", "null", "\"x\"", "1"] {
        let config = folder.put("config.json", text);
        refused!(folder.open(), Config, config, ["is not a JSON object"]);
    }
}

#[test]
fn a_folder_without_weights_is_refused() {
    let folder = Folder::new();
    folder.put("config.json", "{}");
    folder.put("pytorch_model.bin", [0]);
    let path = folder.path();
    refused!(folder.open(), NotACheckpoint, path, ["neither model.safetensors nor", INDEX]);
}

#[test]
fn several_files_without_an_index_are_refused() {
    let (folder, index) = sharded(json!({}));
    std::fs::remove_file(index).unwrap();
    let path = folder.path();
    refused!(folder.open(), NotACheckpoint, path, ["2 .safetensors files", INDEX]);
}

#[test]
fn a_model_file_that_is_a_folder_is_refused() {
    let folder = Folder::new();
    let path = folder.path().join("model.safetensors");
    std::fs::create_dir(&path).unwrap();
    refused!(folder.open(), NotACheckpoint, path, ["not a regular file"]);
}

#[test]
fn a_single_file_of_any_name_opens_with_its_config() {
    let folder = Folder::new();
    folder.put("adapter.safetensors", safetensors(&[tensor("a", 1.0)], &[].into()));
    folder.put("config.json", r#"{"model_type":"bert"}"#);
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.dense("a").unwrap(), [1.0]);
    assert_eq!(checkpoint.config().unwrap()["model_type"], "bert");
}

#[test]
fn the_vocabulary_of_the_config_tells_lookup_tables() {
    let folder = Folder::new();
    let table = stored("token_type.weight", DType::F32, &[3, 1], f32s(&[0.0; 3]));
    folder.put("model.safetensors", safetensors(&[table], &[].into()));
    assert_eq!(folder.open().unwrap().entries()[0].class.to_string(), "linear");
    folder.put("config.json", r#"{"type_vocab_size":3}"#);
    assert_eq!(folder.open().unwrap().entries()[0].class.to_string(), "embedding");
}

#[test]
fn the_fixture_networks_open() {
    for (name, tensors) in [("fashion-mlp", 6), ("fashion-lenet", 8)] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!((checkpoint.entries().len(), checkpoint.files().len()), (tensors, 1));
        for entry in checkpoint.entries() {
            assert_eq!(checkpoint.dense(&entry.name).unwrap().len(), entry.elements());
        }
    }
}
