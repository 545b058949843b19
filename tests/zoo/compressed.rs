//! What compressing costs real networks, and that compressed ones compute what their weights say.

use std::ops::ControlFlow;
use std::path::Path;

use libtest_mimic::Failed;
use tersor::pipeline::Distillation;
use tersor::{ActivationCodes, Activations, Checkpoint, Decoder, Execution, OwnText, Plan, Recipe};

use crate::common::{Folder, dequantized};
use crate::scores::{FLOAT, correlations, of_stories};
use crate::{Add, PRESETS, check, check_near, go, options};

pub(crate) fn add(add: &mut Add<'_>) {
    for preset in PRESETS {
        add(&format!("perplexity_of_stories260k_{preset}"), stories, preset);
    }
    add("distilled_stories260k", distilled, "stories260k");
    add("similarity_of_all-minilm-l6-v2_int8", similarity, "all-minilm-l6-v2");
}

pub(crate) const INT8: Activations = Activations::Int8(ActivationCodes::PerToken);

/// A model, compressed into a folder.
pub(crate) fn compress(source: &Path, preset: &str) -> Result<(Folder, Checkpoint), Failed> {
    let folder = Folder::new();
    let checkpoint = Checkpoint::open(source)?;
    let output = folder.path().join("out");
    Plan::new(&checkpoint, &Recipe::preset(preset, options())?)?.run(&output, &mut go)?;
    let checkpoint = Checkpoint::open(&output)?;
    Ok((folder, checkpoint))
}

/// A compressed network is the network of its weights, dequantized; and a good form costs little.
fn stories(zoo: &Path, preset: &str) -> Result<(), Failed> {
    let (_folder, compressed) = compress(&zoo.join("stories260k"), preset)?;
    let value = of_stories(zoo, &compressed, FLOAT)?;
    let dense = of_stories(zoo, &dequantized(&compressed).open()?, FLOAT)?;
    check_near(preset, value, dense, 1e-5)?;
    // how many times the perplexity of the source is allowed, 7.006918
    let allowed = match preset {
        "fp16" => 1.0005,
        "bf16" => 1.005,
        "int8" | "int8-asym" => 1.01,
        "fp8" => 1.1,
        "int4" => 1.5,
        // guessing has a perplexity of 512, and the last preset leaves less than that
        "90%-global+int4" => f64::MAX,
        _ => 512.0 / 7.0,
    };
    check((7.006_918 * 0.99..=7.006_918 * allowed).contains(&value), || format!("{preset}: {value}"))
}

/// What a network learns from text of its own makes it better on stories that others wrote.
fn distilled(zoo: &Path, model: &str) -> Result<(), Failed> {
    let original = Checkpoint::open(zoo.join(model))?;
    let (folder, compressed) = compress(&zoo.join(model), "int3")?;
    let decoder = Decoder::open(&original, Execution::default())?;
    let text = OwnText { samples: 16, context: 128, start: vec![1], ends: vec![2], ..OwnText::default() };
    let samples = text.draw(&decoder, &mut |_| ControlFlow::Continue(()))?.ok_or("nothing was drawn")?;
    let output = folder.path().join("distilled");
    let by = Distillation::new(24.try_into()?);
    let found = by.run(&compressed, &original, &samples, &output, &mut |_| ControlFlow::Continue(()))?;
    let [before, after] =
        [compressed, Checkpoint::open(&output)?].map(|network| of_stories(zoo, &network, FLOAT));
    let (before, after) = (before?, after?);
    // of what was lost, a quarter at least comes back
    check(after - 7.006_918 < 0.75 * (before - 7.006_918), || format!("{before} → {after}: {found:?}"))
}

fn similarity(zoo: &Path, model: &str) -> Result<(), Failed> {
    let (_folder, compressed) = compress(&zoo.join(model), "int8")?;
    let [float, _] = correlations(zoo, &compressed, Some(FLOAT))?;
    check(float >= 0.820_324_673_1 - 0.001, || format!("Spearman {float}"))?;
    // onnxruntime 1.31.1, weights by its quantize_dynamic to int8 and activations rounded as it goes, one sentence at a time
    let onnxruntime = 0.817_782;
    let [int8, _] = correlations(zoo, &compressed, Some(INT8))?;
    check(int8 >= onnxruntime, || format!("Spearman {int8} with 8-bit activations"))?;
    let asymmetric = Activations::Int8(ActivationCodes::PerTokenAsymmetric);
    let [asymmetric, _] = correlations(zoo, &compressed, Some(asymmetric))?;
    check(asymmetric >= 0.820_324_673_1 - 0.002, || format!("Spearman {asymmetric} with zero points"))?;
    check(float != int8 && int8 != asymmetric, || "activations were not rounded".into())
}
