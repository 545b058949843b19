//! Compressed networks compute what their weights say: the network of the same weights, dequantized, gives the same.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use ndarray::{Array2, ArrayView2};
use tersor::evaluate::WeightErrors;
use tersor::{
    ActivationCodes, Activations, Bits, Checkpoint, Decoder, Execution, Granularity, LanguageModel,
    OutputFormat, Plan, PresetOptions, Recipe, RoundToNearest, SentenceEncoder, Stored, TensorClass,
};

use crate::common::{Folder, dequantized};
use crate::model::{fixture, open};

const INT8: Activations = Activations::Int8(ActivationCodes::PerToken);

const TOKENS: [u32; 40] = {
    let mut tokens = [0; 40];
    let mut i = 0;
    while i < 40 {
        tokens[i] = (i as u32 * 23 + 5) % 64;
        i += 1;
    }
    tokens
};

fn compress(case: &str, recipe: Recipe) -> (Folder, Checkpoint) {
    let folder = Folder::new();
    let source = Checkpoint::open(fixture(case)).unwrap();
    let output = folder.path().join("out");
    let recipe = recipe.format(OutputFormat::Tersor);
    Plan::new(&source, &recipe).unwrap().run(&output, &mut |_| ControlFlow::Continue(())).unwrap();
    let checkpoint = Checkpoint::open(output).unwrap();
    (folder, checkpoint)
}

fn preset(name: &str, group_size: usize) -> Recipe {
    Recipe::preset(
        name,
        PresetOptions { group_size: NonZeroUsize::new(group_size), ..PresetOptions::default() },
    )
    .unwrap()
}

fn compressed_tensors(checkpoint: &Checkpoint) -> usize {
    checkpoint.entries().iter().filter(|entry| matches!(entry.stored, Stored::Compressed(_))).count()
}

fn decoder(checkpoint: &Checkpoint, activations: Activations) -> Decoder {
    Decoder::open(checkpoint, Execution::from(activations)).unwrap()
}

fn assert_close(actual: ArrayView2<'_, f32>, expected: ArrayView2<'_, f32>, bound: f32, what: &str) {
    assert_eq!(actual.dim(), expected.dim(), "{what}");
    for ((at, a), e) in actual.indexed_iter().zip(&expected) {
        assert!((a - e).abs() <= bound * (1.0 + e.abs()), "{what} at {at:?}: {a}, not {e}");
    }
}

/// Root mean square of the differences, relative to that of the values.
fn relative_error(values: &Array2<f32>, expected: &Array2<f32>) -> f64 {
    WeightErrors::between(expected.as_slice().unwrap(), values.as_slice().unwrap()).relative
}

/// The preset, the size of its groups, whether anything is left of the source's logits, and tensors that are compressed.
const PRESETS: [(&str, usize); 14] = [
    ("int8", 0),
    ("int8-asym", 0),
    ("int8", 16),
    ("int4", 16),
    ("int4-asym", 8),
    ("int3", 16),
    ("int2-asym", 4),
    ("fp8", 0),
    ("fp16", 0),
    ("bf16", 0),
    ("2:4", 0),
    ("50%", 0),
    ("2:4+int8", 0),
    ("75%-global+int4-asym", 16),
];

#[test]
fn a_compressed_decoder_is_the_decoder_of_its_weights() {
    for case in ["llama", "llama-bias", "qwen3", "qwen2-window"] {
        let source =
            decoder(&Checkpoint::open(fixture(case)).unwrap(), Activations::Float).logits(&TOKENS).unwrap();
        for (name, group) in PRESETS {
            let what = format!("{case}, {name}, groups of {group}");
            let (_folder, checkpoint) = compress(case, preset(name, group));
            let model = decoder(&checkpoint, Activations::Float);
            let logits = model.logits(&TOKENS).unwrap();
            let dense = decoder(&dequantized(&checkpoint).open().unwrap(), Activations::Float);
            assert_close(logits.view(), dense.logits(&TOKENS).unwrap().view(), 1e-4, &what);
            assert!(relative_error(&logits, &source) > 1e-5, "{what}: nothing was compressed");
            // one token after the other takes other kernels
            let mut cache = model.cache();
            for (token, logits) in TOKENS.iter().zip(logits.rows()) {
                let one = Array2::from_shape_vec(
                    (1, 64.max(logits.len())),
                    model.extend(&mut cache, &[*token]).unwrap(),
                );
                assert_close(one.unwrap().view(), logits.insert_axis(ndarray::Axis(0)), 1e-4, &what);
            }
        }
    }
}

#[test]
fn a_compressed_encoder_is_the_encoder_of_its_weights() {
    let sentences: [&[u32]; 3] = [&TOKENS[..24], &[70], &TOKENS[30..]];
    let embed =
        |folder: &Folder| open(folder).unwrap().sentence_encoder().unwrap().embed(&sentences).unwrap();
    for (name, group) in PRESETS {
        let (_folder, checkpoint) = compress("bert", preset(name, group));
        let model = tersor::Encoder::open(&checkpoint, Execution::default()).unwrap();
        let embeddings = model.embed(&sentences).unwrap();
        assert_close(embeddings.view(), embed(&dequantized(&checkpoint)).view(), 1e-4, name);
    }
}

/// Lookup tables, which some heads share, and everything else that is a matrix.
#[test]
fn a_network_with_compressed_tables_is_that_of_its_weights() {
    let bits = |n| Bits::new(n).unwrap();
    let group = Granularity::Group(NonZeroUsize::new(8).unwrap());
    for case in ["llama", "qwen3", "bert"] {
        for method in [
            RoundToNearest::int(bits(8)).granularity(Granularity::Channel),
            RoundToNearest::int(bits(4)).granularity(group),
            RoundToNearest::f8_e4m3(),
        ] {
            let classes = [TensorClass::Embedding, TensorClass::Linear];
            let recipe = Recipe::new().step(tersor::Step::quantize(method).classes(classes));
            let (_folder, checkpoint) = compress(case, recipe);
            let matrices = checkpoint.entries().iter().filter(|entry| entry.shape.len() == 2).count();
            assert_eq!(compressed_tensors(&checkpoint), matrices, "{case}");
            let what = format!("{case}, {}", checkpoint.entries()[0].describe());
            let dense = dequantized(&checkpoint);
            if case == "bert" {
                let embed = |checkpoint: &Checkpoint| {
                    tersor::Encoder::open(checkpoint, Execution::default())
                        .unwrap()
                        .embed(&[&TOKENS[..9], &[71]])
                        .unwrap()
                };
                assert_close(embed(&checkpoint).view(), embed(&dense.open().unwrap()).view(), 1e-4, &what);
            } else {
                let logits = |checkpoint: &Checkpoint| {
                    decoder(checkpoint, Activations::Float).logits(&TOKENS).unwrap()
                };
                assert_close(logits(&checkpoint).view(), logits(&dense.open().unwrap()).view(), 1e-4, &what);
                // the embeddings are the rows themselves
                let model = decoder(&checkpoint, INT8);
                let table = checkpoint.dense("model.embed_tokens.weight").unwrap();
                let width = table.len() / 64;
                let rows = model.embed(&[63, 0]).unwrap();
                assert_eq!(
                    rows.as_slice().unwrap(),
                    [&table[63 * width..], &table[..width]].concat(),
                    "{what}"
                );
            }
        }
    }
}

/// A row of activations is rounded to steps of `s`, its largest magnitude / 127. The error of every value is at most half a
/// step, and that of an output at most half a step times the sum of its weights' magnitudes; with errors spread evenly over
/// a step it is `s / √12` times their Euclidean norm in the root mean square.
#[test]
fn eight_bit_activations_cost_what_their_steps_explain() {
    for case in ["llama", "llama-bias"] {
        // the head, too
        let method = RoundToNearest::int(Bits::new(8).unwrap()).granularity(Granularity::Channel);
        let recipe = Recipe::new().step(tersor::Step::quantize(method).classes([TensorClass::Linear]));
        let (_folder, checkpoint) = compress(case, recipe);
        assert_eq!(compressed_tensors(&checkpoint), 15);
        let (float, int8) = (decoder(&checkpoint, Activations::Float), decoder(&checkpoint, INT8));
        let mut hidden = float.embed(&TOKENS).unwrap();
        for block in 0..2 {
            float.run_block(block, &mut hidden, None).unwrap();
        }
        let mut input = Array2::zeros((0, 0));
        let mut tap = |_: &[&str], x: ArrayView2<'_, f32>| input = x.to_owned();
        let exact = float.head(hidden.view(), Some(&mut tap)).unwrap();
        let rounded = int8.head(hidden.view(), None).unwrap();
        let head = checkpoint.dense("lm_head.weight").unwrap();
        let (mut squares, mut expected) = (0.0, 0.0);
        for (token, x) in input.rows().into_iter().enumerate() {
            let step = f64::from(x.iter().fold(0.0f32, |max, x| max.max(x.abs()))) / 127.0;
            for (output, weights) in head.chunks(x.len()).enumerate() {
                let error = f64::from(rounded[(token, output)]) - f64::from(exact[(token, output)]);
                let sum: f64 = weights.iter().map(|w| f64::from(w.abs())).sum();
                assert!(error.abs() <= step / 2.0 * sum * 1.0001, "{case}: {error} at {token}, {output}");
                squares += error * error;
                expected += step * step / 12.0 * weights.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
            }
        }
        // outputs of a row share its errors; there are 40 rows
        let ratio = (squares / expected).sqrt();
        assert!((0.8..1.25).contains(&ratio), "{case}: {ratio} of the error expected");

        // nine products follow one another. The largest of 32 normal values is about 2.2 of their deviations: an error of
        // 2.2 / 127 / √12 = 0.5 % each, 1.5 % together, and more where the network amplifies it
        let error = relative_error(&int8.logits(&TOKENS).unwrap(), &float.logits(&TOKENS).unwrap());
        assert!((0.003..0.05).contains(&error), "{case}: {error}");
    }
}

#[test]
fn activations_are_rounded_only_where_codes_are_integers() {
    for name in ["fp8", "fp16", "bf16", "2:4", "50%"] {
        let (_folder, checkpoint) = compress("llama", preset(name, 0));
        let logits = |activations| decoder(&checkpoint, activations).logits(&TOKENS).unwrap();
        assert_eq!(logits(Activations::Float), logits(INT8), "{name}");
    }
    let integers = [
        ("int8", 0),
        ("int8-asym", 0),
        ("int4", 16),
        ("2:4+int8", 0),
        ("50%+int8-asym", 0),
        ("50%+int8-asym", 16),
    ];
    for (name, group) in integers {
        let (_folder, checkpoint) = compress("llama", preset(name, group));
        let float = decoder(&checkpoint, Activations::Float).logits(&TOKENS).unwrap();
        for codes in [ActivationCodes::PerToken, ActivationCodes::PerTokenAsymmetric] {
            let result = Decoder::open(&checkpoint, Execution::from(Activations::Int8(codes)));
            let error = relative_error(&result.unwrap().logits(&TOKENS).unwrap(), &float);
            assert!((0.003..0.05).contains(&error), "{name}, {codes:?}: {error}");
        }
    }
}
