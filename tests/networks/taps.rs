//! A tap sees every linear layer once, and sees what goes into it: hidden states follow from the inputs, in `f64`.

use ndarray::{Array1, Array2, ArrayView2, Axis};
use tersor::{Checkpoint, Decoder, Encoder, Execution, LanguageModel, SentenceEncoder, Tap};

use crate::model::fixture;

/// What was seen, in order: the layers' names and their input.
#[derive(Default)]
struct Seen(Vec<(Vec<String>, Array2<f32>)>);

impl Tap for Seen {
    fn observe(&mut self, layers: &[&str], input: ArrayView2<'_, f32>) {
        self.0.push((layers.iter().map(|name| (*name).to_owned()).collect(), input.to_owned()));
    }
}

impl Seen {
    /// The input of a layer, which was seen once.
    fn input(&self, layer: &str) -> Array2<f64> {
        let mut of = self.0.iter().filter(|(names, _)| names.iter().any(|name| name == layer));
        let (Some((_, input)), None) = (of.next(), of.next()) else { panic!("{layer}") };
        input.mapv(f64::from)
    }

    fn names(&self) -> Vec<Vec<&str>> {
        self.0.iter().map(|(names, _)| names.iter().map(String::as_str).collect()).collect()
    }
}

/// Weights in `f64`.
struct Weights(Checkpoint);

impl Weights {
    fn vector(&self, name: &str) -> Array1<f64> {
        self.0.dense(name).unwrap().into_iter().map(f64::from).collect()
    }

    fn matrix(&self, name: &str) -> Array2<f64> {
        let shape = &self.0.entry(name).unwrap().shape;
        self.vector(name).into_shape_with_order((shape[0], shape[1])).unwrap()
    }

    /// `x · Wᵀ`, and the bias if there is one.
    fn linear(&self, layer: &str, x: &Array2<f64>) -> Array2<f64> {
        let y = x.dot(&self.matrix(&format!("{layer}.weight")).t());
        let bias = format!("{layer}.bias");
        if self.0.entry(&bias).is_ok() { y + self.vector(&bias) } else { y }
    }

    fn rms_norm(&self, name: &str, x: &Array2<f64>) -> Array2<f64> {
        let scale = x.map_axis(Axis(1), |row| {
            (row.mapv(|x| x * x).mean().unwrap() + self.number("rms_norm_eps")).sqrt()
        });
        x / &scale.insert_axis(Axis(1)) * self.vector(&format!("{name}.weight"))
    }

    fn layer_norm(&self, name: &str, x: &Array2<f64>) -> Array2<f64> {
        let x = x - &x.mean_axis(Axis(1)).unwrap().insert_axis(Axis(1));
        let scale = x.map_axis(Axis(1), |row| {
            (row.mapv(|x| x * x).mean().unwrap() + self.number("layer_norm_eps")).sqrt()
        });
        &x / &scale.insert_axis(Axis(1)) * self.vector(&format!("{name}.weight"))
            + self.vector(&format!("{name}.bias"))
    }

    fn number(&self, key: &str) -> f64 {
        self.0.config().unwrap()[key].as_f64().unwrap()
    }
}

fn assert_close(actual: &Array2<f64>, expected: &Array2<f64>, what: &str) {
    assert_eq!(actual.dim(), expected.dim(), "{what}");
    for ((at, a), e) in actual.indexed_iter().zip(expected) {
        assert!((a - e).abs() <= 2e-5 * (1.0 + e.abs()), "{what} at {at:?}: {a}, not {e}");
    }
}

fn decoder(case: &str) -> (Decoder, Weights) {
    let checkpoint = Checkpoint::open(fixture(case)).unwrap();
    (Decoder::open(&checkpoint, Execution::default()).unwrap(), Weights(checkpoint))
}

const TOKENS: [u32; 7] = [5, 9, 60, 3, 33, 9, 12];

/// The layers of a decoder's blocks, by input.
fn blocks(count: usize) -> Vec<Vec<String>> {
    let of_block = |block: usize| {
        let named = |part: &str, names: &[&str]| -> Vec<String> {
            names.iter().map(|name| format!("model.layers.{block}.{part}.{name}_proj")).collect()
        };
        [
            named("self_attn", &["q", "k", "v"]),
            named("self_attn", &["o"]),
            named("mlp", &["gate", "up"]),
            named("mlp", &["down"]),
        ]
    };
    (0..count).flat_map(of_block).collect()
}

#[test]
fn a_tap_sees_every_linear_layer_of_a_decoder_once_and_changes_nothing() {
    for (case, head) in [
        ("llama", "lm_head"),
        ("llama-bias", "lm_head"),
        ("llama-bf16", "lm_head"),
        ("qwen3", "model.embed_tokens"),
        ("mistral", "lm_head"),
    ] {
        let (model, weights) = decoder(case);
        let mut seen = Seen::default();
        let logits = model.forward(&TOKENS, Some(&mut seen)).unwrap();
        assert_eq!(logits, model.forward(&TOKENS, None).unwrap(), "{case}");
        assert_eq!(logits, model.logits(&TOKENS).unwrap(), "{case}");
        let expected = [blocks(2), vec![vec![head.to_owned()]]].concat();
        assert_eq!(seen.names(), expected, "{case}");
        // every matrix but the table that is only looked up
        let matrices =
            weights.0.entries().iter().filter(|e| e.shape.len() == 2 && e.module() != "model.embed_tokens");
        let mut matrices: Vec<&str> = matrices.map(tersor::Entry::module).collect();
        if head != "lm_head" {
            matrices.push(head);
        }
        matrices.sort_unstable();
        let mut names: Vec<&str> = seen.names().concat();
        names.sort_unstable();
        assert_eq!(names, matrices, "{case}");
        for (names, input) in &seen.0 {
            for name in names {
                let cols = weights.0.entry(&format!("{name}.weight")).unwrap().shape[1];
                assert_eq!(input.dim(), (TOKENS.len(), cols), "{case}: {name}");
            }
        }
    }
}

#[test]
fn the_hidden_states_of_a_decoder_follow_from_what_is_seen() {
    for case in ["llama", "llama-bias"] {
        let (model, weights) = decoder(case);
        let mut hidden = model.embed(&TOKENS).unwrap();
        for block in 0..model.blocks() {
            let before = hidden.mapv(f64::from);
            let mut seen = Seen::default();
            model.run_block(block, &mut hidden, Some(&mut seen)).unwrap();
            assert_eq!(seen.names(), blocks(2)[4 * block..4 * block + 4], "{case}");
            let at = |name: &str| format!("model.layers.{block}.{name}");
            let of = |layer: &str| seen.input(&at(layer));
            let through = |layer: &str| weights.linear(&at(layer), &of(layer));
            let what = |part: &str| format!("{case}, block {block}: {part}");

            let normed = weights.rms_norm(&at("input_layernorm"), &before);
            assert_close(&of("self_attn.q_proj"), &normed, &what("input of q, k and v"));
            // the first token sees only itself: its value, for every head of its group
            let value = through("self_attn.v_proj");
            let (dim, heads) = (8, 4);
            let group = heads * dim / value.ncols();
            let first: Vec<f64> =
                (0..heads * dim).map(|i| value[(0, i / dim / group * dim + i % dim)]).collect();
            let first = Array2::from_shape_vec((1, heads * dim), first).unwrap();
            let attended = of("self_attn.o_proj").slice_move(ndarray::s![..1, ..]);
            assert_close(&attended, &first, &what("input of o"));

            let middle = before + through("self_attn.o_proj");
            let normed = weights.rms_norm(&at("post_attention_layernorm"), &middle);
            assert_close(&of("mlp.gate_proj"), &normed, &what("input of gate and up"));
            let gated = through("mlp.gate_proj").mapv(|x| x / (1.0 + (-x).exp())) * through("mlp.up_proj");
            assert_close(&of("mlp.down_proj"), &gated, &what("input of down"));
            assert_close(&hidden.mapv(f64::from), &(middle + through("mlp.down_proj")), &what("output"));
        }
        let mut seen = Seen::default();
        let logits = model.head(hidden.view(), Some(&mut seen)).unwrap();
        assert_eq!(seen.names(), [["lm_head"]]);
        let normed = weights.rms_norm("model.norm", &hidden.mapv(f64::from));
        assert_close(&seen.input("lm_head"), &normed, "input of the head");
        assert_close(&logits.mapv(f64::from), &weights.linear("lm_head", &normed), "logits");
        assert_eq!(logits, model.logits(&TOKENS).unwrap());
    }
}

#[test]
fn a_tap_sees_every_linear_layer_of_an_encoder_once() {
    for (case, prefix) in [("bert", ""), ("bert-classifier", "bert.")] {
        let weights = Weights(Checkpoint::open(fixture(case)).unwrap());
        let model = Encoder::open(&weights.0, Execution::default()).unwrap();
        let sentences: [&[u32]; 3] = [&[5, 9, 60, 70], &[3], &[33, 9, 12]];
        let mut seen = Seen::default();
        let last = model.forward(&sentences, Some(&mut seen)).unwrap();
        assert_eq!(last, model.forward(&sentences, None).unwrap());
        let of_block = |block: usize| {
            let named = |names: &[&str]| -> Vec<String> {
                names.iter().map(|name| format!("{prefix}encoder.layer.{block}.{name}")).collect()
            };
            [
                named(&["attention.self.query", "attention.self.key", "attention.self.value"]),
                named(&["attention.output.dense"]),
                named(&["intermediate.dense"]),
                named(&["output.dense"]),
            ]
        };
        let expected: Vec<Vec<String>> = (0..2).flat_map(of_block).collect();
        assert_eq!(seen.names(), expected);

        let mut hidden = model.embed_tokens(&sentences).unwrap().mapv(f64::from);
        assert_eq!(hidden.dim(), (8, 32));
        for block in 0..2 {
            let at = |name: &str| format!("{prefix}encoder.layer.{block}.{name}");
            let of = |layer: &str| seen.input(&at(layer));
            let through = |layer: &str| weights.linear(&at(layer), &of(layer));
            assert_close(&of("attention.self.query"), &hidden, "input of query, key and value");
            // a sentence of one token attends to itself
            let value = through("attention.self.value");
            let alone = ndarray::s![4..5, ..];
            assert_close(
                &of("attention.output.dense").slice_move(alone),
                &value.slice_move(alone),
                "one token",
            );
            let middle = weights
                .layer_norm(&at("attention.output.LayerNorm"), &(hidden + through("attention.output.dense")));
            assert_close(&of("intermediate.dense"), &middle, "input of the feed-forward layers");
            // gelu lies between 0 and its argument, and is it where that is large
            for (y, x) in of("output.dense").iter().zip(&through("intermediate.dense")) {
                assert!(
                    (-0.18..=x.max(0.0) + 1e-5).contains(y) && (*x < 4.0 || (y - x).abs() < 2e-3),
                    "{x} {y}"
                );
            }
            hidden = weights.layer_norm(&at("output.LayerNorm"), &(middle + through("output.dense")));
        }
        assert_close(&last.mapv(f64::from), &hidden, "output");
        // without modules, sentences are the mean of their tokens
        let mean = hidden.slice(ndarray::s![5.., ..]).mean_axis(Axis(0)).unwrap().insert_axis(Axis(0));
        let embedding = model.embed(&sentences).unwrap().slice_move(ndarray::s![2..3, ..]);
        assert_close(&embedding.mapv(f64::from), &mean, "embedding");
    }
}
