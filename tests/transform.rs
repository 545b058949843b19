//! Transforms that keep a network's function: the transformed tiny models against the originals, and the transformed tensors
//! against products with whole matrices.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Folder, f32s, safetensors, stored};
use serde_json::{Value, json};
use tersor::kernels::hadamard::Hadamard;
use tersor::transform::{
    Fold, Producer, Rotation, RotationOptions, SharedScales, TransformError, Weights, folds,
};
use tersor::{Checkpoint, DType, Decoder, Encoder, Execution, LanguageModel, SentenceEncoder, one_line};

/// Biases everywhere, tied and own heads, shared heads of keys and values, normalized queries and keys, windows.
const DECODERS: [&str; 11] = [
    "llama",
    "llama-bf16",
    "llama-bias",
    "llama-linear",
    "llama-llama3",
    "llama-old",
    "llama-yarn",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen3",
];

type Tensors = BTreeMap<String, Vec<f32>>;

fn original(case: &str) -> Checkpoint {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden/transformers");
    Checkpoint::open(root.join(case)).unwrap()
}

fn tensors(checkpoint: &Checkpoint) -> Tensors {
    let entries = checkpoint.entries().iter();
    entries.map(|entry| (entry.name.clone(), checkpoint.dense(&entry.name).unwrap())).collect()
}

fn shapes(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<usize>> {
    checkpoint.entries().iter().map(|entry| (entry.name.clone(), entry.shape.clone())).collect()
}

fn write(tensors: &Tensors, shapes: &BTreeMap<String, Vec<usize>>, config: &Value) -> Folder {
    let stored: Vec<_> =
        tensors.iter().map(|(name, values)| stored(name, DType::F32, &shapes[name], f32s(values))).collect();
    let folder = Folder::new();
    folder.put("model.safetensors", safetensors(&stored, &BTreeMap::new()));
    folder.put("config.json", config.to_string());
    folder
}

fn rotate(rotation: &Rotation, checkpoint: &Checkpoint) -> Result<Tensors, TransformError> {
    let names = checkpoint.entries().iter().map(|entry| entry.name.as_str());
    let added = rotation.added().iter().map(|added| added.name.as_str());
    let mut rotated = Tensors::new();
    for name in names.chain(added) {
        let values = rotation.tensor(name, |name| Ok::<_, TransformError>(checkpoint.dense(name)?))?;
        assert_eq!(values.is_some(), rotation.changes(name), "{name}");
        rotated.insert(name.to_owned(), values.map_or_else(|| checkpoint.dense(name), Ok)?);
    }
    Ok(rotated)
}

fn rotated(case: &str, options: RotationOptions) -> Folder {
    let checkpoint = original(case);
    let rotation = Rotation::new(&checkpoint, options).unwrap();
    let mut shapes = shapes(&checkpoint);
    shapes.extend(rotation.added().iter().map(|added| (added.name.clone(), added.shape.clone())));
    let mut config = checkpoint.config().unwrap().clone();
    for (key, value) in rotation.config() {
        config[key] = value.clone();
    }
    write(&rotate(&rotation, &checkpoint).unwrap(), &shapes, &config)
}

fn logits(checkpoint: &Checkpoint) -> Vec<f32> {
    let model = Decoder::open(checkpoint, Execution::default()).unwrap();
    let ids: Vec<u32> = (0..24).map(|i| (i * 29 + 3) % model.vocab_size() as u32).collect();
    model.logits(&ids[..ids.len().min(model.max_tokens())]).unwrap().into_raw_vec_and_offset().0
}

fn assert_same_function(actual: &[f32], expected: &[f32], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let difference = actual.iter().zip(expected).fold(0.0f32, |max, (a, e)| max.max((a - e).abs()));
    assert!(difference <= 1e-5 * largest, "{what}: {difference} of {largest}");
    assert_ne!(actual, expected, "{what}: nothing was transformed");
}

fn head_dim(case: &str) -> usize {
    let checkpoint = original(case);
    let entry = |name: &str| checkpoint.entries().iter().find(|e| e.name.ends_with(name)).unwrap().shape[1];
    let heads = checkpoint.config().unwrap()["num_attention_heads"].as_u64().unwrap();
    entry("0.self_attn.o_proj.weight") / heads as usize
}

#[test]
fn rotated_decoders_compute_the_same() {
    let mut with_values = 0;
    for case in DECODERS {
        let expected = logits(&original(case));
        // there is no Hadamard matrix of order 6
        let is_possible = head_dim(case).is_multiple_of(4);
        for values in [false, true] {
            let options = RotationOptions { seed: 7, values };
            if values && !is_possible {
                let error = Rotation::new(&original(case), options).unwrap_err();
                assert!(matches!(error, TransformError::Order { order: 6, .. }), "{error}");
                continue;
            }
            let folder = rotated(case, options);
            assert_same_function(&logits(&folder.open().unwrap()), &expected, case);
            with_values += usize::from(values);
        }
    }
    assert!(with_values >= 8, "{with_values}");
}

/// `[rows, inner]` by `[inner, cols]`, in `f64`.
fn product(a: &[f64], b: &[f64], inner: usize) -> Vec<f64> {
    let cols = b.len() / inner;
    let value = |row: &[f64], col: usize| row.iter().enumerate().map(|(k, a)| a * b[k * cols + col]).sum();
    a.chunks_exact(inner).flat_map(|row| (0..cols).map(move |col| value(row, col))).collect()
}

fn transposed(a: &[f64], cols: usize) -> Vec<f64> {
    (0..cols).flat_map(|col| a.iter().skip(col).step_by(cols).copied()).collect()
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// The rotation is recovered from what became of the embedding, and held against every other tensor.
#[test]
fn tensors_are_products_with_one_rotation() {
    for (case, n) in [("llama-bias", 32), ("qwen3", 24)] {
        let checkpoint = original(case);
        let old = tensors(&checkpoint);
        let rotation = Rotation::new(&checkpoint, RotationOptions { seed: 1, values: false }).unwrap();
        let new = rotate(&rotation, &checkpoint).unwrap();

        // E·diag(s)·H/√n, times Hᵀ/√n, is E·diag(s)
        let h: Vec<f64> =
            Hadamard::new(n).unwrap().matrix().iter().map(|x| f64::from(*x) / (n as f64).sqrt()).collect();
        let embedding = "model.embed_tokens.weight";
        let signed = product(&widened(&new[embedding]), &transposed(&h, n), n);
        let mut signs = vec![0.0; n];
        for (at, (signed, x)) in
            signed.iter().zip(&old[embedding]).enumerate().filter(|(_, (_, x))| x.abs() > 1e-3)
        {
            let ratio = signed / f64::from(*x);
            assert!((ratio.abs() - 1.0).abs() < 1e-3, "{case}: {ratio}");
            let sign = ratio.signum();
            assert!(signs[at % n] == 0.0 || signs[at % n] == sign, "{case}: column {}", at % n);
            signs[at % n] = sign;
        }
        assert!(signs.contains(&1.0) && signs.contains(&-1.0), "{case}: {signs:?}");
        let r: Vec<f64> = h.iter().enumerate().map(|(at, h)| h * signs[at / n]).collect();

        for (name, values) in &new {
            let source = old.get(name).unwrap_or(&old[embedding]);
            let layer = name.trim_start_matches("model.").split('.').rev().nth(1).unwrap();
            let norm = match layer {
                "q_proj" | "k_proj" | "v_proj" => {
                    Some(name.split("self_attn").next().unwrap().to_owned() + "input_layernorm.weight")
                }
                "gate_proj" | "up_proj" => {
                    Some(name.split("mlp").next().unwrap().to_owned() + "post_attention_layernorm.weight")
                }
                "lm_head" => Some("model.norm.weight".to_owned()),
                _ => None,
            };
            let is_bias = name.ends_with("_proj.bias");
            let mut w = widened(source);
            if let Some(norm) = norm.filter(|_| !is_bias) {
                let norm = &old[&norm];
                assert!(norm.iter().any(|x| (x - 1.0).abs() > 0.01), "{case}: {norm:?}");
                w.iter_mut().enumerate().for_each(|(at, w)| *w *= f64::from(norm[at % n]));
            }
            let expected = match layer {
                "o_proj" | "down_proj" if is_bias => product(&w, &r, n),
                "o_proj" | "down_proj" => product(&transposed(&r, n), &w, n),
                "norm" | "input_layernorm" | "post_attention_layernorm" => vec![1.0; n],
                "q_norm" | "k_norm" => w,
                _ if is_bias => w,
                _ => product(&w, &r, n),
            };
            assert_eq!(values.len(), expected.len(), "{case}: {name}");
            for (actual, expected) in values.iter().zip(&expected) {
                assert!(
                    (f64::from(*actual) - expected).abs() < 1e-6,
                    "{case}: {name}: {actual}, not {expected}"
                );
            }
        }
    }
}

#[test]
fn a_tied_head_gets_a_tensor_of_its_own() {
    let checkpoint = original("qwen2");
    let rotation = Rotation::new(&checkpoint, RotationOptions::default()).unwrap();
    let [added] = rotation.added() else { panic!("{:?}", rotation.added()) };
    assert_eq!((added.name.as_str(), added.like.as_str()), ("lm_head.weight", "model.embed_tokens.weight"));
    assert_eq!(added.shape, checkpoint.entry("model.embed_tokens.weight").unwrap().shape);
    assert_eq!(rotation.config(), [("tie_word_embeddings", json!(false))]);

    let own = Rotation::new(&original("llama"), RotationOptions::default()).unwrap();
    assert!(own.added().is_empty() && own.config().is_empty());

    // one that is there and not used is replaced
    let (mut tensors, mut shapes) = (tensors(&checkpoint), shapes(&checkpoint));
    let name = "lm_head.weight".to_owned();
    tensors.insert(name.clone(), vec![f32::NAN; added.shape.iter().product()]);
    shapes.insert(name.clone(), added.shape.clone());
    let folder = write(&tensors, &shapes, checkpoint.config().unwrap());
    let with_unused = folder.open().unwrap();
    let replaced = Rotation::new(&with_unused, RotationOptions::default()).unwrap();
    assert!(replaced.added().is_empty());
    let new = rotate(&replaced, &with_unused).unwrap();
    assert_eq!(new[&name], rotate(&rotation, &checkpoint).unwrap()[&name]);
}

#[test]
fn a_seed_is_a_rotation() {
    let checkpoint = original("llama");
    let of = |seed| {
        let rotation = Rotation::new(&checkpoint, RotationOptions { seed, values: true }).unwrap();
        rotate(&rotation, &checkpoint).unwrap()
    };
    assert_eq!(of(3), of(3));
    assert_ne!(of(3), of(4));
}

#[test]
fn what_cannot_be_rotated_is_refused() {
    let error = Rotation::new(&original("bert"), RotationOptions::default()).unwrap_err();
    assert!(matches!(error, TransformError::NotRotatable { .. }), "{error}");
    assert!(one_line(&error).starts_with("a network of model_type `bert` cannot be rotated"), "{error}");

    let checkpoint = original("llama");
    let (tensors, shapes, config) = (tensors(&checkpoint), shapes(&checkpoint), checkpoint.config().unwrap());
    let refused = |tensors: &Tensors, shapes: &BTreeMap<String, Vec<usize>>, config: &Value| {
        let folder = write(tensors, shapes, config);
        Rotation::new(&folder.open().unwrap(), RotationOptions::default()).unwrap_err()
    };
    let mut other = config.clone();
    other["hidden_size"] = json!(92);
    let error = one_line(&refused(&tensors, &shapes, &other));
    assert!(error.starts_with("`hidden_size` is 92, for which"), "{error}");
    other["model_type"] = json!("gpt_neox");
    let error = one_line(&refused(&tensors, &shapes, &other));
    assert!(error.contains("model_type `gpt_neox`"), "{error}");

    let (mut more, mut more_shapes) = (tensors.clone(), shapes.clone());
    more.insert("score.weight".into(), vec![0.0; 64]);
    more_shapes.insert("score.weight".into(), vec![2, 32]);
    let error = refused(&more, &more_shapes, config);
    assert!(matches!(&error, TransformError::Unknown { name } if name == "score.weight"), "{error}");

    let rotation = Rotation::new(&checkpoint, RotationOptions::default()).unwrap();
    let of =
        |values: Vec<f32>| rotation.tensor("model.norm.weight", |_| Ok::<_, TransformError>(values.clone()));
    assert_eq!(of(Vec::new()).unwrap(), Some(vec![1.0; 32]));
    let head = |len: usize, norm: f32| {
        rotation.tensor("lm_head.weight", |name| {
            let is_norm = name == "model.norm.weight";
            Ok::<_, TransformError>(if is_norm { vec![norm; 32] } else { vec![1.0; len] })
        })
    };
    let len = tensors["lm_head.weight"].len();
    assert!(head(len, 1.0).unwrap().is_some());
    let error = one_line(&head(len - 1, 1.0).unwrap_err());
    assert_eq!(error, format!("`lm_head.weight` has {} values, not {len}", len - 1));
    let error = one_line(&head(len, f32::NAN).unwrap_err());
    assert_eq!(error, "`model.norm.weight`: NaN at index 0");
    let error = one_line(&head(len, f32::MAX).unwrap_err());
    assert!(error.starts_with("`lm_head.weight`: inf at index") || error.contains("-inf"), "{error}");
}

/// Scales between 0.2 and 5, the same for channels that are one.
fn scales(fold: &Fold, by: SharedScales) -> Vec<f32> {
    let of = |channel: usize| 5f32.powf((channel * 37 % 21) as f32 / 10.0 - 1.0);
    let mut scales: Vec<f32> = (0..fold.channels).map(of).collect();
    fold.share(&mut scales, by).unwrap();
    scales
}

fn folded(case: &str) -> Folder {
    let checkpoint = original(case);
    let mut tensors = tensors(&checkpoint);
    for fold in folds(&checkpoint).unwrap() {
        let before = tensors.clone();
        fold.apply(&scales(&fold, SharedScales::Max), &mut tensors).unwrap();
        let changed = tensors.keys().filter(|name| tensors[*name] != before[*name]);
        let mut expected: Vec<&str> = fold.tensors().collect();
        expected.sort_unstable();
        assert_eq!(changed.collect::<Vec<_>>(), expected, "{case}");
    }
    write(&tensors, &shapes(&checkpoint), checkpoint.config().unwrap())
}

#[test]
fn folded_decoders_compute_the_same() {
    for case in DECODERS {
        let expected = logits(&original(case));
        assert_same_function(&logits(&folded(case).open().unwrap()), &expected, case);
    }
}

#[test]
fn folded_encoders_compute_the_same() {
    for case in ["bert", "bert-gelu-new"] {
        let embed = |checkpoint: &Checkpoint| {
            let model = Encoder::open(checkpoint, Execution::default()).unwrap();
            model.embed(&[&[1, 5, 9, 13, 2], &[1, 7, 2]]).unwrap().into_raw_vec_and_offset().0
        };
        let expected = embed(&original(case));
        assert_same_function(&embed(&folded(case).open().unwrap()), &expected, case);
    }
}

#[test]
fn folds_name_what_feeds_what() {
    let folds = folds(&original("llama")).unwrap();
    let at = |name: &str| format!("model.layers.0.{name}");
    let all = |names: &[&str]| names.iter().map(|name| at(name)).collect::<Vec<_>>();
    let expected = [
        (
            Producer::Norm(at("input_layernorm.weight")),
            all(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            [32, 1],
        ),
        (Producer::Linear(at("self_attn.v_proj")), all(&["self_attn.o_proj"]), [32, 2]),
        (
            Producer::Norm(at("post_attention_layernorm.weight")),
            all(&["mlp.gate_proj", "mlp.up_proj"]),
            [32, 1],
        ),
        (Producer::Linear(at("mlp.up_proj")), all(&["mlp.down_proj"]), [40, 1]),
    ];
    for (fold, (producer, consumers, [channels, repeats])) in folds.iter().zip(expected) {
        assert_eq!((&fold.producer, &fold.consumers), (&producer, &consumers));
        assert_eq!((fold.block, fold.channels, fold.repeats()), (Some(0), channels, repeats));
    }
    let last = folds.last().unwrap();
    assert_eq!(last.producer, Producer::Norm("model.norm.weight".into()));
    assert_eq!((last.block, last.consumers.as_slice()), (None, &["lm_head".to_owned()][..]));
    assert_eq!(folds.len() % 4, 1);
    // the embedding of a shared head would change, too
    let tied = tersor::transform::folds(&original("qwen2")).unwrap();
    assert!(tied.len().is_multiple_of(4) && tied.iter().all(|fold| fold.block.is_some()));
    // its normalizations feed the residual
    let encoder = tersor::transform::folds(&original("bert")).unwrap();
    assert!(encoder.iter().all(|fold| fold.consumers[0].ends_with("attention.output.dense")));
    assert!(encoder[0].tensors().any(|name| name.ends_with("attention.self.value.bias")));
}

#[test]
fn shared_heads_have_shared_scales() {
    // four heads of 8 channels share two of keys and values
    let checkpoint = original("llama");
    let fold = folds(&checkpoint).unwrap().swap_remove(1);
    let given: Vec<f32> = (1..=32).map(|x| x as f32).collect();
    let (mut max, mut mean) = (given.clone(), given.clone());
    fold.share(&mut max, SharedScales::Max).unwrap();
    fold.share(&mut mean, SharedScales::Mean).unwrap();
    for channel in 0..32 {
        let first = channel / 16 * 16 + channel % 8;
        assert_eq!(max[channel], given[first + 8], "{channel}");
        assert_eq!(mean[channel], f32::midpoint(given[first], given[first + 8]), "{channel}");
    }

    let mut weights = tensors(&checkpoint);
    let before = weights.clone();
    let error = one_line(&fold.apply(&given, &mut weights).unwrap_err());
    assert!(error.starts_with("channels 0 and 8 of what `model.layers.0.self_attn.o_proj` takes"), "{error}");
    assert!(error.contains("1 and 9") && error.contains("v_proj"), "{error}");
    assert_eq!(weights, before);
}

#[test]
fn scales_that_do_not_fit_are_refused() {
    let checkpoint = original("llama");
    let fold = folds(&checkpoint).unwrap().swap_remove(0);
    let mut weights = tensors(&checkpoint);
    let before = weights.clone();
    let refused = |scales: &[f32], weights: &mut Tensors| one_line(&fold.apply(scales, weights).unwrap_err());
    let error = refused(&[1.0; 31], &mut weights);
    assert!(error.starts_with("31 scales for the 32 channels"), "{error}");
    for wrong in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let mut scales = [1.0; 32];
        scales[5] = wrong;
        let error = refused(&scales, &mut weights);
        assert!(error.contains("channel 5") && error.contains(&wrong.to_string()), "{error}");
    }
    let error = refused(&[1e-39; 32], &mut weights);
    assert!(error.starts_with("`model.layers.0.input_layernorm.weight`: inf at index 0"), "{error}");
    assert_eq!(weights, before);

    let name = "model.layers.0.self_attn.k_proj.weight";
    weights.set(name, vec![0.0; 3]).unwrap();
    let error = refused(&[2.0; 32], &mut weights);
    assert_eq!(error, format!("`{name}` has 3 values, not {}", before[name].len()));
    weights.remove(name);
    assert_eq!(refused(&[2.0; 32], &mut weights), format!("there is no tensor `{name}`"));
    assert_eq!(
        weights["model.layers.0.self_attn.q_proj.weight"],
        before["model.layers.0.self_attn.q_proj.weight"]
    );

    let mut other = vec![1.0; 4];
    assert!(!fold.scale("model.norm.weight", &mut other, &[2.0; 32]).unwrap());
    assert_eq!(other, [1.0; 4]);
}
