use serde_json::json;
use tersor::report::{Align, Table};
use tersor::{Activations, Checkpoint, Network, PackedWeight, PlainWeights, Score};

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
        "plain_weights": match execution.plain_weights {
            PlainWeights::Mapped => "mapped",
            PlainWeights::Packed => "packed",
        },
        "int8_layers": int8_layers(&network),
        "data": args.task.files().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        "threads": rayon::current_num_threads(),
        "sparse_layers": sparse_layers(&network).map(|(name, weight, rows)| json!({
            "name": name,
            "form": weight.form().to_string(),
            "memory": weight.bytes(),
            "sparse_up_to_rows": (rows < usize::MAX).then_some(rows),
        })).collect::<Vec<_>>(),
        "scores": scores,
    });
    let asked = matches!(execution.activations, Some(Activations::Int8(_)));
    output.print(&value, &table(&scores), &(how_many_int8(&network, asked) + &how_sparse(&network)))?;
    Ok(Outcome::Done)
}

/// How many layers round their activations to 8 bits.
fn int8_layers(network: &Network) -> usize {
    let layers = network.packed_layers();
    layers.iter().filter(|(_, weight)| matches!(weight.activations(), Activations::Int8(_))).count()
}

/// The same in words; empty if there are none and none was asked for.
fn how_many_int8(network: &Network, asked: bool) -> String {
    match int8_layers(network) {
        0 if asked => "\nno layer rounds its activations to 8 bits: none has weights of integers".to_owned(),
        0 => String::new(),
        1 => "\n1 layer, with weights of integers, rounds its activations to 8 bits".to_owned(),
        layers => format!("\n{layers} layers, with weights of integers, round their activations to 8 bits"),
    }
}

/// Layers that are stored sparsely, and the most rows of activations for which they leave zeros out.
fn sparse_layers(network: &Network) -> impl Iterator<Item = (&str, &PackedWeight, usize)> {
    let layers = network.packed_layers().into_iter();
    layers.filter_map(|(name, weight)| Some((name, weight, weight.sparse_batch()?)))
}

/// How layers run that are stored sparsely, in words; empty if there are none.
fn how_sparse(network: &Network) -> String {
    let (mut all, mut dense, mut always) = (0, 0, 0);
    let mut most = 0;
    for (_, _, rows) in sparse_layers(network) {
        all += 1;
        match rows {
            0 => dense += 1,
            usize::MAX => always += 1,
            rows => most = most.max(rows),
        }
    }
    let some = all - dense - always;
    let rows = if most == 1 { "one row".to_owned() } else { format!("up to {most} rows") };
    let parts = [
        (always, "leave zeros out".to_owned()),
        (some, format!("leave zeros out for {rows} of activations, and run densely for more")),
        (dense, "run densely: faster at their sparsity".to_owned()),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0).map(|(count, how)| format!("{count} {how}"));
    match all {
        0 => String::new(),
        _ => format!("\nof {all} sparse layers {}", parts.collect::<Vec<_>>().join(", ")),
    }
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
