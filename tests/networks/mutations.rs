//! Random damage to `config.json` and to the header of the weights: whatever opens or not, nothing may panic or hang.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use tersor::{LanguageModel, Network, SentenceEncoder, one_line};

use crate::common::Folder;
use crate::common::damage::{Random, damage};
use crate::model::{Model, fixture, open};

const ROUNDS: usize = 1000;

/// Opens the network and runs it, if that is possible.
fn use_all(folder: &Folder) -> bool {
    let network = match open(folder) {
        Ok(network) => network,
        Err(error) => {
            assert!(!one_line(&error).contains('\n'));
            return false;
        }
    };
    match network {
        Network::Decoder(model) => match model.logits(&[5, 9, 3]) {
            Ok(logits) => assert_eq!(logits.dim(), (3, model.vocab_size())),
            Err(error) => assert!(!one_line(&error).is_empty()),
        },
        Network::Encoder(model) => match model.embed(&[&[5, 9], &[3]]) {
            Ok(embeddings) => assert_eq!(embeddings.nrows(), 2),
            Err(error) => assert!(!one_line(&error).is_empty()),
        },
        other => assert_eq!(other.model_type(), "sequential"),
    }
    true
}

/// Uses the network after every damage; gives how often it could be opened.
fn survive(folder: &Folder, what: &str, mut spoil: impl FnMut()) -> usize {
    let mut good = 0;
    for round in 0..ROUNDS {
        spoil();
        let begin = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| use_all(folder))) {
            Ok(opened) => good += usize::from(opened),
            Err(panic) => {
                let kept = std::env::temp_dir().join(format!("tersor-{what}-{round}"));
                fs::create_dir_all(&kept).unwrap();
                for file in ["config.json", "model.safetensors"] {
                    fs::copy(folder.path().join(file), kept.join(file)).unwrap();
                }
                eprintln!("round {round} panicked: {}", kept.display());
                resume_unwind(panic);
            }
        }
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "{what}: round {round} took {:?}",
            begin.elapsed()
        );
    }
    good
}

#[test]
fn damaged_configurations_never_panic() {
    let mut random = Random(0x5eed_0001);
    for case in ["llama", "llama-yarn", "qwen2-window", "bert"] {
        let folder = Model::of(case).folder();
        let whole = fs::read(fixture(case).join("config.json")).unwrap();
        let good = survive(&folder, "config", || {
            let mut bytes = whole.clone();
            for _ in 0..=random.below(3) {
                let end = bytes.len();
                if end > 0 {
                    damage(&mut random, &mut bytes, 0, end);
                }
            }
            folder.put("config.json", bytes);
        });
        // many keys do not matter, and most damage breaks the JSON
        assert!((10..ROUNDS - 10).contains(&good), "{case}: {good}");
    }
}

/// Values that are well-formed and make no sense.
#[test]
fn absurd_configurations_never_panic() {
    let values = [
        "0",
        "1",
        "2",
        "3",
        "-1",
        "7",
        "8",
        "64",
        "65536",
        "16777216",
        "16777217",
        "1e-300",
        "1e300",
        "1e-9",
        "0.5",
        "null",
        "true",
        "false",
        "\"\"",
        "\"relu\"",
        "\"linear\"",
        "\"yarn\"",
        "\"dynamic\"",
        "\"llama3\"",
        "[]",
        "{}",
        "18446744073709551615",
        "[\"sliding_attention\", \"full_attention\"]",
    ];
    let mut random = Random(0x5eed_0002);
    for case in ["llama-llama3", "llama-yarn", "llama-linear", "qwen2-window", "qwen3", "mistral", "bert"] {
        let model = Model::of(case);
        let folder = model.folder();
        let good = survive(&folder, "absurd", || {
            let mut config = model.config.clone();
            for _ in 0..=random.below(3) {
                let parameters = config.get("rope_parameters").and_then(serde_json::Value::as_object);
                let nested =
                    parameters.is_some_and(|parameters| !parameters.is_empty()) && random.below(2) == 0;
                let object = if nested { &mut config["rope_parameters"] } else { &mut config };
                let keys: Vec<String> = object.as_object().unwrap().keys().cloned().collect();
                let key = &keys[random.below(keys.len())];
                object[key] = serde_json::from_str(values[random.below(values.len())]).unwrap();
            }
            folder.put("config.json", config.to_string());
        });
        assert!((10..ROUNDS - 10).contains(&good), "{case}: {good}");
    }
}

#[test]
fn damaged_headers_never_panic() {
    let mut random = Random(0x5eed_0003);
    for case in ["llama", "bert"] {
        let folder = Model::of(case).folder();
        let whole = fs::read(folder.path().join("model.safetensors")).unwrap();
        let header = u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
        let good = survive(&folder, "header", || {
            // one time in eight with a length that is not true
            let lie = random.below(8) == 0;
            let mut bytes = whole[..8 + header].to_vec();
            damage(&mut random, &mut bytes, if lie { 0 } else { 8 }, 8 + header);
            if !lie {
                let length = bytes.len() as u64 - 8;
                bytes[..8].copy_from_slice(&length.to_le_bytes());
            }
            bytes.extend_from_slice(&whole[8 + header..]);
            if random.below(16) == 0 {
                bytes.truncate(random.below(bytes.len()));
            }
            folder.put("model.safetensors", bytes);
        });
        assert!(good < ROUNDS / 2, "{case}: {good}");
    }
}
