//! What lies beside a model: modules of sentence-transformers, and tokenizers.

use std::fs;

use serde_json::{Value, json};
use tersor::{Encoder, Execution, ModelError, SentenceEncoder, Tokenizer, one_line};

use crate::common::Folder;
use crate::model::{Model, assert_error};

const SENTENCES: [&[u32]; 3] = [&[5, 9, 60], &[3], &[70, 8]];

/// Modules of these types, all in the folder `1_Pooling`.
fn modules(kinds: &[&str]) -> Value {
    let module =
        |kind: &&str| json!({"path": "1_Pooling", "type": format!("sentence_transformers.models.{kind}")});
    kinds.iter().map(module).collect()
}

/// The tiny BERT with these files beside it; their folder is made.
fn bert(files: &[(&str, &str)]) -> Folder {
    let folder = Model::of("bert").folder();
    fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    for (name, text) in files {
        folder.put(name, text);
    }
    folder
}

fn encoder(folder: &Folder) -> Result<Encoder, ModelError> {
    Encoder::open(&folder.open().unwrap(), Execution::default())
}

fn refused(files: &[(&str, &str)], parts: &[&str]) {
    let folder = bert(files);
    let error = encoder(&folder).err().unwrap_or_else(|| panic!("not refused: {files:?}"));
    let line = one_line(&error);
    let path = folder.path().display().to_string();
    for part in parts.iter().copied().chain([path.as_str()]) {
        assert!(line.contains(part), "no `{part}` in: {line}");
    }
}

#[test]
fn modules_that_are_not_run_are_refused() {
    for kinds in [&["Transformer", "Pooling", "Dense"][..], &["Dense"], &["Transformer", "CLIPModel"]] {
        let modules = modules(kinds).to_string();
        let files =
            [("modules.json", modules.as_str()), ("1_Pooling/config.json", r#"{"pooling_mode": "mean"}"#)];
        refused(&files, &["modules.json", kinds.last().unwrap(), "Transformer, Pooling, Normalize"]);
    }
    refused(&[("modules.json", "{}")], &["modules.json", "no list of modules"]);
    refused(&[("modules.json", "[5]")], &["modules.json", "without `type` and `path`"]);
    refused(&[("modules.json", r#"[{"type": "Pooling"}]"#)], &["modules.json", "without `type` and `path`"]);
    refused(
        &[("modules.json", r#"[{"type": 5, "path": ""}]"#)],
        &["modules.json", "without `type` and `path`"],
    );
    refused(&[("modules.json", "[")], &["modules.json"]);
    refused(&[("modules.json", "")], &["modules.json"]);
    refused(&[("modules.json", &"[".repeat(1 << 20))], &["modules.json", "recursion"]);
}

#[test]
fn pooling_that_is_not_understood_is_refused() {
    let modules = modules(&["Transformer", "Pooling"]).to_string();
    let config = |text: &str, parts: &[&str]| {
        let files = [("modules.json", modules.as_str()), ("1_Pooling/config.json", text)];
        refused(&files, &[&["1_Pooling", "config.json"], parts].concat());
    };
    config("", &[]);
    config("{", &[]);
    config("[]", &["names no way of pooling"]);
    config("{}", &["names no way of pooling"]);
    config(r#"{"pooling_mode_cls_token": false}"#, &["names no way of pooling"]);
    // not a flag
    config(r#"{"pooling_mode_cls_token": "true"}"#, &["names no way of pooling"]);
    config(r#"{"pooling_mode_weightedmean_tokens": true}"#, &["`pooling_mode_weightedmean_tokens`"]);
    config(r#"{"pooling_mode": "lasttoken"}"#, &["`lasttoken`"]);
    config(
        r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#,
        &["`pooling_mode_cls_token` and `pooling_mode_mean_tokens`"],
    );
    refused(&[("modules.json", &modules)], &["1_Pooling", "is missing, though modules.json names it"]);
    // a folder where a file should be
    let folder = bert(&[("modules.json", &modules)]);
    fs::create_dir(folder.path().join("1_Pooling/config.json")).unwrap();
    assert_error(encoder(&folder), &["1_Pooling", "cannot read"]);
}

#[test]
fn the_length_that_sentences_are_cut_to_is_a_number() {
    for value in ["0", "-1", "1.5", "\"256\"", "[]"] {
        let text = format!(r#"{{"max_seq_length": {value}}}"#);
        let says = format!("`max_seq_length` is {value}");
        refused(&[("sentence_bert_config.json", &text)], &["sentence_bert_config.json", &says]);
    }
    for (value, tokens) in [("7", 7), ("24", 24), ("25", 24), ("18446744073709551615", 24), ("null", 24)] {
        let text = format!(r#"{{"max_seq_length": {value}}}"#);
        let model = encoder(&bert(&[("sentence_bert_config.json", &text)])).unwrap();
        assert_eq!(model.max_tokens(), tokens, "{value}");
        let says = format!("sentence 1 has {} tokens, more than the {tokens}", tokens + 1);
        assert_error(model.embed(&[&vec![3; tokens + 1]]), &[&says]);
    }
}

/// The ways of pooling that have no golden, from hidden states that have one.
#[test]
fn pooling_is_what_its_name_says() {
    let modules = |normalize: bool| {
        let kinds = ["Transformer", "Pooling", "Normalize"];
        modules(&kinds[..if normalize { 3 } else { 2 }]).to_string()
    };
    let embed = |normalize, config: &str| {
        let folder = bert(&[("modules.json", &modules(normalize)), ("1_Pooling/config.json", config)]);
        let model = encoder(&folder).unwrap();
        (model.forward(&SENTENCES, None).unwrap(), model.embed(&SENTENCES).unwrap())
    };
    for (config, of) in [
        (
            r#"{"pooling_mode_max_tokens": true}"#,
            (|values| values.iter().copied().fold(f64::MIN, f64::max)) as fn(&[f64]) -> f64,
        ),
        (r#"{"pooling_mode": "max"}"#, |values| values.iter().copied().fold(f64::MIN, f64::max)),
        (r#"{"pooling_mode_mean_sqrt_len_tokens": true}"#, |values| {
            values.iter().sum::<f64>() / (values.len() as f64).sqrt()
        }),
        (r#"{"pooling_mode": "mean_sqrt_len_tokens"}"#, |values| {
            values.iter().sum::<f64>() / (values.len() as f64).sqrt()
        }),
    ] {
        for normalize in [false, true] {
            let (hidden, embeddings) = embed(normalize, config);
            let mut first = 0;
            for (sentence, embedding) in SENTENCES.iter().zip(embeddings.rows()) {
                let rows = hidden.slice(ndarray::s![first..first + sentence.len(), ..]);
                first += sentence.len();
                let column = |column: ndarray::ArrayView1<'_, f32>| {
                    of(&column.iter().map(|x| f64::from(*x)).collect::<Vec<_>>())
                };
                let mut expected: Vec<f64> = rows.columns().into_iter().map(column).collect();
                if normalize {
                    let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
                    for x in &mut expected {
                        *x /= norm;
                    }
                }
                for (a, b) in embedding.iter().zip(expected) {
                    assert!((f64::from(*a) - b).abs() < 1e-6 * (1.0 + b.abs()), "{config}: {a} {b}");
                }
            }
        }
    }
}

#[test]
fn without_a_tokenizer_one_is_asked_for() {
    let folder = Model::of("llama").folder();
    let path = folder.path().join("tokenizer.json").display().to_string();
    assert_error(Tokenizer::of(&folder.open().unwrap()), &[&path, "copy it there"]);
    folder.put("tokenizer.json", "{}");
    assert_error(Tokenizer::of(&folder.open().unwrap()), &[&path, "is no tokenizer"]);
}
