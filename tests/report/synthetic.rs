//! A comparison of a 30-layer decoder with 8 variants, made up: what its report looks like at the size of a real model.

use tersor::report::{InputFile, LayerError, Made, MadeStep, MadeTensor, Memory, Variant};
use tersor::{Better, Comparison, Score, WeightErrors};

const BLOCKS: usize = 30;
const HIDDEN: usize = 576;
const INNER: usize = 1536;
const VOCABULARY: usize = 49_152;

/// Name, bits of a weight, its mean signal-to-noise ratio in dB, perplexity, tokens a second.
const VARIANTS: [(&str, f64, f64, f64, f64); 8] = [
    ("int8", 8.25, 41.0, 15.33, 52.0),
    ("fp8", 8.25, 32.0, 15.41, 49.0),
    ("int6", 6.25, 29.0, 15.52, 51.0),
    ("int4-g128", 4.13, 17.5, 18.92, 71.0),
    ("int4-g32-mse", 4.5, 19.5, 16.88, 68.0),
    ("int3-g32", 3.5, 13.0, 29.4, 66.0),
    ("2:4", 10.0, 9.0, 61.2, 33.0),
    ("2:4+int4 <script>alert(1)</script>", 3.3, 8.4, 140.5, 36.0),
];

/// The layers of a block: name, rows, columns, how much easier than the mean it is, in dB.
const LAYERS: [(&str, usize, usize, f64); 7] = [
    ("self_attn.q_proj", HIDDEN, HIDDEN, 0.5),
    ("self_attn.k_proj", 192, HIDDEN, -1.5),
    ("self_attn.v_proj", 192, HIDDEN, 1.0),
    ("self_attn.o_proj", HIDDEN, HIDDEN, 0.0),
    ("mlp.gate_proj", INNER, HIDDEN, 0.8),
    ("mlp.up_proj", INNER, HIDDEN, 0.6),
    ("mlp.down_proj", HIDDEN, INNER, -2.5),
];

pub(crate) fn score(task: &str, metric: &str, value: f64, unit: &str, better: Better, half: f64) -> Score {
    Score {
        task: task.into(),
        metric: metric.into(),
        value,
        unit: unit.into(),
        better,
        samples: 512,
        interval: [value - half, value + half],
    }
}

fn errors(db: f64) -> WeightErrors {
    let relative = 10f64.powf(-db / 20.0);
    WeightErrors { relative, sqnr_db: Some(db), cosine: 1.0 - relative * relative / 2.0, max_abs: relative }
}

const EXACT: WeightErrors = WeightErrors { relative: 0.0, sqnr_db: None, cosine: 1.0, max_abs: 0.0 };

fn layers(name: &str, bits: f64, mean: f64) -> Vec<LayerError> {
    let layer = |name: String, class: &str, rows: usize, cols: usize, after: &str, errors| {
        let bytes_before = 4 * (rows * cols) as u64;
        let exact = after == "F32";
        LayerError {
            name,
            class: class.into(),
            shape: if rows == 1 { vec![cols] } else { vec![rows, cols] },
            before: "F32".into(),
            after: after.into(),
            bytes_before,
            bytes_after: if exact { bytes_before } else { ((rows * cols) as f64 * bits / 8.0) as u64 },
            errors,
        }
    };
    let embedding = if bits < 4.0 { errors(mean + 4.0) } else { EXACT };
    let form = if bits < 4.0 { name } else { "F32" };
    let mut all =
        vec![layer("model.embed_tokens.weight".into(), "embedding", VOCABULARY, HIDDEN, form, embedding)];
    for block in 0..BLOCKS {
        for (i, (part, rows, cols, easier)) in LAYERS.into_iter().enumerate() {
            // the first and last blocks are harder, and each layer a little different
            let edge = if [0, 1, 29].contains(&block) { -3.0 } else { 0.0 };
            let wave = ((block * 7 + i * 13) as f64).sin();
            let errors = errors(mean + easier + edge + wave);
            all.push(layer(
                format!("model.layers.{block}.{part}.weight"),
                "linear",
                rows,
                cols,
                name,
                errors,
            ));
        }
        let norm = format!("model.layers.{block}.input_layernorm.weight");
        all.push(layer(norm, "norm", 1, HIDDEN, "F32", EXACT));
    }
    all
}

fn file(bytes: u64) -> InputFile {
    InputFile { name: "model.safetensors".into(), bytes, sha256: "0f".repeat(32) }
}

fn made(layers: &[LayerError], bytes_before: u64, bytes_after: u64) -> Made {
    let tensors: Vec<MadeTensor> = layers
        .iter()
        .filter(|l| l.errors.sqnr_db.is_some())
        .map(|l| MadeTensor {
            name: l.name.clone(),
            methods: vec![format!("round to {}", l.after)],
            before: l.before.clone(),
            after: l.after.clone(),
            bytes_before: l.bytes_before,
            bytes_after: l.bytes_after,
            sparsity: Some(0.0),
            clamped: 0,
        })
        .collect();
    let step = MadeStep {
        methods: tensors[0].methods.clone(),
        form: tensors[0].after.clone(),
        tensors: tensors.len(),
        bytes_before: tensors.iter().map(|t| t.bytes_before).sum(),
        bytes_after: tensors.iter().map(|t| t.bytes_after).sum(),
    };
    Made {
        tersor: Some("0.1.0".into()),
        format: Some("compressed-tensors".into()),
        bytes_before: Some(bytes_before),
        bytes_after: Some(bytes_after),
        steps: vec![step],
        tensors,
    }
}

/// The comparison, before it is priced.
pub(crate) fn decoder() -> Comparison<'static> {
    let mut comparison = Comparison::new();
    let source_bytes =
        4 * (VOCABULARY * HIDDEN + BLOCKS * (2 * HIDDEN * HIDDEN + 384 * HIDDEN + 3 * INNER * HIDDEN)) as u64;
    let scores = |perplexity: f64, speed: f64| {
        vec![
            score("perplexity", "perplexity", perplexity, "", Better::Lower, perplexity * 0.02),
            score("perplexity", "nats_per_token", perplexity.ln(), "", Better::Lower, 0.02),
            score("latency", "latency_p50", 1e3 / speed, "ms", Better::Lower, 0.0),
            score("latency", "latency_p95", 1.2e3 / speed, "ms", Better::Lower, 0.0),
            score("latency", "tokens_per_second", speed, "tokens/s", Better::Higher, 0.0),
        ]
    };
    let variant = |name: &str, bytes: u64, scores: Vec<Score>| Variant {
        name: name.into(),
        reference: None,
        files: vec![file(bytes)],
        file_bytes: bytes,
        weight_bytes: bytes,
        file_ratio: source_bytes as f64 / bytes as f64,
        weight_ratio: source_bytes as f64 / bytes as f64,
        drops: vec![Some(0.0); scores.len()],
        memory: Memory { bytes, measured: false, gib: Some(0.5) },
        scores,
        cost: None,
        worst_layer: None,
        layers: Vec::new(),
        not_compared: Vec::new(),
        made: None,
    };
    comparison.variants.push(variant("SmolLM2-135M", source_bytes, scores(15.3, 24.0)));
    for (name, bits, db, perplexity, speed) in VARIANTS {
        let layers = layers(name, bits, db);
        let bytes = layers.iter().map(|l| l.bytes_after).sum();
        let mut variant = variant(&format!("SmolLM2-135M-{name}"), bytes, scores(perplexity, speed));
        variant.reference = Some(0);
        variant.drops = variant
            .scores
            .iter()
            .zip(&comparison.variants[0].scores)
            .map(|(own, source)| match own.better {
                Better::Higher => Some(source.value - own.value),
                Better::Lower => Some(own.value - source.value),
            })
            .collect();
        variant.worst_layer =
            layers.iter().max_by(|a, b| a.errors.relative.total_cmp(&b.errors.relative)).cloned();
        variant.made = Some(made(&layers, source_bytes, bytes));
        variant.layers = layers;
        comparison.variants.push(variant);
    }
    comparison
}
