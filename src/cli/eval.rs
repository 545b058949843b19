use serde_json::json;
use tersor::report::{Align, Table};
use tersor::{Activations, Checkpoint, Network, Score};

use super::args::EvalArgs;
use super::output::Output;
use super::{Failure, Outcome};

pub(super) fn run(args: &EvalArgs, output: &Output) -> Result<Outcome, Failure> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let execution = args.task.execution();
    let network = Network::open(&checkpoint, execution)?;
    let reference = args.task.reference()?;
    let mut scores = Vec::new();
    for task in args.task.tasks(&checkpoint, reference.as_ref())? {
        scores.extend(task.score(&network)?);
    }
    let value = json!({
        "model": args.model.display().to_string(),
        "model_type": network.model_type(),
        "file_bytes": checkpoint.file_bytes(),
        "activations": match execution.activations {
            None => "stored",
            Some(Activations::Float) => "float",
            Some(Activations::Int8(_)) => "int8",
        },
        "data": args.task.files().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        "threads": rayon::current_num_threads(),
        "scores": scores,
    });
    output.print(&value, &table(&scores), "")?;
    Ok(Outcome::Done)
}

fn table(scores: &[Score]) -> Table {
    let mut table = Table::new([
        ("task", Align::Left),
        ("metric", Align::Left),
        ("value", Align::Right),
        ("95% interval", Align::Right),
        ("samples", Align::Right),
    ]);
    for score in scores {
        let [low, high] = score.interval.map(|end| rounded(end, &score.unit));
        let value = match score.unit.as_str() {
            unit @ ("" | "%") => format!("{}{unit}", rounded(score.value, unit)),
            unit => format!("{} {unit}", rounded(score.value, unit)),
        };
        table.row([
            score.task.as_str().into(),
            score.metric.as_str().into(),
            value.into(),
            format!("{low} to {high}").into(),
            (score.samples as u64).into(),
        ]);
    }
    table
}

/// A value for reading: shares with two decimals, counts with none, everything else with four digits.
fn rounded(value: f64, unit: &str) -> String {
    if unit == "%" {
        return format!("{value:.2}");
    }
    match value.abs() {
        size if unit == "bytes" || size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        size if size >= 1e-2 => format!("{value:.4}"),
        0.0 => "0".into(),
        _ => format!("{value:.3e}"),
    }
}
