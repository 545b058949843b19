//! Recipes: which layer gets what.
//!
//! A [`Recipe`] is a list of [`Step`]s. Each names tensors, by class and by name, and prunes, quantizes or factorizes them.
//! Recipes come from [presets](Recipe::preset) (`"int8"`, `"2:4+int4"`), from [TOML](Recipe::from_toml), or are built in code:
//!
//! ```
//! use tersor::{Bits, Magnitude, Recipe, RoundToNearest, Sparsity, Step};
//!
//! let recipe = Recipe::new()
//!     .step(Step::prune(Magnitude::Unstructured(Sparsity::new(0.5)?)))
//!     .step(Step::quantize(RoundToNearest::int(Bits::new(8).unwrap())))
//!     // of the steps that name a tensor, the last wins: the output layer keeps more bits
//!     .step(Step::quantize(RoundToNearest::f8_e4m3()).names(["fc3"])?)
//!     .ignore("*.embed_tokens")?;
//! assert_eq!(recipe.steps().len(), 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Recipes in TOML
//!
//! ```toml
//! format = "compressed-tensors"       # or "tersor"; by default judged from the source
//! ignore = ["lm_head", "re:.*router"] # patterns, each of which must name a tensor
//!
//! [[step]]                            # steps in order; of those that name a tensor the last of a kind wins
//! classes = ["linear"]                # linear, conv, embedding, norm, bias, other; by default linear and conv
//! names = ["model.layers.*"]          # by default all
//! prune = { method = "magnitude", sparsity = 0.5, scope = "layer" }
//!
//! [[step]]
//! quantize = { type = "int", bits = 4, group_size = 64, observer = "mse" }
//! ```
//!
//! * `prune`: `method` is `magnitude`, `wanda`, `sparsegpt` or `obc` (these with `damping` and `shrinkage`), each with `sparsity` and `scope`
//!   (`layer`, the default; `global`; `erk`, by shape; `sensitivity`) or with `pattern = "2:4"`; `n:m` with `pattern`, which is
//!   magnitude, too; or `rows` or `columns` with `sparsity`. `wanda`, `sparsegpt` and `obc` need
//!   [calibration](crate::Calibration); `sparsegpt` before `gptq` is done jointly with it. `layout` is `smallest` (the default), `dense`, `bitmask`, `rows` or, with a `pattern`, `n:m`.
//! * `quantize`: `type` is `int` (the default) with `bits` and `symmetric`, `f8_e4m3`, or `f16` and `bf16` with `overflow`
//!   (`refuse`, `clamp`). Codes have a `strategy`: `tensor`, `channel` (the default), `group` with `group_size`, or `block`
//!   with `block = [rows, cols]`; and an `observer`: `min_max` (the default), `abs_max`, `percentile` with `percentile`,
//!   `mse` or `entropy`. Integers have a `method`: `nearest` (the default), `gptq` with `act_order`, `damping` and
//!   `shrinkage`, `clip`, `hqq`,
//!   or `autoround` with `iterations`; all but the first and `hqq` need [calibration](crate::Calibration).
//!   With `activations`, the layers' inputs are rounded to 8 bits too: `dynamic`, every token with its
//!   own scale, or `static`, with one scale that calibration finds by an `activation_observer` (as `observer`, with
//!   `activation_percentile`); `activation_symmetric` is whether they have no zero points, as by default.
//!   Type `codebook` has `bits` from 1 to 8, a `strategy` as above, an `importance`, `equal` (the default) or `inputs`, which needs
//!   calibration, and a `start`: `optimal` (the default), `linear`, `density` or `random` with a `seed`.
//!   Any type of codes has a `correction`: two factors added to the weight, which make good what quantization lost, with `rank`,
//!   `dtype` (`f16` by default) and `importance` as below.
//! * `low_rank`, in place of `quantize`: two factors in the place of a weight where they take fewer bytes. It has `rank`, or `energy`,
//!   the share of the sum of squares that is kept, or `bytes`, the share of the dense weight's bytes that is taken; `dtype`, `f32`,
//!   `f16`, `bf16` or `int2` to `int8`, by default that of the model; and an `importance`, `equal` (the default) or `inputs`, which needs
//!   calibration.
//! * `entropy = true`, beside `format`, writes every tensor without the redundancy of its codes and positions where that is
//!   smaller; only tersor reads such files. It can stand without any step.
//! * `transforms = ["rotate", "awq"]`, beside `format`, changes the whole model before: `rotate`, `smooth`, `smooth=0.6`,
//!   `smooth=search` or `awq`.
//! * `reconstruct = 64`, beside `format`, learns the codes and scales of all integer layers of a block together, in so many steps, after
//!   each of them was quantized; for decoders, with [calibration](crate::Calibration).
//! * `bias_correction = true`, beside `format`, lets biases make up for what quantization does to the mean of their layers' output.

mod criterion;
mod error;
mod pattern;
mod preset;
mod rounding;
mod step;
mod toml;
mod transform;

pub use criterion::Criterion;
pub use error::RecipeError;
pub use pattern::Pattern;
pub use preset::{PresetOptions, preset_names};
pub use rounding::Rounding;
pub(crate) use step::Written;
pub use step::{Action, InputQuantization, LayoutChoice, Prune, Selection, Step};
pub use transform::Transform;

use std::num::NonZeroUsize;

use crate::checkpoint::TensorClass;
use crate::prune::Allocation;

/// How the output is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// `compressed-tensors`: what vLLM and transformers load. Sparse layouts, for which it has no name, are written as
    /// tersor's own tensors; a quantized weight that it cannot hold is an error.
    CompressedTensors,
    /// The same where `compressed-tensors` has a name, and tersor's own tensors for everything else, such as
    /// ragged groups and quantized convolutions.
    Tersor,
}

impl std::fmt::Display for OutputFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::CompressedTensors => "compressed-tensors",
            Self::Tersor => "tersor",
        })
    }
}

/// Which layer gets what.
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    steps: Vec<Step>,
    ignore: Vec<Pattern>,
    /// Conventional exceptions, which need not match anything, of the steps that spare them.
    usual_ignore: Vec<Pattern>,
    format: Option<OutputFormat>,
    entropy: bool,
    transforms: Vec<Transform>,
    corrects_biases: bool,
    reconstruction: Option<NonZeroUsize>,
}

/// What a recipe does to one tensor.
#[derive(Debug, Clone)]
pub(crate) enum Decision<'a> {
    /// An ignore pattern names it.
    Ignored(&'a Pattern),
    /// No step names it.
    NotNamed,
    /// Numbers of the steps, counted from 0.
    Apply { prune: Option<(usize, &'a Prune)>, written: Option<(usize, Written<'a>)> },
}

impl Recipe {
    /// A recipe that does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a step.
    #[must_use]
    pub fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Leaves the tensors alone that a pattern names; it must name at least one when the recipe is planned.
    ///
    /// # Errors
    /// When the pattern is no valid regular expression.
    pub fn ignore(mut self, pattern: &str) -> Result<Self, RecipeError> {
        self.ignore.push(Pattern::new(pattern)?);
        Ok(self)
    }

    /// Chooses the output format. Without a choice, a source whose `config.json` names its `architectures` is written as
    /// [`OutputFormat::CompressedTensors`] unless there are codebooks or entropy-coded tensors, any other as
    /// [`OutputFormat::Tersor`].
    #[must_use]
    pub fn format(mut self, format: OutputFormat) -> Self {
        self.format = Some(format);
        self
    }

    /// Chooses whether, as a last step that loses nothing, codes, positions and floats are written in as few bits as their
    /// frequencies allow. Only tersor reads such files; a tensor that would not become smaller is written as it is.
    #[must_use]
    pub fn entropy(self, entropy: bool) -> Self {
        Self { entropy, ..self }
    }

    /// Whether the output is entropy coded.
    pub fn is_entropy_coded(&self) -> bool {
        self.entropy
    }

    /// Appends a transform of the whole model, made before the steps.
    #[must_use]
    pub fn transform(mut self, transform: Transform) -> Self {
        self.transforms.push(transform);
        self
    }

    /// Chooses whether the biases of the layers in the network's blocks, where they have some, make up for what quantization
    /// does to the mean of their output, as [`bias_correction`](crate::bias_correction) says; this needs calibration.
    #[must_use]
    pub fn correct_biases(self, corrects_biases: bool) -> Self {
        Self { corrects_biases, ..self }
    }

    /// Whether biases make up for what quantization does to the mean of the layers' output.
    pub fn corrects_biases(&self) -> bool {
        self.corrects_biases
    }

    /// Chooses whether, after its layers, every block of a decoder is reconstructed in so many steps: the codes and scales of all its
    /// integer layers are learned together, by descent along the gradient of what the block gives, from what the layers' methods found.
    /// This needs calibration.
    ///
    /// A step takes two samples; 64 go once through 128. Where the block, run as it is stored, is no nearer afterwards to what it gave
    /// before anything was compressed, its layers stay as they were found, and their rows say so. This is measured on up to 32 of the
    /// samples themselves: many steps on few samples fit to these. Activations are floats while layers learn, also where they will be
    /// quantized. Layers must see [what compressed ones give](crate::pipeline::BlockInputs::Compressed).
    ///
    /// Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction" (2021); what is learned, and how, as
    /// in the block-wise training of Chen et al., "`EfficientQAT`" (2024).
    #[must_use]
    pub fn reconstruct(self, steps: NonZeroUsize) -> Self {
        Self { reconstruction: Some(steps), ..self }
    }

    /// In how many steps blocks are reconstructed, if they are.
    pub fn reconstruction(&self) -> Option<NonZeroUsize> {
        self.reconstruction
    }

    /// The transforms, in order.
    pub fn transforms(&self) -> &[Transform] {
        &self.transforms
    }

    /// The steps.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether a step spreads its sparsity by what pruning costs each layer, which calibration can measure:
    /// [`Plan::calibrated`](crate::Plan::calibrated).
    pub fn measures_sensitivity(&self) -> bool {
        self.steps.iter().any(|step| match step.action() {
            Action::Prune(prune) => {
                matches!(prune.selection, Selection::Allocated(_, Allocation::Sensitivity))
            }
            Action::Quantize(_) | Action::Factorize(_) => false,
        })
    }

    /// The output format, if one was chosen.
    pub fn output_format(&self) -> Option<OutputFormat> {
        self.format
    }

    /// The patterns that must name something.
    pub(crate) fn ignored(&self) -> &[Pattern] {
        &self.ignore
    }

    /// What happens to a tensor: of the pruning steps that name it the last, and of those that quantize or factorize the
    /// last.
    ///
    /// # Errors
    /// When the pruning step stands behind the quantizing one, or the tensor is to be pruned and factorized.
    pub(crate) fn decide(&self, name: &str, class: TensorClass) -> Result<Decision<'_>, RecipeError> {
        if let Some(pattern) = self.ignore.iter().find(|p| p.matches(name)) {
            return Ok(Decision::Ignored(pattern));
        }
        let usual = self.usual_ignore.iter().find(|p| p.matches(name));
        let mut spared = None;
        let (mut prune, mut written) = (None, None);
        for (i, step) in self.steps.iter().enumerate().filter(|(_, s)| s.applies_to(name, class)) {
            if let (true, Some(pattern)) = (step.spares_usual(), usual) {
                spared = Some(pattern);
                continue;
            }
            match step.action() {
                Action::Prune(action) => prune = Some((i, action)),
                Action::Quantize(method) => written = Some((i, Written::Quantized(method.as_ref()))),
                Action::Factorize(factorize) => written = Some((i, Written::Factorized(*factorize))),
            }
        }
        match (prune, written) {
            (None, None) => Ok(spared.map_or(Decision::NotNamed, Decision::Ignored)),
            (Some((p, _)), Some((f, Written::Factorized(_)))) => Err(RecipeError::PruneAndFactorize {
                tensor: name.to_owned(),
                prune: p + 1,
                factorize: f + 1,
            }),
            (Some((p, _)), Some((q, _))) if p > q => Err(RecipeError::PruneAfterQuantize {
                tensor: name.to_owned(),
                prune: p + 1,
                quantize: q + 1,
            }),
            _ => Ok(Decision::Apply { prune, written }),
        }
    }
}
