//! Transformers against what the transformers package computes: tiny random models of every kind.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::Folder;
use ndarray::{Array2, ArrayView2, s};
use serde_json::json;
use tersor::{
    Checkpoint, Decoder, Encoder, Execution, GenerateOptions, LanguageModel, Network, PlainWeights,
    SentenceEncoder,
};

const DECODERS: [&str; 12] = [
    "llama",
    "llama-bf16",
    "llama-bias",
    "llama-dynamic",
    "llama-linear",
    "llama-llama3",
    "llama-old",
    "llama-yarn",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen3",
];

const ENCODERS: [&str; 2] = ["bert", "bert-gelu-new"];

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden/transformers").join(case)
}

/// What the reference computed.
struct Golden(Checkpoint);

impl Golden {
    fn of(case: &str) -> Self {
        Self(Checkpoint::open(folder(case).join("golden.safetensors")).unwrap())
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        self.0.entry(name).unwrap().shape.clone()
    }

    fn ids(&self, name: &str) -> Vec<Vec<u32>> {
        let bytes = self.0.tensor(name).unwrap().bytes;
        let ids: Vec<u32> = bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
        ids.chunks(*self.shape(name).last().unwrap()).map(<[u32]>::to_vec).collect()
    }

    /// One row per position, those of all but the last two dimensions one after the other.
    fn floats(&self, name: &str) -> Array2<f32> {
        let values = self.0.dense(name).unwrap();
        let cols = *self.shape(name).last().unwrap();
        Array2::from_shape_vec((values.len() / cols, cols), values).unwrap()
    }
}

/// The hidden states of a classifier's inner model have the prefix `bert.`; the first two of its inputs are pairs.
#[test]
fn an_encoder_within_a_classifier_is_found() {
    let golden = Golden::of("bert-classifier");
    let model =
        Encoder::open(&Checkpoint::open(folder("bert-classifier")).unwrap(), Execution::default()).unwrap();
    let sentences = sentences(&golden);
    let embeddings = model.embed(&[&sentences[2], &sentences[3]]).unwrap();
    assert_close(embeddings.view(), golden.floats("mean").slice(s![2.., ..]), BOUND, "bert-classifier");
}

fn assert_close(actual: ArrayView2<'_, f32>, expected: ArrayView2<'_, f32>, bound: f32, what: &str) {
    assert_eq!(actual.dim(), expected.dim(), "{what}");
    for ((at, a), e) in actual.indexed_iter().zip(&expected) {
        assert!((a - e).abs() <= bound * (1.0 + e.abs()), "{what} at {at:?}: {a}, not {e}");
    }
}

fn open(path: &Path) -> Decoder {
    Decoder::open(&Checkpoint::open(path).unwrap(), Execution::default()).unwrap()
}

/// The relative difference that sums in another order explain in networks so small.
const BOUND: f32 = 2e-5;

#[test]
fn decoders_give_the_logits_of_the_reference() {
    for case in DECODERS {
        let golden = Golden::of(case);
        let model = open(&folder(case));
        let expected = golden.floats("logits");
        let mut compared = 0;
        for (number, ids) in golden.ids("input_ids").iter().enumerate() {
            // a dynamic scaling changes what is longer than the model's limit, and that is refused
            let len = ids.len().min(model.max_tokens());
            let logits = model.logits(&ids[..len]).unwrap();
            if len == ids.len() {
                let from = number * ids.len();
                assert_close(logits.view(), expected.slice(s![from..from + len, ..]), BOUND, case);
                compared += 1;
            }
        }
        assert_eq!(compared, if case == "llama-dynamic" { 0 } else { 2 }, "{case}");
    }
}

#[test]
fn plain_weights_arranged_before_give_the_logits_and_embeddings_of_the_reference() {
    let execution = Execution { plain_weights: PlainWeights::Packed, ..Execution::default() };
    for case in ["llama", "llama-bf16", "llama-bias", "qwen2"] {
        let golden = Golden::of(case);
        let checkpoint = Checkpoint::open(folder(case)).unwrap();
        let model = Network::open(&checkpoint, execution).unwrap();
        // seven layers of two blocks, and the head
        assert_eq!(model.packed_layers().len(), 15, "{case}");
        assert!(Network::open(&checkpoint, Execution::default()).unwrap().packed_layers().is_empty());
        let expected = golden.floats("logits");
        let ids = &golden.ids("input_ids")[0];
        let logits = model.decoder().unwrap().logits(ids).unwrap();
        assert_close(logits.view(), expected.slice(s![..ids.len(), ..]), BOUND, case);
    }
    for case in ENCODERS {
        let golden = Golden::of(case);
        let model = Encoder::open(&Checkpoint::open(folder(case)).unwrap(), execution).unwrap();
        let sentences = sentences(&golden);
        let embeddings = model.embed(&sentences.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        assert_close(embeddings.view(), golden.floats("mean").view(), BOUND, case);
    }
}

#[test]
fn block_by_block_gives_the_hidden_states_of_the_reference() {
    for case in DECODERS.into_iter().filter(|case| *case != "llama-dynamic") {
        let golden = Golden::of(case);
        let model = open(&folder(case));
        let ids = &golden.ids("input_ids")[0];
        let expected = golden.floats("hidden");
        let mut hidden = model.embed(ids).unwrap();
        for block in 0..=model.blocks() {
            if block > 0 {
                model.run_block(block - 1, &mut hidden, None).unwrap();
            }
            let rows = s![block * ids.len()..(block + 1) * ids.len(), ..];
            assert_close(hidden.view(), expected.slice(rows), BOUND, &format!("{case}, block {block}"));
        }
        let logits = model.head(hidden.view(), None).unwrap();
        assert_eq!(logits, model.logits(ids).unwrap(), "{case}");
    }
}

#[test]
fn generation_from_a_cache_gives_the_tokens_of_the_reference() {
    for case in DECODERS {
        let golden = Golden::of(case);
        let model = open(&folder(case));
        let prompt = &golden.ids("prompt")[0];
        let expected = &golden.ids("greedy")[0];
        let mut tokens = Vec::new();
        let options = GenerateOptions { max_new_tokens: expected.len(), ..GenerateOptions::default() };
        let mut each = |token| {
            tokens.push(token);
            ControlFlow::Continue(())
        };
        model.generate(prompt, &options, &mut each).unwrap();
        let until = expected.len().min(model.max_tokens() - prompt.len() + 1);
        assert_eq!(tokens, expected[..until], "{case}");

        let logits = golden.floats("greedy_logits");
        let mut cache = model.cache();
        let mut last = model.extend(&mut cache, prompt).unwrap();
        for (step, token) in expected[..until - 1].iter().enumerate() {
            let row = Array2::from_shape_vec((1, last.len()), last).unwrap();
            assert_close(row.view(), logits.slice(s![step..=step, ..]), BOUND, case);
            last = model.extend(&mut cache, &[*token]).unwrap();
        }
        assert_eq!(cache.len(), prompt.len() + until - 1, "{case}");
    }
}

/// `config.json` as transformers 4 wrote it says the same.
#[test]
fn older_configurations_say_the_same() {
    let mut compared = 0;
    for case in DECODERS {
        let Ok(old) = fs::read(folder(case).join("config-old.json")) else { continue };
        let copy = Folder::new();
        copy.put("config.json", old);
        copy.put("model.safetensors", fs::read(folder(case).join("model.safetensors")).unwrap());
        let ids = &Golden::of(case).ids("input_ids")[0];
        let (new, old) = (open(&folder(case)), open(copy.path()));
        let ids = &ids[..ids.len().min(new.max_tokens())];
        assert_eq!(new.logits(ids).unwrap(), old.logits(ids).unwrap(), "{case}");
        compared += 1;
    }
    assert!(compared >= 10, "{compared}");
}

/// The sentences of a batch, without their padding.
fn sentences(golden: &Golden) -> Vec<Vec<u32>> {
    let lengths = golden.ids("attention_mask").into_iter().map(|mask| mask.iter().sum::<u32>() as usize);
    golden.ids("input_ids").into_iter().zip(lengths).map(|(ids, len)| ids[..len].to_vec()).collect()
}

#[test]
fn encoders_give_the_embeddings_of_the_reference() {
    for case in ENCODERS {
        let golden = Golden::of(case);
        let sentences = sentences(&golden);
        let sentences: Vec<&[u32]> = sentences.iter().map(Vec::as_slice).collect();
        let modules = json!([
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ]);
        let modules = modules.as_array().unwrap();
        for (pooling, normalize, expected) in [
            (
                json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}),
                true,
                "mean_normalized",
            ),
            (json!({"pooling_mode_mean_tokens": true}), false, "mean"),
            (json!({"pooling_mode": "cls"}), true, "cls_normalized"),
            (json!({"pooling_mode_cls_token": true}), false, "cls"),
        ] {
            let copy = Folder::new();
            for file in ["config.json", "model.safetensors"] {
                copy.put(file, fs::read(folder(case).join(file)).unwrap());
            }
            let modules = &modules[..if normalize { 3 } else { 2 }];
            copy.put("modules.json", serde_json::to_vec(modules).unwrap());
            fs::create_dir(copy.path().join("1_Pooling")).unwrap();
            copy.put("1_Pooling/config.json", serde_json::to_vec(&pooling).unwrap());
            let model = Encoder::open(&copy.open().unwrap(), Execution::default()).unwrap();
            let embeddings = model.embed(&sentences).unwrap();
            assert_close(
                embeddings.view(),
                golden.floats(expected).view(),
                BOUND,
                &format!("{case}, {expected}"),
            );
        }
        // nothing beside the model: averaged, as sentence-transformers does
        let model = Encoder::open(&Checkpoint::open(folder(case)).unwrap(), Execution::default()).unwrap();
        let embeddings = model.embed(&sentences).unwrap();
        assert_close(embeddings.view(), golden.floats("mean").view(), BOUND, case);

        let expected = golden.floats("hidden");
        let mut hidden = model.embed_tokens(&sentences[..1]).unwrap();
        let rows = hidden.nrows();
        for block in 0..=model.blocks() {
            if block > 0 {
                model.run_block(block - 1, &mut hidden, &[rows], None).unwrap();
            }
            let expected = expected.slice(s![block * rows..(block + 1) * rows, ..]);
            assert_close(hidden.view(), expected, BOUND, &format!("{case}, block {block}"));
        }
    }
}
