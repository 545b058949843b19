use serde_json::json;
use tersor::report::{Align, Table};
use tersor::{Checkpoint, Sequential, classify};

use super::args::EvalArgs;
use super::output::Output;
use super::{Failure, Outcome};

pub(super) fn run(args: &EvalArgs, output: &Output) -> Result<Outcome, Failure> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let model = Sequential::open(&checkpoint)?;
    let images = args.task.images()?.ok_or("a task is needed")?;
    let scores = [classify(&model, &images)?];
    let mut table = Table::new([
        ("task", Align::Left),
        ("metric", Align::Left),
        ("value", Align::Right),
        ("95% interval", Align::Right),
        ("samples", Align::Right),
    ]);
    for score in &scores {
        table.row([
            score.task.as_str().into(),
            score.metric.as_str().into(),
            format!("{:.2}%", score.value).into(),
            format!("{:.2} to {:.2}", score.interval[0], score.interval[1]).into(),
            (score.samples as u64).into(),
        ]);
    }
    let value = json!({
        "model": args.model.display().to_string(),
        "file_bytes": checkpoint.file_bytes(),
        "scores": scores,
    });
    output.print(&value, &table, "")?;
    Ok(Outcome::Done)
}
