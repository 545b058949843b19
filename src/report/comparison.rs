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
    /// Tensors that could not be compared with the reference's.
    pub not_compared: Vec<NotCompared>,
}

/// A tensor that stands in a checkpoint or in its reference, and could not be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotCompared {
    /// Its name.
    pub name: String,
    /// Why not: it is missing on one side, or has another shape.
    pub reason: String,
}

/// Checkpoints side by side, each compared with a reference that it was made from.
///
/// ```no_run
/// use tersor::{Checkpoint, Comparison};
///
/// let source = Checkpoint::open("fixtures/fashion-mlp")?;
/// let mut comparison = Comparison::new();
/// comparison.add_reference("source", &source, None)?;
/// comparison.add("int8", &Checkpoint::open("out-int8")?, None)?;
/// println!("{}", comparison.table());
/// # Ok::<(), tersor::ModelError>(())
/// ```
#[derive(Debug, Serialize)]
pub struct Comparison<'a> {
    /// Version of this schema.
    pub schema: u32,
    /// Version of tersor.
    pub tersor: &'static str,
    /// Threads that the measurements used.
    pub threads: usize,
    /// The checkpoints.
    pub variants: Vec<Variant>,
    /// The reference that was added last, and its place among the variants.
    #[serde(skip)]
    reference: Option<(&'a Checkpoint, usize)>,
}

impl Default for Comparison<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Comparison<'a> {
    /// A comparison of nothing yet.
    pub fn new() -> Self {
        Self {
            schema: SCHEMA,
            tersor: env!("CARGO_PKG_VERSION"),
            threads: rayon::current_num_threads(),
            variants: Vec::new(),
            reference: None,
        }
    }

    /// Measures a checkpoint, against which those that follow are held. Without images only sizes and errors are
    /// compared.
    ///
    /// # Errors
    /// When the checkpoint cannot be read or run.
    pub fn add_reference(
        &mut self,
        name: &str,
        checkpoint: &'a Checkpoint,
        images: Option<&ImageSet>,
    ) -> Result<(), ModelError> {
        self.reference = None;
        self.add(name, checkpoint, images)?;
        self.reference = Some((checkpoint, self.variants.len() - 1));
        Ok(())
    }

    /// Measures a checkpoint and compares it with the reference that was added last.
    ///
    /// # Errors
    /// When a checkpoint cannot be read or run.
    pub fn add(
        &mut self,
        name: &str,
        checkpoint: &Checkpoint,
        images: Option<&ImageSet>,
    ) -> Result<(), ModelError> {
        let (mut scores, mut microseconds_per_sample) = (Vec::new(), None);
        if let Some(images) = images {
            let model = Sequential::open(checkpoint)?;
            scores.push(classify(&model, images)?);
            let time = time_per_sample(&model, images, TIMED_BATCH)?;
            microseconds_per_sample = Some(time.as_secs_f64() * 1e6);
        }
        let file_bytes = checkpoint.file_bytes();
        let weight_bytes = weight_bytes(checkpoint);
        let base = self.reference.map(|(_, index)| &self.variants[index]);
        let ratio = |before: Option<u64>, after: u64| before.unwrap_or(after) as f64 / after.max(1) as f64;
        let (worst_layer, not_compared) = match self.reference {
            Some((reference, _)) => compare_layers(reference, checkpoint)?,
            None => (None, Vec::new()),
        };
        let variant = Variant {
            name: name.to_owned(),
            file_bytes,
            weight_bytes,
            file_ratio: ratio(base.map(|b| b.file_bytes), file_bytes),
            weight_ratio: ratio(base.map(|b| b.weight_bytes), weight_bytes),
            drops: match base {
                Some(base) => base.scores.iter().zip(&scores).map(|(a, b)| a.value - b.value).collect(),
                None => vec![0.0; scores.len()],
            },
            scores,
            microseconds_per_sample,
            worst_layer,
            not_compared,
        };
        self.variants.push(variant);
        Ok(())
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
                match (worst.map_or("–", |w| w.name.as_str()), variant.not_compared.len()) {
                    (name, 0) => name.to_owned(),
                    (name, n) => format!("{name}; {n} not compared"),
                }
                .into(),
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

/// The layer that is furthest from the reference, and the tensors that cannot be held against it.
fn compare_layers(
    reference: &Checkpoint,
    checkpoint: &Checkpoint,
) -> Result<(Option<WorstLayer>, Vec<NotCompared>), CheckpointError> {
    let mut worst: Option<WorstLayer> = None;
    let mut not_compared = Vec::new();
    let mut leave_out =
        |name: &str, reason: String| not_compared.push(NotCompared { name: name.to_owned(), reason });
    for entry in reference.entries() {
        let Ok(other) = checkpoint.entry(&entry.name) else {
            leave_out(&entry.name, "it is missing".into());
            continue;
        };
        if entry.shape != other.shape {
            leave_out(&entry.name, format!("shape {:?} became {:?}", entry.shape, other.shape));
            continue;
        }
        if entry.precision().is_some() != other.precision().is_some() {
            leave_out(&entry.name, format!("{} became {}", entry.describe(), other.describe()));
            continue;
        }
        if entry.precision().is_none() || entry.elements() == 0 {
            continue;
        }
        let errors = WeightErrors::between(&reference.values(&entry.name)?, &checkpoint.values(&entry.name)?);
        reference.release_entry(entry);
        checkpoint.release_entry(other);
        // NaN is worse than anything
        if errors.relative.is_nan() || errors.relative > worst.as_ref().map_or(0.0, |w| w.errors.relative) {
            worst = Some(WorstLayer { name: entry.name.clone(), errors });
        }
    }
    for other in checkpoint.entries() {
        if reference.entry(&other.name).is_err() {
            leave_out(&other.name, "the reference has no such tensor".into());
        }
    }
    Ok((worst, not_compared))
}
