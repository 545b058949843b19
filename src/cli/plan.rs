use std::path::Path;

use serde_json::{Value, json};
use tersor::report::plan_table;
use tersor::{Checkpoint, OutputFormat, Plan};

use super::args::PlanArgs;
use super::output::{Output, human};
use super::{Failure, Outcome};

pub(super) fn run(args: &PlanArgs, seed: u64, output: &Output) -> Result<Outcome, Failure> {
    let checkpoint = Checkpoint::open(&args.source)?;
    let recipe = args.recipe.read()?;
    let samples = args.calibration.samples(&checkpoint, seed)?;
    let plan = args.calibration.plan(&checkpoint, &recipe, samples.as_ref(), output)?;
    if samples.is_some() && !recipe.measures_sensitivity() {
        output.note("note: nothing in this plan depends on the calibration samples");
    }
    let memory = plan.calibrated_memory(None)?;
    output.print(&to_json(&plan, memory), &plan_table(&plan), &summary(&plan, memory))?;
    Ok(Outcome::Done)
}

fn to_json(plan: &Plan<'_>, memory: u64) -> Value {
    json!({
        "source": plan.source().display().to_string(),
        "format": plan.format().to_string(),
        "bytes_before": plan.bytes_before(),
        "bytes_after": plan.bytes_after(),
        "entropy_coded": plan.is_entropy_coded(),
        "reconstruction_steps": plan.reconstruction(),
        "peak_memory": memory,
        "files": plan.output_files().map(|(name, bytes)| json!({"name": name, "bytes": bytes})).collect::<Vec<_>>(),
        "left_behind": plan.left_behind().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        "tensors": plan.tensors().iter().map(|t| json!({
            "name": t.name(),
            "class": t.entry().class.to_string(),
            "shape": t.entry().shape,
            "from": t.entry().describe(),
            "to": t.describe(),
            "compressed": t.is_compressed(),
            "methods": t.methods(),
            "reason": t.reason(),
            "layouts": t.layouts().iter().map(|(layout, bytes)| json!({"layout": layout.to_string(), "bytes": bytes})).collect::<Vec<_>>(),
            "bytes_before": t.entry().bytes,
            "bytes_after": t.bytes(),
        })).collect::<Vec<_>>(),
    })
}

fn summary(plan: &Plan<'_>, memory: u64) -> String {
    let (before, after) = (plan.bytes_before(), plan.bytes_after());
    let compressed = plan.tensors().iter().filter(|t| t.is_compressed()).count();
    // what entropy coding saves shows only in the values
    let exactly = if plan.is_entropy_coded() { "at most" } else { "exactly" };
    let mut text = format!(
        "\n{compressed} of {} tensors compressed; {} → {} ({:.2}× smaller), {exactly} {after} bytes; \
         format {}; at most {} of memory beside the mapped source",
        plan.tensors().len(),
        human(before),
        human(after),
        before as f64 / after.max(1) as f64,
        plan.format(),
        human(memory),
    );
    if let Some(steps) = plan.reconstruction() {
        text.push_str(&format!(
            "\nafter its layers, the codes and scales of every block are learned together, in {steps} steps"
        ));
    }
    for note in notes(plan) {
        text.push_str(&format!("\nnote: {note}"));
    }
    text
}

/// What a reader might not expect of the output.
pub(super) fn notes(plan: &Plan<'_>) -> Vec<String> {
    only_tersor(plan).into_iter().chain(left_behind(plan.left_behind())).collect()
}

/// Most files that a note names.
const NAMED_FILES: usize = 5;

/// Weights that the output will not have.
pub(super) fn left_behind<'p>(paths: impl ExactSizeIterator<Item = &'p Path>) -> Option<String> {
    let count = paths.len();
    let mut files: Vec<String> =
        paths.take(NAMED_FILES).map(|path| format!("`{}`", path.display())).collect();
    match count {
        0 => return None,
        n if n > NAMED_FILES => files.push(format!("{} others", n - NAMED_FILES)),
        _ => {}
    }
    Some(format!(
        "weights beside the checkpoint are left behind: {}; a model that needs them lacks them in the output",
        files.join(", ")
    ))
}

/// In a format that others load, the weights that they cannot.
fn only_tersor(plan: &Plan<'_>) -> Option<String> {
    if plan.format() != OutputFormat::CompressedTensors {
        return None;
    }
    let weights: Vec<(&str, String)> = plan.only_tersor_reads().collect();
    let (name, reason) = weights.first()?;
    let others = match weights.len() - 1 {
        0 => String::new(),
        n => format!(" and {n} others"),
    };
    Some(format!(
        "compressed-tensors has no name for `{name}`{others} ({reason}): only tersor reads the result"
    ))
}
