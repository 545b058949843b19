//! What a recipe consists of on the command line.

use std::io::Read;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tersor::recipe::{Criterion, Rounding, Transform, preset_names};
use tersor::{Allocation, Damping, Observer, OutputFormat, Overflow, PresetOptions, Recipe};

use super::names_help;
use crate::cli::Failure;

#[derive(Args)]
pub(in crate::cli) struct RecipeArgs {
    /// Presets joined by `+`
    #[arg(long, value_name = "NAME", required_unless_present_any = ["recipe", "entropy"], long_help = preset_help())]
    pub(in crate::cli) preset: Option<String>,
    /// A recipe in TOML
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    pub(in crate::cli) recipe: Option<PathBuf>,
    /// Columns that share a scale or codebook, for presets with codes
    #[arg(long, value_name = "N", conflicts_with = "recipe", requires = "preset")]
    pub(in crate::cli) group_size: Option<NonZeroUsize>,
    /// How the codes of integer presets are chosen
    #[arg(long, value_name = "NAME", conflicts_with = "recipe", requires = "preset", long_help = names_help("How the codes of integer presets are chosen:", &Rounding::NAMES))]
    pub(in crate::cli) method: Option<String>,
    /// How presets with scales find the ranges of their codes
    #[arg(long, value_name = "NAME", conflicts_with = "recipe", requires = "preset", long_help = names_help("How presets with scales find the ranges of their codes:", &Observer::NAMES))]
    pub(in crate::cli) observer: Option<String>,
    /// How much less counts what different inputs have in common, from 0 to below 1, for GPTQ, SparseGPT and OBC; 0.2 serves where
    /// the samples are few, or of another kind than what the network will see
    #[arg(long, value_name = "ALPHA", conflicts_with = "recipe", requires = "preset")]
    pub(in crate::cli) shrinkage: Option<f64>,
    /// How it is chosen which weights presets drop
    #[arg(long, value_name = "NAME", conflicts_with = "recipe", requires = "preset", long_help = names_help("How it is chosen which weights presets drop:", &Criterion::NAMES))]
    pub(in crate::cli) pruning: Option<String>,
    /// How the sparsity of a preset is spread over the layers
    #[arg(long, value_name = "NAME", conflicts_with = "recipe", requires = "preset", long_help = names_help("How the sparsity of a preset is spread over the layers:", &Allocation::NAMES))]
    pub(in crate::cli) allocation: Option<String>,
    /// Change the whole model before, without changing what it computes; repeatable
    #[arg(long, value_name = "NAME", long_help = names_help("Change the whole model before, without changing what it computes; repeatable:", &Transform::NAMES))]
    pub(in crate::cli) transform: Vec<String>,
    /// After its layers, learn the codes and scales of a whole block together, in so many steps of two samples; for decoders, needs
    /// calibration
    #[arg(long, value_name = "STEPS")]
    pub(in crate::cli) reconstruct: Option<NonZeroUsize>,
    /// Let the layers' biases make up for what quantization does to their mean output; needs calibration
    #[arg(long)]
    pub(in crate::cli) bias_correction: bool,
    /// Leave these tensors as they are: a name with `*` and `?`, or `re:` and a regular expression; repeatable
    #[arg(long, value_name = "PATTERN")]
    pub(in crate::cli) ignore: Vec<String>,
    /// How the output is written; by default compressed-tensors if config.json names `architectures`, else tersor
    #[arg(long, value_name = "FORMAT")]
    pub(in crate::cli) format: Option<Format>,
    /// As a last step, write codes, positions and floats in as few bits as their frequencies allow; only tersor reads that
    #[arg(long)]
    pub(in crate::cli) entropy: bool,
    /// What happens to values beyond the largest f16 or bf16, for presets that convert; by default refuse
    #[arg(long, value_name = "WHAT", conflicts_with = "recipe", requires = "preset")]
    pub(in crate::cli) overflow: Option<OverflowChoice>,
}

fn preset_help() -> String {
    let mut help = "Presets joined by `+`, such as `2:4+int8`:\n".to_owned();
    for (name, what) in preset_names() {
        help.push_str(&format!("  {name:<10} {what}\n"));
    }
    help.push_str(
        "Integer presets also exist with zero points, such as `int4-asym`; codebooks weighted by the layers' inputs, with \
         calibration, such as `codebook4-weighted`.",
    );
    help
}

#[derive(Clone, Copy, ValueEnum)]
pub(in crate::cli) enum Format {
    /// What vLLM and transformers load
    CompressedTensors,
    /// The same where it has a name, and tersor's own tensors for everything else
    Tersor,
}

#[derive(Clone, Copy, ValueEnum)]
pub(in crate::cli) enum OverflowChoice {
    /// Refuse the tensor
    Refuse,
    /// Set them to the largest finite value, and count them
    Clamp,
}

impl RecipeArgs {
    fn rounding_and_criterion(&self) -> Result<(Rounding, Criterion), Failure> {
        let rounding = self.method.as_deref().map(Rounding::from_name).transpose()?.unwrap_or_default();
        let criterion = self.pruning.as_deref().map(Criterion::from_name).transpose()?.unwrap_or_default();
        let Some(shrinkage) = self.shrinkage else { return Ok((rounding, criterion)) };
        if !(0.0..1.0).contains(&shrinkage) {
            return Err(format!("--shrinkage {shrinkage}: must be from 0 to below 1").into());
        }
        let damping = Damping::default().shrinkage(shrinkage);
        match (rounding.damped(damping), criterion.damped(damping)) {
            (None, None) => {
                Err("--shrinkage is for what goes by the inputs' products: add `--method gptq` or \
                                 `gptq-act-order`, or `--pruning sparsegpt` or `obc`"
                    .into())
            }
            (rounded, chosen) => Ok((rounded.unwrap_or(rounding), chosen.unwrap_or(criterion))),
        }
    }

    pub(in crate::cli) fn read(&self) -> Result<Recipe, Failure> {
        let format = self.format.map(|f| match f {
            Format::CompressedTensors => OutputFormat::CompressedTensors,
            Format::Tersor => OutputFormat::Tersor,
        });
        let mut recipe = if let Some(path) = &self.recipe {
            let mut text = String::new();
            tersor::open_regular(path)
                .and_then(|mut file| file.read_to_string(&mut text))
                .map_err(|e| format!("{}: cannot read: {e}", path.display()))?;
            Recipe::from_toml(&text).map_err(|e| format!("{}: {e}", path.display()))?
        } else {
            let overflow = match self.overflow {
                None | Some(OverflowChoice::Refuse) => Overflow::Refuse,
                Some(OverflowChoice::Clamp) => Overflow::Clamp,
            };
            let (rounding, criterion) = self.rounding_and_criterion()?;
            let observer = self.observer.as_deref().map(Observer::from_name).transpose()?.unwrap_or_default();
            let allocation = self.allocation.as_deref().map(Allocation::from_name).transpose()?.flatten();
            let group_size = self.group_size;
            let options =
                PresetOptions { group_size, overflow, format, rounding, observer, criterion, allocation };
            match self.preset.as_deref() {
                Some(names) => Recipe::preset(names, options)?,
                // what is there, only entropy coded
                None => Recipe::new(),
            }
        };
        if self.entropy {
            recipe = recipe.entropy(true);
        }
        if let Some(format) = format {
            recipe = recipe.format(format);
        }
        for pattern in &self.ignore {
            recipe = recipe.ignore(pattern)?;
        }
        for name in &self.transform {
            recipe = recipe.transform(Transform::from_name(name)?);
        }
        if let Some(steps) = self.reconstruct {
            recipe = recipe.reconstruct(steps);
        }
        if self.bias_correction {
            recipe = recipe.correct_biases(true);
        }
        Ok(recipe)
    }
}
