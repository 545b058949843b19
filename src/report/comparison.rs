use std::path::Path;

use serde::Serialize;

use super::cost::{Cost, Memory, Pricing};
use super::environment::Environment;
use super::input::InputFile;
use super::keep::{self, Keep, Verdict};
use super::layers::{self, LayerError, NotCompared};
use super::manifest::Made;
use super::metric;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::evaluate::{Better, Score};

/// Version of the JSON that a [`Comparison`] serializes to.
pub const SCHEMA: u32 = 2;

/// One checkpoint of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Variant {
    /// What it is called in the tables.
    pub name: String,
    /// Place among the variants of the one that it is compared with; `None` of a reference.
    pub reference: Option<usize>,
    /// Its safetensors files.
    pub files: Vec<InputFile>,
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
    /// What was lost of each score against the reference, in the score's unit: positive is worse. `None` where the
    /// reference has no such score.
    pub drops: Vec<Option<f64>>,
    /// What it needs to be held.
    pub memory: Memory,
    /// What running it costs, if there is a price and a score of throughput.
    pub cost: Option<Cost>,
    /// The layer that is furthest from the reference; `None` if all are exact.
    pub worst_layer: Option<LayerError>,
    /// Every tensor of floats, as it is held against the reference's; empty of a reference.
    pub layers: Vec<LayerError>,
    /// Tensors that could not be compared with the reference's.
    pub not_compared: Vec<NotCompared>,
    /// How it was made, if `tersor.json` beside it tells.
    pub made: Option<Made>,
}

impl Variant {
    /// The first score that tells how good its answers are.
    pub fn quality(&self) -> Option<&Score> {
        self.scores.iter().find(|score| !metric::is_resource(score))
    }

    /// Its score of the same task and metric.
    pub fn same(&self, score: &Score) -> Option<&Score> {
        self.scores.iter().find(|own| own.task == score.task && own.metric == score.metric)
    }

    /// What it lost of a score of its own.
    pub(super) fn drop_of(&self, score: &Score) -> Option<f64> {
        let place = self.scores.iter().position(|own| own == score)?;
        self.drops.get(place).copied().flatten()
    }
}

/// Checkpoints side by side, each compared with a reference that it was made from.
///
/// ```no_run
/// use tersor::{Checkpoint, Comparison};
///
/// let source = Checkpoint::open("fixtures/fashion-mlp")?;
/// let mut comparison = Comparison::new();
/// // what a task says of each goes where the empty lists stand
/// comparison.add_reference("source", &source, Vec::new())?;
/// comparison.add("int8", &Checkpoint::open("out-int8")?, Vec::new())?;
/// println!("{}", comparison.table());
/// std::fs::write("report.html", comparison.to_html()?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Serialize)]
pub struct Comparison<'a> {
    /// Version of this schema.
    pub schema: u32,
    /// Where and when it was made.
    pub environment: Environment,
    /// The files that the scores were measured on.
    pub data: Vec<InputFile>,
    /// What running the models is paid with, if [`price`](Self::price) was called.
    pub pricing: Option<Pricing>,
    /// The checkpoints.
    pub variants: Vec<Variant>,
    /// Which is the cheapest that is good enough, one for every reference, if [`keep`](Self::keep) was called.
    pub verdicts: Vec<Verdict>,
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
            environment: Environment::current(),
            data: Vec::new(),
            pricing: None,
            variants: Vec::new(),
            verdicts: Vec::new(),
            reference: None,
        }
    }

    /// Adds a checkpoint against which those that follow are held, with what was measured of it.
    ///
    /// # Errors
    /// When the checkpoint cannot be read.
    pub fn add_reference(
        &mut self,
        name: &str,
        checkpoint: &'a Checkpoint,
        scores: Vec<Score>,
    ) -> Result<(), CheckpointError> {
        self.reference = None;
        self.add(name, checkpoint, scores)?;
        self.reference = Some((checkpoint, self.variants.len() - 1));
        Ok(())
    }

    /// Adds a checkpoint, with what was measured of it, and compares it with the reference that was added last, one tensor
    /// at a time.
    ///
    /// # Errors
    /// When a checkpoint cannot be read, or the manifest beside it is none that tersor wrote.
    pub fn add(
        &mut self,
        name: &str,
        checkpoint: &Checkpoint,
        scores: Vec<Score>,
    ) -> Result<(), CheckpointError> {
        let (layers, not_compared) = match self.reference {
            Some((reference, _)) => layers::compare(reference, checkpoint)?,
            None => (Vec::new(), Vec::new()),
        };
        let file_bytes = checkpoint.file_bytes();
        let mut variant = Variant {
            name: name.to_owned(),
            reference: None,
            files: checkpoint.files().map(InputFile::read).collect::<Result<_, _>>()?,
            file_bytes,
            weight_bytes: layers::weight_bytes(checkpoint),
            file_ratio: 1.0,
            weight_ratio: 1.0,
            drops: vec![Some(0.0); scores.len()],
            memory: Memory::of(file_bytes, &scores),
            scores,
            cost: None,
            worst_layer: layers::worst(&layers).cloned(),
            layers,
            not_compared,
            made: Made::read(checkpoint.path())?,
        };
        if let Some((_, place)) = self.reference {
            let base = &self.variants[place];
            let ratio = |before: u64, after: u64| before as f64 / after.max(1) as f64;
            variant.reference = Some(place);
            variant.file_ratio = ratio(base.file_bytes, variant.file_bytes);
            variant.weight_ratio = ratio(base.weight_bytes, variant.weight_bytes);
            variant.drops = drops(base, &variant.scores);
        }
        self.variants.push(variant);
        Ok(())
    }

    /// Names a file that the scores were measured on.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn add_data(&mut self, path: impl AsRef<Path>) -> Result<(), CheckpointError> {
        self.data.push(InputFile::read(path)?);
        Ok(())
    }

    /// Works out what running each variant costs that has a score of throughput. To be called when all are added.
    pub fn price(&mut self, pricing: Pricing) {
        for place in 0..self.variants.len() {
            let base = self.variants[place].reference.unwrap_or(place);
            // of a reference: itself, so that it is one time as cheap and saves nothing
            let base = Cost::of(&self.variants[base].scores, &pricing, None);
            self.variants[place].cost = Cost::of(&self.variants[place].scores, &pricing, base.as_ref());
        }
        self.pricing = Some(pricing);
    }

    /// Says of each reference which of its variants is the cheapest that keeps so much of the first score of quality: by
    /// what running it costs, after [`price`](Self::price); else by its size. To be called when all are added.
    pub fn keep(&mut self, keep: Keep) {
        let verdicts = self.references().map(|(place, _)| keep::judge(self, place, keep)).collect();
        self.verdicts = verdicts;
    }

    /// The references, each with its place among the variants.
    pub fn references(&self) -> impl Iterator<Item = (usize, &Variant)> {
        self.variants.iter().enumerate().filter(|(_, variant)| variant.reference.is_none())
    }

    /// The variants that are compared with one reference, each with its place.
    pub fn variants_of(&self, reference: usize) -> impl Iterator<Item = (usize, &Variant)> {
        self.variants.iter().enumerate().filter(move |(_, variant)| variant.reference == Some(reference))
    }
}

/// What was lost of each score.
fn drops(base: &Variant, scores: &[Score]) -> Vec<Option<f64>> {
    let lost = |score: &Score| {
        let before = base.same(score)?.value;
        Some(match score.better {
            Better::Higher => before - score.value,
            Better::Lower => score.value - before,
        })
    };
    scores.iter().map(lost).collect()
}
