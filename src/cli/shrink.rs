use serde_json::{Value, json};
use tersor::pipeline::{Shrink, ShrinkPlan, Shrunk};
use tersor::report::{shrink_plan_table, shrunk_table};
use tersor::{Checkpoint, Needs};

use super::args::ShrinkArgs;
use super::output::{Output, human};
use super::plan::left_behind;
use super::{Failure, Outcome};

pub(super) fn run(args: &ShrinkArgs, seed: u64, output: &Output) -> Result<Outcome, Failure> {
    let checkpoint = Checkpoint::open(&args.source)?;
    let plan = ShrinkPlan::new(&checkpoint, args.shrink())?;
    let Some(folder) = &args.output else {
        output.print(&to_json(&plan), &shrink_plan_table(&plan), &plan_summary(&plan))?;
        return Ok(Outcome::Done);
    };
    if let Some(note) = left_behind(plan.left_behind()) {
        output.note(&format!("note: {note}"));
    }
    let samples = args.calibration.samples(&checkpoint, seed)?;
    if samples.is_some()
        && plan.needs() == Needs::Nothing
        && plan.blocks().is_none_or(|(removed, _)| removed == 0)
    {
        output.note("note: nothing that is left out is judged by the calibration samples");
    }
    let calibration = samples.as_ref().map(|samples| args.calibration.of(samples)).transpose()?;
    let shrunk = plan.run(folder, calibration, &mut output.progress()?)?;
    output.print(&shrunk, &shrunk_table(&shrunk), &summary(&shrunk))?;
    Ok(Outcome::Done)
}

impl ShrinkArgs {
    fn shrink(&self) -> Shrink {
        let mut shrink = Shrink::new().importance(self.importance.0).repair(!self.no_repair);
        if let Some(amount) = self.neurons {
            shrink = shrink.neurons(amount);
        }
        if let Some(amount) = self.heads {
            shrink = shrink.heads(amount);
        }
        if let Some(amount) = self.channels {
            shrink = shrink.channels(amount);
        }
        if let Some(amount) = self.blocks {
            shrink = shrink.blocks(amount, self.by.0);
        }
        if let Some(multiple) = self.multiple {
            shrink = shrink.multiple(multiple);
        }
        shrink
    }
}

fn to_json(plan: &ShrinkPlan<'_>) -> Value {
    json!({
        "source": plan.source().display().to_string(),
        "bytes_before": plan.bytes_before(),
        "bytes_after": plan.bytes_after(),
        "left_behind": plan.left_behind().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        "blocks": plan.blocks().map(|(removed, count)| json!({"before": count, "after": count - removed})),
        "units": plan.units().iter().map(|units| json!({
            "layer": units.layer,
            "kind": units.kind.to_string(),
            "before": units.before,
            "after": units.after,
        })).collect::<Vec<_>>(),
        "tensors": plan.tensors().iter().map(|tensor| json!({
            "name": tensor.name,
            "becomes": tensor.becomes,
            "shape_before": tensor.before,
            "shape_after": tensor.after,
            "stored": tensor.stored,
            "bytes_before": tensor.bytes_before,
            "bytes_after": tensor.bytes_after,
        })).collect::<Vec<_>>(),
    })
}

fn plan_summary(plan: &ShrinkPlan<'_>) -> String {
    let (before, after) = (plan.bytes_before(), plan.bytes_after());
    let mut text = format!(
        "\n{} → {} ({:.2}× smaller), exactly {after} bytes",
        human(before),
        human(after),
        before as f64 / after.max(1) as f64,
    );
    if let Some((removed @ 1.., count)) = plan.blocks() {
        text.push_str(&format!(
            "; {removed} of {count} blocks go: which, is found with calibration samples; here it is the last ones"
        ));
    }
    if let Some(note) = left_behind(plan.left_behind()) {
        text.push_str(&format!("\nnote: {note}"));
    }
    text
}

fn summary(shrunk: &Shrunk) -> String {
    let share = |after: u64, before: u64| after as f64 / before.max(1) as f64 * 100.0;
    format!(
        "\n{} → {} ({:.1}%), {:.1}% of the values, in {}",
        human(shrunk.bytes_before),
        human(shrunk.bytes_after),
        share(shrunk.bytes_after, shrunk.bytes_before),
        share(shrunk.parameters_after, shrunk.parameters_before),
        shrunk.output.display(),
    )
}
