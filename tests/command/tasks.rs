//! `eval` on text: perplexity, agreement, similarity, latency, and what they refuse.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::args;
use crate::common::Folder;
use crate::models::fixtures;
use crate::run::{assert_contains, compressed, tersor};

/// A network that transformers has run, beside a tokenizer whose words `0`, `1`, … are the ids themselves.
pub(crate) fn network(name: &str, vocab_size: u32) -> Folder {
    let folder = Folder::new();
    for file in ["config.json", "model.safetensors"] {
        let path = fixtures().join("golden/transformers").join(name).join(file);
        folder.put(file, fs::read(path).unwrap());
    }
    folder.put("tokenizer.json", tokenizer(vocab_size).to_string());
    folder
}

fn tokenizer(vocab_size: u32) -> Value {
    let vocab: serde_json::Map<String, Value> =
        (0..vocab_size).map(|id| (id.to_string(), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "0"}
    })
}

/// A text of these tokens.
pub(crate) fn words(ids: impl IntoIterator<Item = u32>) -> String {
    ids.into_iter().map(|id| id.to_string()).collect::<Vec<_>>().join(" ")
}

/// The value of a metric.
fn value(json: &Value, metric: &str) -> f64 {
    let score = json["scores"].as_array().unwrap().iter().find(|score| score["metric"] == metric);
    score.unwrap_or_else(|| panic!("no {metric}: {json}"))["value"].as_f64().unwrap()
}

/// What transformers gave for two sequences of 24 tokens: the tokens, and the mean of `−ln p` over all but their first.
fn golden() -> (Vec<u32>, f64) {
    let bytes = fs::read(fixtures().join("golden/transformers/llama/golden.safetensors")).unwrap();
    let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ids = golden.tensor("input_ids").unwrap();
    let logits = golden.tensor("logits").unwrap();
    assert_eq!((ids.shape(), logits.shape()), (&[2, 24][..], &[2, 24, 64][..]));
    let ids: Vec<u32> = ids.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
    let logits: Vec<f64> =
        logits.data().as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    let nats = (0..47).filter(|token| *token != 23).map(|token| {
        let row = &logits[64 * token..64 * (token + 1)];
        row.iter().map(|logit| logit.exp()).sum::<f64>().ln() - row[ids[token + 1] as usize]
    });
    let mean = nats.sum::<f64>() / 46.0;
    (ids, mean)
}

#[test]
fn perplexity_is_that_of_the_logits_that_transformers_computes() {
    let (ids, nats) = golden();
    let model = network("llama", 64);
    let text = model.put("text", words(ids.iter().copied()));
    let task = args!["--task", "perplexity", "--data", text, "--context", "24"];
    let json = tersor(args!["eval", model.path(), "--json"].iter().chain(&task)).json();
    assert!((value(&json, "nats_per_token") - nats).abs() < 1e-4, "{json} {nats}");
    assert!((value(&json, "perplexity") / nats.exp() - 1.0).abs() < 1e-4, "{json}");
    assert_eq!(json["scores"][0]["samples"], 46);
    assert_eq!((&json["data"], &json["activations"]), (&json!([text.to_str().unwrap()]), &json!("stored")));

    let samples = |options: &[&str]| {
        let task = args!["--task", "perplexity", "--data", text, "--json"];
        let options = options.iter().map(OsString::from);
        tersor(args!["eval", model.path()].into_iter().chain(task).chain(options)).json()["scores"][0]["samples"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(samples(&["--context", "24", "--stride", "12"]), 47);
    assert_eq!(samples(&["--context", "24", "--bos"]), 48);
    assert_eq!(samples(&["--context", "24", "--max-tokens", "30"]), 28);
    assert_eq!(samples(&["--context", "64"]), 47);
}

#[test]
fn a_compressed_model_is_held_against_its_source() {
    let (ids, _) = golden();
    let model = network("llama", 64);
    let text = model.put("text", words(ids));
    let agreement = |output: &PathBuf, activations: &str| {
        let task =
            args!["--task", "agreement", "--data", text, "--context", "24", "--activations", activations];
        let eval = args!["eval", output, "--reference", model.path(), "--json"];
        tersor(eval.iter().chain(&task)).json()
    };
    let same = agreement(&model.path().to_path_buf(), "float");
    assert_eq!((value(&same, "kl"), value(&same, "top1_agreement")), (0.0, 100.0));
    let kl = |preset: &str, activations: &str| {
        let (_work, output, _) = compressed(model.path(), &["--preset", preset, "--group-size", "8"]);
        let json = agreement(&output, activations);
        assert_eq!(json["activations"], activations);
        value(&json, "kl")
    };
    let [int8, int4, int2] = ["int8", "int4", "int2"].map(|preset| kl(preset, "float"));
    assert!(0.0 < int8 && int8 < int4 && int4 < int2, "{int8} {int4} {int2}");
    // rounding activations too changes more
    assert_ne!(kl("int8", "int8"), int8);
}

#[test]
fn texts_that_go_on_together_are_timed_dense_and_compressed() {
    let model = network("llama", 64);
    let (_work, output, _) = compressed(model.path(), &["--preset", "int8"]);
    for model in [model.path(), &output] {
        for (batch, task, weights) in [
            ("1", "generation (9 tokens after 4)", "mapped"),
            ("3", "generation (3 × 9 tokens after 4)", "packed"),
        ] {
            let timed =
                args!["--task", "generation", "--batch", batch, "--context", "4", "--length", "9", "--json"];
            let json = tersor(args!["eval", model].iter().chain(&timed)).json();
            assert_eq!((&json["scores"][0]["task"], &json["plain_weights"]), (&json!(task), &json!(weights)));
            assert!(
                value(&json, "tokens_per_second") > 0.0 && value(&json, "prefill_tokens_per_second") > 0.0
            );
        }
    }
}

#[test]
fn sentences_are_compared() {
    let model = network("bert", 72);
    let pair = |score: f64, a: &str, b: &str| format!("g\tf\ty\t0\t{score}\t{a}\t{b}\n");
    let same = "5 9 60 3 7";
    let pairs = [
        pair(5.0, same, same),
        pair(2.0, same, "5 9 60 3 8"),
        pair(1.0, same, "44 2 31"),
        pair(0.0, "1 2", "70 60 50 40 30 20"),
        pair(3.0, "6", "6 6"),
    ];
    let data = model.put("sts.csv", pairs.concat());
    let task = args!["--task", "sts,latency", "--data", data, "--batch", "2", "--length", "8", "--json"];
    let json = tersor(args!["eval", model.path()].iter().chain(&task)).json();
    let metrics: Vec<_> =
        json["scores"].as_array().unwrap().iter().map(|s| s["metric"].as_str().unwrap()).collect();
    let expected = ["spearman", "pearson", "latency_p50", "latency_p95", "samples_per_second"];
    assert_eq!(metrics[..5], expected);
    assert_eq!(json["scores"][0]["samples"], 5);
    // cut to one token, the first two pairs and the last are of equal sentences: cosine 1
    let cut = args!["--task", "sts", "--data", data, "--max-tokens", "1", "--json"];
    let json = tersor(args!["eval", model.path()].iter().chain(&cut)).json();
    assert!(value(&json, "spearman") > 0.5, "{json}");
}

#[test]
fn wrong_data_is_refused() {
    let model = network("llama", 65);
    let path = model.path().to_str().unwrap();
    let refused = |text: &[u8], options: &[&str], parts: &[&str]| {
        let text = model.put("text", text);
        let task = args!["--task", "perplexity", "--data", text, "--quiet"];
        let options = options.iter().map(OsString::from);
        let line = tersor(args!["eval", model.path()].into_iter().chain(task).chain(options)).error(1);
        assert_contains(&line, parts);
    };
    let text = model.path().join("text");
    let text = text.to_str().unwrap();
    let short = ["--context", "8"];
    refused(b"", &short, &[text, "holds no text"]);
    refused(b"  \n", &short, &["a text of 0 tokens has 0 to score"]);
    refused(b"1 2 \xff 3", &short, &[text, "is not UTF-8 at byte 4"]);
    refused(
        b"1 2 3 64 5",
        &short,
        &["token id 64 at position 3", "vocabulary of 64", "tokenizer and model do not fit"],
    );
    refused(b"1 2 3", &["--context", "1"], &["a context of 1"]);
    refused(b"1 2 3", &[], &["a context of 512 tokens is more than the 64 tokens"]);
    refused(
        b"1 2 3",
        &["--context", "65", "--bos"],
        &["a context of 65 tokens and the token in front of it"],
    );
    refused(b"1 2 3", &["--context", "8", "--stride", "0"], &["a stride of 0", "1 to 8"]);
    refused(b"1 2 3", &["--context", "8", "--stride", "9"], &["a stride of 9", "1 to 8"]);
    refused(b"1 2 3", &["--context", "8", "--max-tokens", "0"], &["a text of 0 tokens"]);

    let eval = |task: &[OsString]| tersor(args!["eval", model.path()].iter().chain(task)).error(1);
    let line = eval(&args!["--task", "latency", "--length", "65"]);
    assert_contains(&line, &["a sequence of 65 tokens", "1 to 64"]);
    assert_contains(&eval(&args!["--task", "latency", "--batch", "2"]), &["one sequence at a time"]);
    let line = eval(&args!["--task", "sts", "--data", model.put("pairs", "a\tb\n")]);
    assert_contains(&line, &["pairs: line 1: has 2 fields"]);
    let pairs = model.put("pairs", "g\tf\ty\t0\t5\t1\t2\n".repeat(4));
    assert_contains(&eval(&args!["--task", "sts", "--data", pairs]), &["`llama` is no sentence encoder"]);
    let reference = network("bert", 72);
    let task = args!["--task", "agreement", "--data", pairs, "--reference", reference.path()];
    assert_contains(&eval(&task), &["`bert` is no language model"]);

    fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    refused(b"1 2 3", &short, &[path, "tokenizer.json", "copy it there"]);
    model.put("tokenizer.json", "{}");
    refused(b"1 2 3", &short, &[path, "tokenizer.json: is no tokenizer"]);
}

/// As clap does for options that it knows to conflict.
#[test]
fn options_that_do_not_belong_to_the_task_are_refused() {
    let model = network("llama", 64);
    for (command, options, parts) in [
        ("eval", "--task perplexity", "'perplexity' needs '--data'"),
        ("eval", "--task agreement --data t", "'agreement' needs '--reference'"),
        ("eval", "--task sts", "'sts' needs '--data'"),
        ("eval", "--task classify --images i", "'classify' needs '--labels'"),
        (
            "eval",
            "--task perplexity --data t --batch 2",
            "'--batch' cannot be used with the task 'perplexity'",
        ),
        ("eval", "--task perplexity --data t --reference r", "'--reference' cannot be used"),
        ("eval", "--task latency --data t", "'--data' cannot be used with the task 'latency'"),
        (
            "eval",
            "--task latency,sts --data t --bos",
            "'--bos' cannot be used with the task 'latency', 'sts'",
        ),
        (
            "eval",
            "--task latency,generation --batch 2",
            "'--batch' cannot be used with the tasks 'generation' and 'latency' together",
        ),
        ("eval", "--task sts --data t --context 8", "'--context' cannot be used"),
        ("eval", "--task classify --images i --labels l --stride 8", "'--stride' cannot be used"),
        ("eval", "--task classify --images i --labels l --max-tokens 8", "'--max-tokens' cannot be used"),
        ("eval", "--task perplexity --data t --length 8", "'--length' cannot be used"),
        ("eval", "--task perplexity --data t --labels l", "'--labels' cannot be used"),
        ("eval", "--task perplexity --data t --activations int4", "int4"),
        ("eval", "--task guess", "guess"),
        ("compare", "model --data t", "'--data' belongs to a task, and none is given"),
        ("compare", "model --activations int8", "--task"),
        ("compare", "model --task agreement --data t --reference r", "the reference is the source"),
        ("compare", "model --task agreement", "'agreement' needs '--data'"),
    ] {
        let options = options.split(' ').map(OsString::from);
        let ran = tersor(args![command, model.path()].into_iter().chain(options));
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
        assert_contains(&ran.stderr, &["error: ", parts, "--help"]);
    }
}
