use std::path::Path;

use serde::Serialize;

use super::{Align, Table, percent};
use crate::checkpoint::{Checkpoint, CheckpointError, Stored, TensorClass};
use crate::evaluate::{ImageSet, Score, WeightErrors, classify, time_per_sample};
use crate::model::{ModelError, Sequential};

/// Version of the JSON that a comparison serializes to.
const SCHEMA: u32 = 1;

/// Samples that go through the network at once when it is timed.
const TIMED_BATCH: usize = 100;

/// The layer that lost most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorstLayer {
    /// Its name.
    pub name: String,
    /// How far it is from the source.
    #[serde(flatten)]
    pub errors: WeightErrors,
}

/// One checkpoint of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Variant {
    /// What it is called in the tables.
    pub name: String,
    /// Bytes of its safetensors files.
    pub file_bytes: u64,
    /// Bytes of its linear, convolution and embedding weights: values, positions, scales and zero points.
    pub weight_bytes: u64,
    /// How many times smaller its files are than the reference's.
    pub file_ratio: f64,
    /// How many times smaller its weights are.
    pub weight_ratio: f64,
    /// What was measured.
    pub scores: Vec<Score>,
    /// What was lost of each score against the reference, in the score's unit.
    pub drops: Vec<f64>,
    /// Median time of a sample in microseconds, 100 at a time.
    pub microseconds_per_sample: Option<f64>,
    /// The layer that is furthest from the reference; `None` if all are exact.
    pub worst_layer: Option<WorstLayer>,
}

/// Checkpoints side by side, the first being the reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Version of this schema.
    pub schema: u32,
    /// Version of tersor.
    pub tersor: &'static str,
    /// Threads that the measurements used.
    pub threads: usize,
    /// The checkpoints.
    pub variants: Vec<Variant>,
}

impl Default for Comparison {
    fn default() -> Self {
        Self::new()
    }
}

impl Comparison {
    /// A comparison of nothing yet.
    pub fn new() -> Self {
        Self {
            schema: SCHEMA,
            tersor: env!("CARGO_PKG_VERSION"),
            threads: rayon::current_num_threads(),
            variants: Vec::new(),
        }
    }

    /// Measures a checkpoint and appends it. `reference` is what it was made from, `index` the variant of that in this
    /// comparison; both are the checkpoint itself for a reference. Without images only sizes and errors are compared.
    ///
    /// # Errors
    /// When a checkpoint cannot be read or run.
    pub fn add(
        &mut self,
        name: &str,
        checkpoint: &Checkpoint,
        reference: &Checkpoint,
        index: usize,
        images: Option<&ImageSet>,
    ) -> Result<&Variant, ModelError> {
        let (mut scores, mut microseconds_per_sample) = (Vec::new(), None);
        if let Some(images) = images {
            let model = Sequential::open(checkpoint)?;
            scores.push(classify(&model, images)?);
            let time = time_per_sample(&model, images, TIMED_BATCH)?;
            microseconds_per_sample = Some(time.as_secs_f64() * 1e6);
        }
        let file_bytes = checkpoint.file_bytes();
        let weight_bytes = weight_bytes(checkpoint);
        // the reference is not in the list yet when it is added itself
        let base = self.variants.get(index);
        let drops = match base {
            Some(base) => base.scores.iter().zip(&scores).map(|(a, b)| a.value - b.value).collect(),
            None => vec![0.0; scores.len()],
        };
        let ratio = |before: Option<u64>, after: u64| before.unwrap_or(after) as f64 / after.max(1) as f64;
        let variant = Variant {
            name: name.to_owned(),
            file_bytes,
            weight_bytes,
            file_ratio: ratio(base.map(|b| b.file_bytes), file_bytes),
            weight_ratio: ratio(base.map(|b| b.weight_bytes), weight_bytes),
            scores,
            drops,
            microseconds_per_sample,
            worst_layer: worst_layer(reference, checkpoint)?,
        };
        self.variants.push(variant);
        Ok(&self.variants[self.variants.len() - 1])
    }

    /// One row per checkpoint.
    pub fn table(&self) -> Table {
        let mut table = Table::new([
            ("model", Align::Left),
            ("file bytes", Align::Right),
            ("smaller", Align::Right),
            ("weights smaller", Align::Right),
            ("accuracy", Align::Right),
            ("drop", Align::Right),
            ("µs/sample", Align::Right),
            ("worst layer", Align::Left),
            ("rel. error", Align::Right),
        ]);
        for variant in &self.variants {
            let worst = variant.worst_layer.as_ref();
            table.row([
                variant.name.clone().into(),
                variant.file_bytes.into(),
                format!("{:.2}×", variant.file_ratio).into(),
                format!("{:.2}×", variant.weight_ratio).into(),
                variant.scores.first().map_or("–".to_owned(), |s| format!("{:.2}%", s.value)).into(),
                variant.drops.first().map_or("–".to_owned(), |d| format!("{d:+.2}")).into(),
                variant.microseconds_per_sample.map_or("–".to_owned(), |t| format!("{t:.2}")).into(),
                worst.map_or("–".to_owned(), |w| w.name.clone()).into(),
                worst.map_or("0".to_owned(), |w| percent(w.errors.relative)).into(),
            ]);
        }
        table
    }
}

fn weight_bytes(checkpoint: &Checkpoint) -> u64 {
    let is_weight = |class| matches!(class, TensorClass::Linear | TensorClass::Conv | TensorClass::Embedding);
    checkpoint
        .entries()
        .iter()
        .filter(|e| is_weight(e.class))
        .map(|e| match &e.stored {
            Stored::Compressed(form) => form.bytes().total(),
            Stored::Plain(_) => e.bytes,
        })
        .sum()
}

fn worst_layer(
    reference: &Checkpoint,
    checkpoint: &Checkpoint,
) -> Result<Option<WorstLayer>, CheckpointError> {
    if Path::canonicalize(reference.path()).ok() == Path::canonicalize(checkpoint.path()).ok() {
        return Ok(None);
    }
    let mut worst: Option<WorstLayer> = None;
    for entry in reference.entries() {
        let Ok(other) = checkpoint.entry(&entry.name) else { continue };
        let comparable =
            entry.precision().is_some() && other.precision().is_some() && entry.shape == other.shape;
        if !comparable || entry.elements() == 0 {
            continue;
        }
        let errors = WeightErrors::between(&reference.dense(&entry.name)?, &checkpoint.dense(&entry.name)?);
        if errors.relative > worst.as_ref().map_or(0.0, |w| w.errors.relative) {
            worst = Some(WorstLayer { name: entry.name.clone(), errors });
        }
    }
    Ok(worst)
}
