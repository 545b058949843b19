//! `sample`: text that a model writes, and what it is then calibrated on.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Value, json};
use tersor::{Checkpoint, Decoder, Execution, OwnText, PlainWeights};

use crate::args;
use crate::common::Folder;
use crate::models::fixtures;
use crate::run::{assert_contains, tersor};
use crate::tasks::network;

/// The samples in a file.
fn read(file: &Path) -> Vec<Vec<u32>> {
    let of_line = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        let ids = value["input_ids"].as_array().unwrap().iter();
        ids.map(|id| id.as_u64().unwrap() as u32).collect()
    };
    fs::read_to_string(file).unwrap().lines().map(of_line).collect()
}

fn draw(model: &Path, text: &OwnText) -> Vec<Vec<u32>> {
    let execution = Execution { plain_weights: PlainWeights::Packed, ..Execution::default() };
    let model = Decoder::open(&Checkpoint::open(model).unwrap(), execution).unwrap();
    let samples = text.draw(&model, &mut |_| ControlFlow::Continue(())).unwrap().unwrap();
    samples.sequences().to_vec()
}

#[test]
fn a_model_is_calibrated_on_what_it_has_written() {
    let model = network("llama", 64);
    let folder = Folder::new();
    let file = folder.path().join("own.jsonl");
    let sample = |file: &Path, options: &[&str]| {
        let own = args!["sample", model.path(), "--samples", "5", "--context", "20", "-o", file];
        tersor(own.into_iter().chain(options.iter().map(Into::into)))
    };
    let said = sample(&file, &["--json"]).json();
    assert_eq!((&said["samples"], &said["tokens"]), (&json!(5), &json!(100)));
    assert!(said["tokens_per_second"].as_f64().unwrap() > 0.0);
    let text = fs::read_to_string(&file).unwrap();
    // `config.json` has 1 for what begins a text, and 2 for what ends one
    let own = OwnText { samples: 5, context: 20, start: vec![1], ends: vec![2], ..OwnText::default() };
    assert_eq!(read(&file), draw(model.path(), &own));

    let again = folder.path().join("again.jsonl");
    assert_contains(&sample(&again, &["--threads", "1"]).quietly(), &["100", "again.jsonl"]);
    assert_eq!(fs::read_to_string(&again).unwrap(), text);
    sample(&again, &["--seed", "1", "--quiet"]).quietly();
    assert_ne!(fs::read_to_string(&again).unwrap(), text);
    let options = ["--temperature", "2", "--top-p", "0.9", "--at-once", "2", "--start", "5,3", "--quiet"];
    sample(&again, &options).quietly();
    let other = OwnText { temperature: 2.0, top_p: 0.9, at_once: 2, start: vec![5, 3], ..own.clone() };
    assert_eq!(read(&again), draw(model.path(), &other));

    let out = folder.path().join("out");
    let recipe = args!["--preset", "int4", "--group-size", "8", "--method", "gptq", "--json"];
    let compress = args!["compress", model.path(), "--calibration", file, "-o", out];
    let report = tersor(compress.into_iter().chain(recipe)).json();
    let layers = report["layers"].as_array().unwrap().iter();
    let tokens: Vec<u64> = layers.filter_map(|layer| layer["outcomes"][0]["tokens"].as_u64()).collect();
    assert_eq!(tokens, [100; 14], "{report}");
}

#[test]
fn what_cannot_be_written_is_said_and_nothing_is() {
    let folder = Folder::new();
    let file = folder.path().join("own.jsonl");
    let wrong = |model: &Path, options: &[&str]| {
        tersor(args!["sample", model, "-o", file].into_iter().chain(options.iter().map(Into::into)))
    };
    let model = network("llama", 64);
    for (options, parts) in [
        (&[][..], &["512 tokens after 1", "the 64 that the model takes"][..]),
        (&["--context", "9", "--temperature", "0"], &["temperature of 0"]),
        (&["--context", "9", "--top-p", "2"], &["top-p of 2"]),
        (&["--context", "9", "--start", "5,64"], &["token 64", "vocabulary of 64"]),
    ] {
        assert_contains(&wrong(model.path(), options).error(1), parts);
    }
    for options in [&["--samples", "0"][..], &["--start", "x"], &["--at-once", "-1"]] {
        assert_eq!(wrong(model.path(), options).code, Some(2));
    }
    for other in [fixtures().join("fashion-mlp"), fixtures().join("golden/transformers/bert")] {
        assert_contains(&wrong(&other, &["--context", "9"]).error(1), &["no decoder"]);
    }
    assert!(!file.exists());
    let lost = args!["sample", model.path(), "-o", folder.path().join("no/own.jsonl")];
    assert_contains(&tersor(lost).error(1), &["own.jsonl", "create it first"]);

    let text = args!["sample", model.path(), "-o", folder.path().join("own.txt")];
    assert_contains(&tersor(text).error(1), &["own.txt", "ends in .jsonl"]);

    // a model that does not say how its texts begin, or how they end
    let only_ends = network("llama", 64);
    let config = fs::read_to_string(only_ends.path().join("config.json")).unwrap();
    only_ends.put("config.json", config.replace("\"bos_token_id\": 1", "\"bos_token_id\": null"));
    wrong(only_ends.path(), &["--context", "9", "--samples", "3", "--quiet"]).quietly();
    let own = OwnText { samples: 3, context: 9, start: vec![2], ends: vec![2], ..OwnText::default() };
    assert_eq!(read(&file), draw(only_ends.path(), &own));
    fs::remove_file(&file).unwrap();
    let nameless = network("llama", 64);
    let config = fs::read(nameless.path().join("config.json")).unwrap();
    let mut config: serde_json::Map<String, Value> = serde_json::from_slice(&config).unwrap();
    assert!(config.remove("bos_token_id").is_some() && config.remove("eos_token_id").is_some());
    nameless.put("config.json", serde_json::to_vec(&config).unwrap());
    let line = wrong(nameless.path(), &["--context", "9"]).error(1);
    assert_contains(&line, &["config.json", "neither `bos_token_id` nor `eos_token_id`", "--start"]);
    wrong(nameless.path(), &["--context", "9", "--start", "5", "--quiet"]).quietly();
    assert!(file.exists());
}
