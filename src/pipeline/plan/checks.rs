//! What a recipe must be right in for a checkpoint, before anything is planned.

use super::{PlannedTensor, compressible, makes_factors};
use crate::checkpoint::{Checkpoint, Entry, TensorClass};
use crate::pipeline::PipelineError;
use crate::recipe::{Decision, Recipe};

/// A step or pattern that names nothing is a mistake, most likely a misspelt name.
pub(super) fn check_matches(checkpoint: &Checkpoint, recipe: &Recipe) -> Result<(), PipelineError> {
    let entries = checkpoint.entries();
    let nothing = |what: String, hint: String| {
        Err(PipelineError::MatchesNothing { path: checkpoint.path().to_path_buf(), what, hint })
    };
    for pattern in recipe.ignored() {
        if !entries.iter().any(|e| pattern.matches(&e.name)) {
            return nothing(
                format!("ignore pattern `{pattern}`"),
                hint(pattern.to_string().as_str(), entries),
            );
        }
    }
    for (i, step) in recipe.steps().iter().enumerate() {
        if !entries.iter().any(|e| step.applies_to(&e.name, e.class) && compressible(e).is_ok()) {
            let counts: Vec<String> = TensorClass::ALL
                .into_iter()
                .map(|class| (class, entries.iter().filter(|e| e.class == class).count()))
                .filter(|(_, n)| *n > 0)
                .map(|(class, n)| format!("{n} {class}"))
                .collect();
            let hint = match counts.as_slice() {
                [] => " (there are none)".into(),
                counts => format!(" (there are: {})", counts.join(", ")),
            };
            return nothing(format!("step {} of the recipe", i + 1), hint);
        }
    }
    check_leaves_something(checkpoint, recipe)
}

/// Factors that make nothing smaller would do nothing, and look as if they had.
pub(super) fn check_factors(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    tensors: &[PlannedTensor<'_>],
) -> Result<(), PipelineError> {
    if tensors.iter().any(PlannedTensor::is_compressed) || !recipe.steps().iter().any(makes_factors) {
        return Ok(());
    }
    let named = |tensor: &&PlannedTensor<'_>| {
        matches!(recipe.decide(tensor.name(), tensor.entry().class), Ok(Decision::Apply { .. }))
    };
    match tensors.iter().find(named) {
        None => Ok(()),
        Some(tensor) => Err(PipelineError::NothingSmaller {
            path: checkpoint.path().to_path_buf(),
            tensor: tensor.name().to_owned(),
            reason: tensor.reason().to_owned(),
        }),
    }
}

/// A recipe whose tensors are all ignored would do nothing, and look as if it had.
fn check_leaves_something(checkpoint: &Checkpoint, recipe: &Recipe) -> Result<(), PipelineError> {
    let mut patterns: Vec<String> = Vec::new();
    for entry in checkpoint.entries() {
        let named = recipe.steps().iter().any(|s| s.applies_to(&entry.name, entry.class));
        if !named || compressible(entry).is_err() {
            continue;
        }
        let Decision::Ignored(pattern) = recipe.decide(&entry.name, entry.class)? else { return Ok(()) };
        let pattern = format!("`{pattern}`");
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    if patterns.is_empty() {
        return Ok(());
    }
    let (path, patterns) = (checkpoint.path().to_path_buf(), patterns.join(", "));
    Err(PipelineError::NothingLeft { path, patterns })
}

fn hint(pattern: &str, entries: &[Entry]) -> String {
    let similarity = |e: &&Entry| (strsim::jaro_winkler(pattern, e.module()) * 1e6) as u64;
    match entries.iter().max_by_key(similarity) {
        Some(entry) => format!(" (the most similar name is `{}`)", entry.module()),
        None => String::new(),
    }
}
