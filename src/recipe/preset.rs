use std::num::NonZeroUsize;
use std::sync::Arc;

use super::{
    Criterion, InputQuantization, OutputFormat, Pattern, Prune, Recipe, RecipeError, Rounding, Step,
};
use crate::checkpoint::TensorClass;
use crate::dtype::Precision;
use crate::factorize::{Corrected, Factorize, Rank};
use crate::layer::Method;
use crate::prune::{Allocation, Sparsity, SparsityPattern};
use crate::quantize::{CodeType, FloatCast, KMeans, Observer, Overflow, ValueImportance};
use crate::weight::{Bits, CodebookBits, Granularity, NofM};

/// Group size of integer presets of fewer than 8 bits, as in `compressed-tensors`' own W4A16.
const DEFAULT_GROUP: NonZeroUsize = NonZeroUsize::new(128).unwrap();

/// What presets leave alone: the output layer, whose errors are the output's, and the small layers that choose experts.
const USUAL_IGNORE: [&str; 5] = ["*lm_head", "*embed_out", "*.gate", "*.shared_expert_gate", "*.router"];

/// Presets by name, and what they do.
const PRESETS: [(&str, &str); 18] = [
    ("fp16", "every float tensor to f16"),
    ("bf16", "every float tensor to bf16"),
    ("fp8", "e4m3 codes, one scale a channel"),
    ("int8", "8-bit integers, one scale a channel"),
    ("w8a8", "8-bit integers, one scale a channel; inputs too, one scale a token"),
    ("w8a8-static", "the same, with one scale for all inputs of a layer, from calibration"),
    ("int7", "7-bit integers, groups of 128"),
    ("int6", "6-bit integers, groups of 128"),
    ("int5", "5-bit integers, groups of 128"),
    ("int4", "4-bit integers, groups of 128"),
    ("int3", "3-bit integers, groups of 128"),
    ("int2", "2-bit integers, groups of 128"),
    ("codebook4", "4-bit codes, one codebook a channel, by k-means; also codebook1 to codebook8"),
    (
        "rank64",
        "two factors of rank 64 in the place of each weight; beside codes, as in int4+rank32, added to them",
    ),
    ("rank70%", "factors of the rank that takes 70 % of the bytes"),
    ("N:M", "keep the N largest of every M neighbours, such as 2:4"),
    ("S%", "drop the smallest S percent of each layer, such as 50%"),
    ("S%-global", "drop the smallest S percent of all layers together"),
];

/// The presets: name and what each does. Integer presets also exist with `-asym` for zero points, codebook presets with
/// `-weighted` for centroids weighted by the layer's inputs, from calibration, and presets of ranks with `-weighted` for the factors
/// that are best for the layer's output.
pub fn preset_names() -> impl Iterator<Item = (&'static str, &'static str)> {
    PRESETS.into_iter()
}

/// What adjusts a preset.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PresetOptions {
    /// Columns that share a scale or codebook.
    pub group_size: Option<NonZeroUsize>,
    /// What happens to values beyond the largest f16 or bf16.
    pub overflow: Overflow,
    /// The output format.
    pub format: Option<OutputFormat>,
    /// How integer codes are chosen.
    pub rounding: Rounding,
    /// How the ranges of codes are found, where the rounding does not find them itself.
    pub observer: Observer,
    /// How it is chosen which weights are dropped.
    pub criterion: Criterion,
    /// How a sparsity is spread over the layers; `None`: every layer has the same.
    pub allocation: Option<Allocation>,
}

impl Recipe {
    /// A recipe from preset names joined by `+`: at most one that prunes, then at most one that quantizes, and
    /// at most one of a rank, which adds factors to what is quantized, or else puts them in the place of the weights.
    ///
    /// Presets name linear and convolution weights, and leave an output layer called `lm_head` or `embed_out` and the routers of experts
    /// (`gate`, `router`) as they are; `fp16` and `bf16` convert every float tensor, also what another preset beside them
    /// leaves alone: `2:4+fp16` converts `lm_head` and does not prune it.
    ///
    /// ```
    /// use tersor::{PresetOptions, Recipe};
    ///
    /// let recipe = Recipe::preset("2:4+int8", PresetOptions::default())?;
    /// assert_eq!(recipe.steps().len(), 2);
    /// let error = Recipe::preset("int9", PresetOptions::default()).unwrap_err();
    /// assert!(error.to_string().contains("did you mean `int"));
    /// # Ok::<(), tersor::RecipeError>(())
    /// ```
    ///
    /// # Errors
    /// When a name is unknown, or options do not fit the preset.
    pub fn preset(names: &str, options: PresetOptions) -> Result<Self, RecipeError> {
        let mut recipe = Self { format: options.format, ..Self::default() };
        let (mut prunes, mut quantizes, mut grouped, mut converts) = (0, 0, false, false);
        let mut has_books = false;
        let mut ranks = Vec::new();
        for name in names.split('+').map(str::trim) {
            if let Some(rank) = rank(name)? {
                ranks.push(rank);
                continue;
            }
            let (step, all) = if let Some(prune) = pruning(name, options)? {
                prunes += 1;
                (Step::prune(prune), false)
            } else if let Some(precision) = float(name) {
                quantizes += 1;
                let cast = FloatCast::to(precision).overflow(options.overflow);
                (Step::quantize(cast).classes(TensorClass::ALL), true)
            } else if let Some((codes, inputs)) =
                inputs(name).or_else(|| codes(name).map(|codes| (codes, None)))
            {
                quantizes += 1;
                let granularity = match (codes, options.group_size) {
                    (_, Some(size)) => Granularity::Group(size),
                    (CodeType::Int { bits, .. }, None) if bits.get() < 8 => Granularity::Group(DEFAULT_GROUP),
                    _ => Granularity::Channel,
                };
                grouped = true;
                let step = options.rounding.step(name, codes, granularity, options.observer)?;
                (if let Some(inputs) = inputs { step.inputs(inputs) } else { step }, false)
            } else if let Some(kmeans) = codebook(name) {
                quantizes += 1;
                has_books = true;
                let granularity = options.group_size.map_or(Granularity::Channel, Granularity::Group);
                (Step::quantize(kmeans.granularity(granularity)), false)
            } else {
                return Err(RecipeError::unknown_name("preset", name, &PRESETS.map(|(name, _)| name)));
            };
            converts |= all;
            recipe.steps.push(if all { step } else { step.sparing_usual() });
        }
        recipe.usual_ignore = USUAL_IGNORE.into_iter().map(Pattern::new).collect::<Result<_, _>>()?;
        if prunes > 1 || quantizes > 1 {
            let reason = "at most one preset may prune and one quantize";
            return Err(RecipeError::value(format!("preset `{names}`"), reason));
        }
        if prunes == 1 && quantizes == 1 {
            // written in either order, pruning comes first
            recipe.steps.sort_by_key(|s| !matches!(s.action(), super::Action::Prune(_)));
        }
        if let Some((factors, _)) = ranks.split_first() {
            let place = format!("preset `{names}`");
            recipe = match (ranks.len(), prunes, quantizes, factors.size) {
                (1, 0, 0, _) => recipe.step(Step::factorize(factors.factorize()?).sparing_usual()),
                (1, _, 1, RankSize::Fixed(rank)) if !converts => {
                    let step =
                        recipe.steps.pop().map(|step| step.corrected(|method| factors.correct(method, rank)));
                    recipe.steps.extend(step);
                    recipe
                }
                (1, _, 1, RankSize::Share(_)) if !converts => {
                    let reason = "factors beside codes have a rank, such as rank32";
                    return Err(RecipeError::value(place, reason));
                }
                _ => {
                    let reason =
                        "a rank stands alone, or once beside a preset with codes, such as int4+rank32";
                    return Err(RecipeError::value(place, reason));
                }
            };
        }
        if options.group_size.is_some() && !grouped && !has_books {
            let reason = "a group size needs a preset with scales, such as int4";
            return Err(RecipeError::value(format!("preset `{names}`"), reason));
        }
        if options.rounding != Rounding::Nearest && !grouped {
            let reason = "a method needs a preset with integer codes, such as int4";
            return Err(RecipeError::value(format!("preset `{names}`"), reason));
        }
        if options.observer != Observer::MinMax && !grouped {
            let reason = "an observer needs a preset with scales, such as int4";
            return Err(RecipeError::value(format!("preset `{names}`"), reason));
        }
        if (options.criterion != Criterion::Magnitude || options.allocation.is_some()) && prunes == 0 {
            let reason = "how weights are pruned needs a preset that prunes, such as 50% or 2:4";
            return Err(RecipeError::value(format!("preset `{names}`"), reason));
        }
        if options.overflow != Overflow::Refuse && !converts {
            let reason =
                "clamping on overflow needs a preset that converts, fp16 or bf16; no other can overflow";
            return Err(RecipeError::value(format!("preset `{names}`"), reason));
        }
        Ok(recipe)
    }
}

fn float(name: &str) -> Option<Precision> {
    match name {
        "fp16" | "f16" => Some(Precision::F16),
        "bf16" => Some(Precision::Bf16),
        _ => None,
    }
}

fn codes(name: &str) -> Option<CodeType> {
    if name == "fp8" {
        return Some(CodeType::F8E4M3);
    }
    let digits = name.strip_prefix("int")?;
    let (digits, symmetric) = digits.strip_suffix("-asym").map_or((digits, true), |d| (d, false));
    Some(CodeType::Int { bits: Bits::new(digits.parse().ok()?)?, symmetric })
}

/// Presets that quantize inputs too.
fn inputs(name: &str) -> Option<(CodeType, Option<InputQuantization>)> {
    let inputs = match name {
        "w8a8" => InputQuantization::Dynamic { symmetric: true },
        "w8a8-static" => InputQuantization::Static { symmetric: false, observer: Observer::MinMax },
        _ => return None,
    };
    Some((CodeType::Int { bits: Bits::new(8)?, symmetric: true }, Some(inputs)))
}

/// Presets that make codebooks.
fn codebook(name: &str) -> Option<KMeans> {
    let digits = name.strip_prefix("codebook")?;
    let (digits, importance) = digits
        .strip_suffix("-weighted")
        .map_or((digits, ValueImportance::Equal), |d| (d, ValueImportance::Inputs));
    Some(KMeans::new(CodebookBits::new(digits.parse().ok()?)?).importance(importance))
}

/// What a preset says of factors.
#[derive(Debug, Clone, Copy)]
struct Factors {
    size: RankSize,
    importance: ValueImportance,
}

#[derive(Debug, Clone, Copy)]
enum RankSize {
    Fixed(NonZeroUsize),
    /// Of the bytes.
    Share(f64),
}

impl Factors {
    fn factorize(self) -> Result<Factorize, RecipeError> {
        let rank = match self.size {
            RankSize::Fixed(rank) => Rank::fixed(rank),
            RankSize::Share(share) => Rank::bytes(share)?,
        };
        Ok(Factorize::new(rank).importance(self.importance))
    }

    fn correct(self, method: Arc<dyn Method>, rank: NonZeroUsize) -> Corrected {
        Corrected::of(method, rank).importance(self.importance)
    }
}

/// Presets of factors.
fn rank(name: &str) -> Result<Option<Factors>, RecipeError> {
    let Some(size) = name.strip_prefix("rank") else { return Ok(None) };
    let (size, importance) = size
        .strip_suffix("-weighted")
        .map_or((size, ValueImportance::Equal), |size| (size, ValueImportance::Inputs));
    let wrong = || {
        RecipeError::value(format!("preset `{name}`"), "a rank is a number above 0, or a percentage of bytes")
    };
    let size = match size.strip_suffix('%') {
        Some(percent) => RankSize::Share(percent.parse::<f64>().map_err(|_| wrong())? / 100.0),
        None => RankSize::Fixed(size.parse().map_err(|_| wrong())?),
    };
    Ok(Some(Factors { size, importance }))
}

fn pruning(name: &str, options: PresetOptions) -> Result<Option<Prune>, RecipeError> {
    let place = format!("preset `{name}`");
    let (pattern, allocation) = if let Some((n, m)) = name.split_once(':') {
        (SparsityPattern::NofM(n_of_m(n, m, name)?), options.allocation)
    } else {
        let (percent, global) = name.strip_suffix("-global").map_or((name, false), |p| (p, true));
        let Some(percent) = percent.strip_suffix('%') else { return Ok(None) };
        let value: f64 =
            percent.parse().map_err(|_| RecipeError::value(&place, format!("`{percent}` is no number")))?;
        let allocation = match (global, options.allocation) {
            (true, Some(allocation @ (Allocation::ErdosRenyiKernel | Allocation::Sensitivity))) => {
                return Err(RecipeError::value(&place, format!("is spread globally, not {allocation}")));
            }
            (true, _) => Some(Allocation::Global),
            (false, allocation) => allocation,
        };
        (SparsityPattern::Unstructured(Sparsity::new(value / 100.0)?), allocation)
    };
    Ok(Some(options.criterion.selection(&place, pattern, allocation)?.into()))
}

pub(super) fn n_of_m(n: &str, m: &str, name: &str) -> Result<NofM, RecipeError> {
    let parse = || NofM::new(n.trim().parse().ok()?, m.trim().parse().ok()?);
    parse().ok_or_else(|| RecipeError::value(format!("pattern `{name}`"), "N:M needs 1 ≤ N ≤ M ≤ 16"))
}
