//! `sample`: text that a model writes, and what it is then calibrated on.

use std::fs;

use serde_json::{Value, json};

use crate::args;
use crate::common::Folder;
use crate::models::fixtures;
use crate::run::{assert_contains, tersor};
use crate::tasks::network;

#[test]
fn a_model_is_calibrated_on_what_it_has_written() {
    let model = network("llama", 64);
    let folder = Folder::new();
    let file = folder.path().join("own.jsonl");
    let sample = |file: &std::path::Path, options: &[&str]| {
        let own = args!["sample", model.path(), "--samples", "5", "--context", "20", "-o", file];
        tersor(own.into_iter().chain(options.iter().map(Into::into)))
    };
    let said = sample(&file, &["--json"]).json();
    assert_eq!((&said["samples"], &said["tokens"]), (&json!(5), &json!(100)));
    assert!(said["tokens_per_second"].as_f64().unwrap() > 0.0);
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 5);
    assert!(lines.iter().all(|line| line["input_ids"].as_array().unwrap().len() == 20));

    let again = folder.path().join("again.jsonl");
    assert_contains(&sample(&again, &["--threads", "1"]).quietly(), &["100", "again.jsonl"]);
    assert_eq!(fs::read_to_string(&again).unwrap(), text);
    sample(&again, &["--seed", "1", "--quiet"]).quietly();
    assert_ne!(fs::read_to_string(&again).unwrap(), text);

    let out = folder.path().join("out");
    let compress = args![
        "compress",
        model.path(),
        "--preset",
        "int4",
        "--group-size",
        "8",
        "--method",
        "gptq",
        "--json"
    ];
    let report = tersor(compress.into_iter().chain(args!["--calibration", file, "-o", out])).json();
    let layers = report["layers"].as_array().unwrap().iter();
    let tokens: Vec<u64> = layers.filter_map(|layer| layer["outcomes"][0]["tokens"].as_u64()).collect();
    assert_eq!(tokens, [100; 14], "{report}");
}

#[test]
fn what_cannot_be_written_is_said_and_nothing_is() {
    let folder = Folder::new();
    let file = folder.path().join("own.jsonl");
    let wrong = |model: &std::path::Path, options: &[&str]| {
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
    let line = wrong(&fixtures().join("fashion-mlp"), &[]).error(1);
    assert_contains(&line, &["tokenizer.json"]);
    assert!(!file.exists());
    let lost = args!["sample", model.path(), "-o", folder.path().join("no/own.jsonl")];
    assert_contains(&tersor(lost).error(1), &["own.jsonl", "create it first"]);

    // a model that does not say how its texts begin
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
