//! Random damage to valid files: whatever opens or not, nothing may panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::common::damage::{Random, damage};
use crate::common::{Folder, f32s, i64s, read_all, safetensors, stored};
use crate::drafts::{Draft, every_form};
use tersor::DType;

/// Damages the header, whose length is kept true, or the data, or anything.
fn damage_file(random: &mut Random, whole: &[u8]) -> Vec<u8> {
    let header = u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    let mut bytes = whole.to_vec();
    match random.below(4) {
        0 | 1 => {
            let before = bytes.split_off(8 + header);
            let times = 1 + random.below(2);
            for _ in 0..times {
                let end = bytes.len();
                if end > 8 {
                    damage(random, &mut bytes, 8, end);
                }
            }
            let length = bytes.len() as u64 - 8;
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            bytes.extend(before);
        }
        2 if bytes.len() > 8 + header => {
            let from = 8 + header;
            let at = from + random.below(bytes.len() - from);
            let length = 1 + random.below((bytes.len() - at).min(8));
            for byte in &mut bytes[at..at + length] {
                *byte = random.next() as u8;
            }
        }
        _ => {
            let end = bytes.len();
            damage(random, &mut bytes, 0, end);
        }
    }
    bytes
}

/// Reads the damaged checkpoint `times` times; gives how often all of it could be read.
fn survive(path: &Path, times: usize, mut spoil: impl FnMut()) -> usize {
    let mut good = 0;
    for round in 0..times {
        spoil();
        match catch_unwind(AssertUnwindSafe(|| read_all(path))) {
            Ok(Ok(())) => good += 1,
            Ok(Err(error)) => assert!(!tersor::one_line(&error).contains('\n')),
            Err(panic) => {
                eprintln!("round {round} panicked");
                std::panic::resume_unwind(panic);
            }
        }
    }
    good
}

#[test]
fn damaged_files_of_compressed_weights_never_panic() {
    let mut random = Random(0x7e25_0a11);
    let weights = every_form();
    let folder = Folder::new();
    let path = folder.path().join("x.safetensors");
    let mut good = 0;
    for weight in weights.iter().step_by(3) {
        let whole = Draft::of(&[("fc.weight", weight)]).bytes();
        good += survive(&path, 40, || drop(folder.put("x.safetensors", damage_file(&mut random, &whole))));
    }
    // damage to codes and scales alone can leave a file that reads
    let rounds = 40 * weights.len().div_ceil(3);
    assert!(good > rounds / 20 && good < rounds / 2, "{good} of {rounds} read");
}

#[test]
fn damaged_files_of_coded_weights_never_panic() {
    let mut random = Random(0xc0de_0a11);
    let weights = every_form();
    let folder = Folder::new();
    let path = folder.path().join("x.safetensors");
    let mut good = 0;
    for weight in weights.iter().step_by(3) {
        let whole = Draft::coded(&[("fc.weight", weight)]).bytes();
        good += survive(&path, 40, || drop(folder.put("x.safetensors", damage_file(&mut random, &whole))));
    }
    // a byte of a short stream that is not coded can change unnoticed
    let rounds = 40 * weights.len().div_ceil(3);
    assert!(good > rounds / 50 && good < rounds / 2, "{good} of {rounds} read");
}

#[test]
fn a_damaged_header_of_a_network_never_panics() {
    let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/fashion-mlp/model.safetensors");
    let whole = std::fs::read(model).unwrap();
    let header = u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    let folder = Folder::new();
    let path = folder.path().join("x.safetensors");
    let mut random = Random(0xfa51_0000);
    let good = survive(&path, 600, || {
        // the data stays as it is: a hole in the file stands for it
        let bytes = damage_file(&mut random, &whole[..8 + header]);
        folder.put("x.safetensors", &bytes);
        let size = bytes.len() + whole.len() - (8 + header);
        std::fs::File::options().write(true).open(&path).unwrap().set_len(size as u64).unwrap();
    });
    assert!(good > 0 && good < 300, "{good} of 600 read");
}

#[test]
fn a_damaged_config_never_panics() {
    let args =
        json!({"num_bits": 4, "type": "int", "symmetric": false, "strategy": "group", "group_size": 4});
    let group = json!({"targets": ["Linear", "re:.*fc$"], "weights": args});
    let config = json!({"quantization_config":
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": []}});
    let tensors = [
        stored("fc.weight_packed", DType::I32, &[2, 1], [0x12; 8]),
        stored("fc.weight_scale", DType::F32, &[2, 2], f32s(&[1.0; 4])),
        stored("fc.weight_shape", DType::I64, &[2], i64s(&[2, 8])),
        stored("fc.weight_zero_point", DType::I32, &[1, 2], [0x34; 8]),
    ];
    let folder = Folder::new();
    let model = safetensors(&tensors, &[].into());
    folder.put("model.safetensors", &model);
    folder.put("config.json", config.to_string());
    read_all(folder.path()).unwrap();

    let whole = config.to_string().into_bytes();
    let mut random = Random(0xc0_4f16);
    let good = survive(folder.path(), 1000, || {
        let mut bytes = whole.clone();
        let end = bytes.len();
        damage(&mut random, &mut bytes, 0, end);
        folder.put("config.json", bytes);
    });
    assert!(good > 0 && good < 500, "{good} of 1000 read");

    folder.put("config.json", &whole);
    let good = survive(folder.path(), 1000, || {
        folder.put("model.safetensors", damage_file(&mut random, &model));
    });
    assert!(good > 0 && good < 500, "{good} of 1000 read");
}

#[test]
fn a_damaged_index_never_panics() {
    let folder = Folder::new();
    folder.put("1.safetensors", safetensors(&[stored("a", DType::F32, &[1], f32s(&[1.0]))], &[].into()));
    folder.put("2.safetensors", safetensors(&[stored("b", DType::F32, &[1], f32s(&[2.0]))], &[].into()));
    let index =
        json!({"metadata": {"total_size": 8}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}});
    let whole = index.to_string().into_bytes();
    let mut random = Random(0x1d_e800);
    let good = survive(folder.path(), 500, || {
        let mut bytes = whole.clone();
        let end = bytes.len();
        damage(&mut random, &mut bytes, 0, end);
        folder.put("model.safetensors.index.json", bytes);
    });
    assert!(good > 0 && good < 250, "{good} of 500 read");
}
