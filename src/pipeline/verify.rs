use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::PipelineError;
use crate::checkpoint::formats::compressed_tensors::{QuantizationConfig, is_quantized};
use crate::checkpoint::{Checkpoint, CheckpointError, Entry, MANIFEST, Stored};
use crate::evaluate::WeightErrors;
use crate::file::read_regular;
use crate::kernels::reduce;
use crate::transform::{AddedTensor, Rotation, RotationOptions};
use crate::weight::{Bits, Coding, CompressedWeight, LayoutKind, ScaleGrid, Scales};

/// What [`verify`] insists on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct VerifyOptions {
    /// Largest relative error `‖w − ŵ‖ / ‖w‖` that a tensor may have. Without it, the bound follows from the form: half a
    /// step for every kept value, where a step is that of codes spread from the tile's smallest to its largest
    /// value; the distance to the nearest value of a codebook; half a unit in the last place for floats; and whatever
    /// was pruned. Ranges that cut off more than they win (percentile, entropy) can exceed it.
    pub max_relative_error: Option<f64>,
}

/// What was found about one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// Name in the model.
    pub name: String,
    /// What it is in the output; empty when it is missing.
    pub form: String,
    /// What is wrong, if anything.
    pub failure: Option<String>,
    /// What changed its values beside rounding (transforms, bias correction, block reconstruction, distillation), by the
    /// output's manifest. Its error is
    /// then not held against a bound: whether such changes keep what the network answers shows only when it runs.
    pub changed: Option<String>,
    /// Relative error.
    pub relative_error: f64,
    /// The bound that it was held against.
    pub bound: f64,
}

/// What was found about an output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verification {
    /// The source.
    pub source: PathBuf,
    /// The output.
    pub output: PathBuf,
    /// Every tensor of either.
    pub checks: Vec<Check>,
}

impl Verification {
    /// The checks that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|c| c.failure.is_some())
    }

    /// The checks that found nothing wrong, of tensors whose values were changed on purpose.
    pub fn changed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|c| c.failure.is_none() && c.changed.is_some())
    }
}

/// Compares a compressed checkpoint with its source: names, shapes, values that must be the same, the error of every value
/// that may differ, and what `config.json` tells loaders about each weight.
///
/// What a rotation, scales, bias correction, block reconstruction or distillation [changed](Check::changed) cannot be held against the
/// source value by value: compare what the networks answer, with [`Agreement`](crate::evaluate::Agreement).
///
/// # Errors
/// When either cannot be read. What is merely wrong is in the result.
pub fn verify(
    source: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: VerifyOptions,
) -> Result<Verification, PipelineError> {
    let original = Checkpoint::open(source.as_ref())?;
    let compressed = Checkpoint::open(output.as_ref())?;
    let made = MadeOf::read(output.as_ref())?;
    let config_path = output.as_ref().join("config.json");
    let configuration = match compressed.config() {
        Some(config) => QuantizationConfig::from_config(&config_path, config)?,
        None => None,
    };
    let is_coded = compressed.entries().iter().any(Entry::is_entropy_coded);
    let misleads = |entry: &Entry| match &configuration {
        Some(configuration) => configuration.clash(entry),
        // a file by itself has no configuration; of one with coded weights no loader but tersor knows anything
        None if output.as_ref().is_file() || is_coded => None,
        None => match &entry.stored {
            Stored::Compressed(form) if is_quantized(form) && entry.name.ends_with(".weight") => {
                Some(format!("it is {form}, but config.json has no quantization_config that says so"))
            }
            _ => None,
        },
    };
    let mut checks = Vec::new();
    for entry in original.entries() {
        checks.push(match compressed.entry(&entry.name) {
            Ok(other) => {
                let mut check = check(&original, &compressed, entry, other, &made, options)?;
                check.failure = check.failure.or_else(|| misleads(other));
                check
            }
            Err(_) => failed(&entry.name, "", "it is missing from the output".into()),
        });
        original.release_entry(entry);
    }
    let surplus: Vec<&Entry> =
        compressed.entries().iter().filter(|other| original.entry(&other.name).is_err()).collect();
    let added = if surplus.is_empty() { Vec::new() } else { added_by_rotation(&original) };
    for other in surplus {
        let mut check = check_added(&compressed, other, &made, &added)?;
        check.failure = check.failure.or_else(|| misleads(other));
        checks.push(check);
    }
    Ok(Verification { source: source.as_ref().into(), output: output.as_ref().into(), checks })
}

/// What the manifest of a folder that tersor wrote says of its tensors, and nothing else tells from a fault.
#[derive(Default)]
struct MadeOf {
    /// Those that were pruned: their zeros may be stored like other values.
    pruned: BTreeSet<String>,
    /// Those that were changed, and by what.
    changed: BTreeMap<String, Vec<String>>,
}

impl MadeOf {
    fn read(output: &Path) -> Result<Self, CheckpointError> {
        #[derive(Deserialize)]
        struct Manifest {
            #[serde(default)]
            layers: Vec<Layer>,
            #[serde(default)]
            changed: BTreeMap<String, Vec<String>>,
        }
        #[derive(Deserialize)]
        struct Layer {
            name: String,
            #[serde(default)]
            pruned: bool,
        }
        let path = output.join(MANIFEST);
        let Ok(bytes) = read_regular(&path) else { return Ok(Self::default()) };
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|e| CheckpointError::config(&path, format!("is no manifest that tersor wrote: {e}")))?;
        let pruned = manifest.layers.into_iter().filter(|layer| layer.pruned).map(|layer| layer.name);
        Ok(Self { pruned: pruned.collect(), changed: manifest.changed })
    }
}

fn failed(name: &str, form: &str, failure: String) -> Check {
    Check {
        name: name.to_owned(),
        form: form.to_owned(),
        failure: Some(failure),
        changed: None,
        relative_error: f64::NAN,
        bound: f64::NAN,
    }
}

/// What a rotation of the source adds to it: a head of its own, if it had none.
fn added_by_rotation(original: &Checkpoint) -> Vec<AddedTensor> {
    // a network that cannot be rotated gets nothing
    Rotation::new(original, RotationOptions::default()).map_or_else(|_| Vec::new(), |it| it.added().to_vec())
}

/// A tensor that the source has not.
fn check_added(
    compressed: &Checkpoint,
    entry: &Entry,
    made: &MadeOf,
    added: &[AddedTensor],
) -> Result<Check, PipelineError> {
    let form = entry.describe();
    let fail = |failure: String| Ok(failed(&entry.name, &form, failure));
    let words = made.changed.get(&entry.name);
    let (Some(added), Some(words)) = (added.iter().find(|added| added.name == entry.name), words) else {
        return fail("the source has no such tensor".into());
    };
    if entry.shape != added.shape {
        return fail(format!("shape {:?} where a rotation gives {:?}", entry.shape, added.shape));
    }
    if entry.precision().is_none() {
        return fail("it is not made of floats".into());
    }
    let dense = compressed.weight(&entry.name)?.dequantize();
    if let Some(found) = reduce::first_non_finite(dense.as_slice().unwrap_or_default()) {
        return fail(format!("it holds {found}"));
    }
    Ok(Check {
        name: entry.name.clone(),
        form,
        failure: None,
        changed: Some(format!("{}, of `{}`", words.join(", "), added.like)),
        relative_error: f64::NAN,
        bound: f64::INFINITY,
    })
}

fn check(
    original: &Checkpoint,
    compressed: &Checkpoint,
    before: &Entry,
    after: &Entry,
    made: &MadeOf,
    options: VerifyOptions,
) -> Result<Check, PipelineError> {
    let form = after.describe();
    let pruned = made.pruned.contains(&before.name);
    let changed = made.changed.get(&before.name).map(|words| words.join(", "));
    let fail = |failure: String| Ok(failed(&before.name, &form, failure));
    if before.shape != after.shape {
        return fail(format!("shape {:?} became {:?}", before.shape, after.shape));
    }
    if let (Stored::Plain(a), Stored::Plain(b)) = (&before.stored, &after.stored)
        && a == b
    {
        let same = original.tensor(&before.name)?.bytes == compressed.tensor(&before.name)?.bytes;
        let (relative_error, bound) = (0.0, 0.0);
        if same {
            let name = before.name.clone();
            return Ok(Check { name, form, failure: None, changed, relative_error, bound });
        }
        if !pruned && changed.is_none() {
            return fail("it was to be copied, but its bytes differ".into());
        }
    }
    if before.precision().is_none() || after.precision().is_none() {
        return fail(format!("{} became {form}", before.describe()));
    }
    let values = original.values(&before.name)?;
    let weight = compressed.weight(&before.name)?;
    let dense = weight.dequantize();
    let dense: &[f32] = dense.as_slice().unwrap_or_default();
    if let Some(found) = reduce::first_non_finite(dense) {
        return fail(format!("it holds {found}"));
    }
    let errors = WeightErrors::between(&values, dense);
    let bound = match (&changed, options.max_relative_error) {
        (Some(_), _) => f64::INFINITY,
        (None, Some(asked)) => asked,
        (None, None) => bound(&values, &weight, pruned),
    };
    let within = errors.relative <= bound;
    Ok(Check {
        name: before.name.clone(),
        failure: (!within).then(|| format!("relative error {:.3e} is beyond {bound:.3e}", errors.relative)),
        form,
        changed,
        relative_error: errors.relative,
        bound,
    })
}

/// The largest relative error that rounding to nearest explains, and pruning if the weight was `pruned`.
fn bound(values: &[f32], weight: &CompressedWeight, pruned: bool) -> f64 {
    if weight.form().layout() == LayoutKind::Empty {
        // a product of factors is a projection of the weight, whatever the rank, and rounded
        return 1.0 + 1e-2;
    }
    let cols = weight.cols().max(1);
    let mask = weight.mask();
    let dense = weight.dequantize();
    let dense: &[f32] = dense.as_slice().unwrap_or_default();
    let kept = |i: usize| match &mask {
        Some(mask) => mask.keeps(i / cols, i % cols),
        None => !(pruned && dense[i] == 0.0),
    };
    let (mut allowed, mut norm) = (0.0f64, 0.0f64);
    let tiles = weight.form().grid().map(|grid| (grid, tiles(values, weight, grid, kept)));
    let books = sorted_books(weight);
    for (i, x) in values.iter().map(|x| f64::from(*x)).enumerate() {
        norm += x * x;
        let tile = tiles.as_ref().map(|(grid, tiles)| &tiles[grid.index(i / cols, i % cols)]);
        allowed += if kept(i) && !(tile.is_some() && dense[i] == 0.0 && x == 0.0) {
            match (tile, weight.form().coding()) {
                (Some(_), Coding::Codebook { .. }) => {
                    let grid = weight.form().grid().map_or(0, |grid| grid.index(i / cols, i % cols));
                    distance_to_nearest(&books[grid], x).powi(2)
                }
                (Some(tile), Coding::Int { .. }) => (tile.step / 2.0 + tile.cut_off(x)).powi(2),
                // e4m3: half of 2^-3 relative, or half of the smallest step
                (Some(tile), _) => ((x.abs() / 16.0).max(tile.step / 1024.0) + tile.cut_off(x)).powi(2),
                // clamping was the caller's choice, and is counted where it is done
                (None, Coding::Float(precision)) => {
                    let beyond = (x.abs() - f64::from(precision.max())).max(0.0);
                    let unit = (x.abs() * f64::from(precision.epsilon())).max(precision.smallest().0);
                    (beyond + unit / 2.0).powi(2)
                }
                (None, _) => 0.0,
            }
        } else {
            x * x
        };
    }
    // the scale is itself rounded to the model's precision; sums of squares come in another order than the error's
    let slack = 1e-9 + weight.form().coding().granularity().map_or(0.0, |_| 4.0 * scale_epsilon(weight));
    if norm == 0.0 { 0.0 } else { (allowed / norm).sqrt() * (1.0 + slack) + f64::from(f32::MIN_POSITIVE) }
}

/// The values of every codebook, ascending.
fn sorted_books(weight: &CompressedWeight) -> Vec<Vec<f64>> {
    let Some(books) = weight.codebooks() else { return Vec::new() };
    let sorted = |book: &[f32]| {
        let mut book: Vec<f64> = book.iter().map(|x| f64::from(*x)).collect();
        book.sort_by(f64::total_cmp);
        book
    };
    books.values().chunks(books.bits().entries()).map(sorted).collect()
}

fn distance_to_nearest(ascending: &[f64], x: f64) -> f64 {
    let above = ascending.partition_point(|value| *value < x);
    let nearest = ascending[above.saturating_sub(1)..(above + 1).min(ascending.len())].iter();
    nearest.map(|value| (value - x).abs()).fold(f64::INFINITY, f64::min)
}

fn scale_epsilon(weight: &CompressedWeight) -> f64 {
    f64::from(crate::checkpoint::formats::precision_of(weight.form().coding()).epsilon())
}

/// What rounding to nearest may do to the values of one tile.
struct Tile {
    /// Distance of neighbouring codes.
    step: f64,
    /// Width of the range of codes that a scale too small to be precise may lose.
    lost: f64,
    /// Rounding of such a scale's multiples.
    rounding: f64,
}

impl Tile {
    /// Most that a value may lose because the codes end before it does.
    fn cut_off(&self, x: f64) -> f64 {
        x.abs().min(self.lost) + self.rounding
    }
}

/// The tiles of a weight, with the step of codes spread from the smallest to the largest kept value of each; or, with zero
/// points, spread evenly on both sides of 0, as some ranges are: then the stored scale tells.
fn tiles(
    values: &[f32],
    weight: &CompressedWeight,
    grid: ScaleGrid,
    kept: impl Fn(usize) -> bool,
) -> Vec<Tile> {
    let cols = weight.cols().max(1);
    let mut ranges = vec![(0f64, 0f64); grid.len()];
    for (i, x) in values.iter().enumerate().filter(|(i, _)| kept(*i)) {
        let range = &mut ranges[grid.index(i / cols, i % cols)];
        *range = (range.0.min(f64::from(*x)), range.1.max(f64::from(*x)));
    }
    let coding = weight.form().coding();
    let (smallest, normal) = crate::checkpoint::formats::precision_of(coding).smallest();
    let codes = |bits: Bits| f64::from(bits.range().1 - bits.range().0);
    let scales = weight.scales().map(Scales::scales).unwrap_or_default();
    ranges
        .into_iter()
        .enumerate()
        .map(|(i, (min, max))| {
            let largest = max.max(-min);
            let (step, width) = match coding {
                Coding::Int { bits, symmetric: true, .. } => (2.0 * largest / codes(bits), largest),
                Coding::Int { bits, symmetric: false, .. } => {
                    let (tight, even) = ((max - min) / codes(bits), 2.0 * largest / codes(bits));
                    let step = scales.get(i).map_or(tight, |s| f64::from(*s)).clamp(tight, even);
                    (step, step * codes(bits))
                }
                _ => (largest / 448.0, largest),
            };
            // a subnormal scale is off by up to half of the smallest number, which may be much of it
            let off = if step > 0.0 && step < normal { smallest / 2.0 } else { 0.0 };
            let lost = if off > 0.0 { width * (off / step).min(1.0) } else { 0.0 };
            Tile { step: step + off, lost, rounding: off }
        })
        .collect()
}
