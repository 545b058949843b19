use super::number::percent;
use super::{Align, Table};
use crate::checkpoint::Entry;
use crate::layer::Outcome;
use crate::pipeline::{EntropyReport, LayerReport, Plan, Verification};

const LEFT: Align = Align::Left;
const RIGHT: Align = Align::Right;

/// The tensors of a checkpoint: name, class, shape, form, bytes.
pub fn inspect_table<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Table {
    let mut table = Table::new([
        ("tensor", LEFT),
        ("class", LEFT),
        ("shape", LEFT),
        ("stored as", LEFT),
        ("bytes", RIGHT),
    ]);
    for entry in entries {
        let shape = format!("{:?}", entry.shape);
        table.row([
            entry.name.clone().into(),
            entry.class.to_string().into(),
            shape.into(),
            entry.describe().into(),
            entry.bytes.into(),
        ]);
    }
    table
}

/// What a plan does to every tensor.
pub fn plan_table(plan: &Plan<'_>) -> Table {
    let mut table = Table::new([
        ("tensor", LEFT),
        ("shape", LEFT),
        ("from", LEFT),
        ("to", LEFT),
        ("bytes", RIGHT),
        (if plan.is_entropy_coded() { "bytes out, at most" } else { "bytes out" }, RIGHT),
        ("methods", LEFT),
        ("why", LEFT),
    ]);
    for tensor in plan.tensors() {
        let to = if tensor.is_compressed() { tensor.describe() } else { "kept".into() };
        table.row([
            tensor.name().into(),
            format!("{:?}", tensor.entry().shape).into(),
            tensor.entry().describe().into(),
            to.into(),
            tensor.entry().bytes.into(),
            tensor.bytes().into(),
            tensor.methods().join(" → ").into(),
            tensor.reason().into(),
        ]);
    }
    table
}

/// What compression did to every layer; of calibrated ones also what it did to the layer's output, of entropy-coded ones the
/// bits that a weight takes, and Shannon's bound of them.
pub fn layers_table(layers: &[LayerReport]) -> Table {
    let mut columns = vec![
        ("tensor", LEFT),
        ("form", LEFT),
        ("bytes", RIGHT),
        ("bytes out", RIGHT),
        ("sparsity", RIGHT),
        ("rel. error", RIGHT),
        ("SQNR dB", RIGHT),
        ("cosine", RIGHT),
        ("max error", RIGHT),
        ("clamped", RIGHT),
    ];
    let calibrated = layers.iter().any(|layer| !layer.outcomes.is_empty());
    if calibrated {
        columns.extend([("output error", RIGHT), ("plain", RIGHT), ("damping", RIGHT), ("notes", LEFT)]);
    }
    let coded = layers.iter().any(|layer| layer.entropy.is_some());
    if coded {
        columns.extend([("plain bytes", RIGHT), ("bits/weight", RIGHT), ("bound", RIGHT), ("entropy", LEFT)]);
    }
    let mut table = Table::new(columns);
    for layer in layers {
        let mut row = vec![
            layer.name.clone().into(),
            layer.after.clone().into(),
            layer.bytes_before.into(),
            layer.bytes_after.into(),
            percent(layer.sparsity).into(),
            format!("{:.2e}", layer.errors.relative).into(),
            layer.errors.sqnr_db.map_or("exact".into(), |db| format!("{db:.1}")).into(),
            format!("{:.6}", layer.errors.cosine).into(),
            format!("{:.2e}", layer.errors.max_abs).into(),
            layer.clamped.into(),
        ];
        if calibrated {
            // of several methods one after the other
            let text = |text: &dyn Fn(&Outcome) -> String| {
                layer.outcomes.iter().map(text).collect::<Vec<_>>().join(", ").into()
            };
            row.extend([
                text(&|outcome| format!("{:.2e}", outcome.error())),
                text(&|outcome| format!("{:.2e}", outcome.plain_error)),
                text(&|outcome| format!("{}", outcome.damping)),
                Outcome::words_of(&layer.outcomes).into(),
            ]);
        }
        if coded {
            let text = |text: &dyn Fn(&EntropyReport) -> String| {
                layer.entropy.as_ref().map_or(String::new(), text).into()
            };
            row.extend([
                text(&|report| report.plain_bytes.to_string()),
                text(&|report| format!("{:.4}", report.bits_per_weight)),
                text(&|report| format!("{:.4}", report.bound_bits_per_weight)),
                text(&|report| if report.coded { "coded" } else { "no smaller, stored plain" }.to_owned()),
            ]);
        }
        table.row(row);
    }
    table
}

/// What was found about every tensor of an output.
pub fn verification_table(verification: &Verification) -> Table {
    let mut table = Table::new([
        ("tensor", LEFT),
        ("stored as", LEFT),
        ("rel. error", RIGHT),
        ("bound", RIGHT),
        ("verdict", LEFT),
    ]);
    for check in &verification.checks {
        let number = |x: f64| if x.is_nan() { String::new() } else { format!("{x:.2e}") };
        table.row([
            check.name.clone().into(),
            check.form.clone().into(),
            number(check.relative_error).into(),
            number(check.bound).into(),
            check.failure.clone().unwrap_or_else(|| "ok".into()).into(),
        ]);
    }
    table
}
