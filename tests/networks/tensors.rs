//! Tensors that are missing, misshapen, of another type, or hold NaN.

use serde_json::json;
use tersor::evaluate::{Perplexity, SentencePair, Similarity};
use tersor::{DType, GenerateOptions, Network, Task, Windows};

use crate::model::{Model, assert_error};

const CASES: [&str; 5] = ["llama", "llama-bias", "qwen2", "qwen3", "bert"];

/// Whether the network needs a tensor of this name.
fn is_needed(name: &str) -> bool {
    !name.starts_with("pooler.")
}

fn names(case: &str) -> Vec<String> {
    let names: Vec<_> = Model::of(case).tensors.iter().map(|tensor| tensor.name.clone()).collect();
    assert!(names.len() > 20, "{names:?}");
    names
}

#[test]
fn every_missing_tensor_is_named() {
    let mut spared = Vec::new();
    for case in CASES {
        for name in names(case) {
            let mut model = Model::of(case);
            model.tensors.retain(|tensor| tensor.name != name);
            if is_needed(&name) {
                model.refused(&[&format!("`{name}`")]);
            } else {
                model.open();
                spared.push(name);
            }
        }
    }
    assert_eq!(spared, ["pooler.dense.bias", "pooler.dense.weight"]);
}

#[test]
fn every_misshapen_tensor_is_named_with_both_shapes() {
    for case in CASES {
        for name in names(case).into_iter().filter(|name| is_needed(name)) {
            let expected = Model::of(case).tensor(&name).shape.clone();
            let mut shapes = vec![[&[1], expected.as_slice()].concat(), expected.clone()];
            shapes[1][0] += 1;
            if let [rows, cols] = expected[..]
                && rows != cols
            {
                shapes.push(vec![cols, rows]);
            }
            for shape in shapes {
                let mut model = Model::of(case);
                let tensor = model.tensor(&name);
                tensor.bytes.resize(shape.iter().product::<usize>() * 4, 0);
                tensor.shape.clone_from(&shape);
                model.refused(&[&name, &format!("{shape:?}"), &format!("{expected:?}")]);
            }
        }
    }
}

#[test]
fn every_tensor_of_integers_is_named() {
    for case in CASES {
        for name in names(case).into_iter().filter(|name| is_needed(name)) {
            for dtype in [DType::I32, DType::U32] {
                let mut model = Model::of(case);
                model.tensor(&name).dtype = dtype;
                model.refused(&[&name, &format!("{dtype:?}")]);
            }
        }
    }
}

/// `f64` is a float, too, though nothing is mapped then.
#[test]
fn wide_floats_give_the_same_logits() {
    for case in ["llama", "qwen3"] {
        let mut model = Model::of(case);
        let expected = model.open().language_model().unwrap().logits(&[5, 9, 60]).unwrap();
        for tensor in &mut model.tensors {
            let values = tensor.bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b)));
            tensor.bytes = values.flat_map(f64::to_le_bytes).collect();
            tensor.dtype = DType::F64;
        }
        let logits = model.open().language_model().unwrap().logits(&[5, 9, 60]).unwrap();
        for (a, b) in logits.iter().zip(&expected) {
            assert!((a - b).abs() <= 2e-5 * (1.0 + b.abs()), "{case}: {a} {b}");
        }
    }
}

/// Sets the first value of a tensor.
fn spoiled(case: &str, name: &str, value: f32) -> Model {
    let mut model = Model::of(case);
    model.tensor(name).bytes[..4].copy_from_slice(&value.to_le_bytes());
    model
}

#[test]
fn every_weight_that_is_no_number_is_told_by_a_decoders_tasks() {
    for case in CASES.into_iter().filter(|case| *case != "bert") {
        for name in names(case) {
            for value in [f32::NAN, f32::INFINITY] {
                let network = spoiled(case, &name, value).open();
                let text = Perplexity { texts: vec![vec![0, 7, 0, 9]], windows: Windows::of(4) };
                let score = text.score(&network);
                let Err(error) = score else { panic!("{case}, {value} in {name}: {score:?}") };
                let line = error.to_string();
                let says =
                    ["NaN", "inf", "-inf"].iter().any(|x| line.contains(&format!("the network gives {x} ")));
                assert!(says && line.contains("token"), "{case}, {name}: {line}");

                let Network::Decoder(decoder) = &network else { panic!("{case}") };
                let options = GenerateOptions { max_new_tokens: 4, ..GenerateOptions::default() };
                let made =
                    decoder.generate(&[0, 7], &options, &mut |token| panic!("{case}, {name}: {token}"));
                assert_error(made, &["the network gives ", "for sample 2, class "]);
            }
        }
    }
}

#[test]
fn every_weight_that_is_no_number_is_told_by_an_encoders_task() {
    let pair =
        |a: &[u32], b: &[u32], similarity| SentencePair { tokens: [a.to_vec(), b.to_vec()], similarity };
    let pairs = vec![
        pair(&[0, 5], &[0, 6], 1.0),
        pair(&[7, 0], &[1, 2, 0], 2.0),
        pair(&[0], &[0, 9], 3.0),
        pair(&[0, 3], &[4, 0], 4.0),
    ];
    for name in names("bert").into_iter().filter(|name| is_needed(name)) {
        let network = spoiled("bert", &name, f32::NAN).open();
        let score = Similarity { pairs: pairs.clone() }.score(&network);
        assert!(score.is_err(), "{name}: {score:?}");
        assert_error(score, &["the network gives NaN", "of the embedding of sentence ", " of pair "]);
    }
    assert!(Similarity { pairs }.score(&Model::of("bert").open()).is_ok());
}

/// What a network is told to share it takes from there.
#[test]
fn a_head_of_its_own_is_used_only_if_it_is_not_tied() {
    let untied = Model::of("llama");
    let tied = Model::with("llama", json!({"tie_word_embeddings": true}));
    let mut copied = Model::of("llama");
    let embeddings = copied.tensor("model.embed_tokens.weight").bytes.clone();
    copied.tensor("lm_head.weight").bytes = embeddings;
    let logits = |model: &Model| model.open().language_model().unwrap().logits(&[5, 9, 60]).unwrap();
    assert_eq!(logits(&tied), logits(&copied));
    assert_ne!(logits(&tied), logits(&untied));
}
