use super::number::{group_digits, percent};
use super::{Align, Cell, Table};
use crate::checkpoint::Entry;
use crate::layer::Outcome;
use crate::pipeline::{Check, EntropyReport, LayerReport, Plan, ShrinkPlan, Shrunk, Verification};
use crate::weight::LayoutKind;

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
        let mut why = tensor.reason().to_owned();
        if !tensor.layouts().is_empty() {
            let bytes = |(layout, bytes): &(LayoutKind, u64)| format!("{layout} {}", group_digits(*bytes));
            let bytes: Vec<String> = tensor.layouts().iter().map(bytes).collect();
            why.push_str(&format!("; in bytes: {}", bytes.join(", ")));
        }
        table.row([
            tensor.name().into(),
            format!("{:?}", tensor.entry().shape).into(),
            tensor.entry().describe().into(),
            to.into(),
            tensor.entry().bytes.into(),
            tensor.bytes().into(),
            tensor.methods().join(" → ").into(),
            why.into(),
        ]);
    }
    table
}

/// What becomes of every tensor of a network that loses some of its parts.
pub fn shrink_plan_table(plan: &ShrinkPlan<'_>) -> Table {
    let mut table = Table::new([
        ("tensor", LEFT),
        ("stored as", LEFT),
        ("shape", LEFT),
        ("shape out", LEFT),
        ("bytes", RIGHT),
        ("bytes out", RIGHT),
    ]);
    for tensor in plan.tensors() {
        let gone = || "goes".to_owned();
        let after = tensor.becomes.as_ref().map_or_else(gone, |_| format!("{:?}", tensor.after));
        table.row([
            tensor.name.clone().into(),
            tensor.stored.clone().into(),
            format!("{:?}", tensor.before).into(),
            after.into(),
            tensor.bytes_before.into(),
            tensor.bytes_after.into(),
        ]);
    }
    table
}

/// What went, and what that does to the outputs of the layers that took it.
pub fn shrunk_table(shrunk: &Shrunk) -> Table {
    let mut table = Table::new([
        ("layer", LEFT),
        ("what", LEFT),
        ("there were", RIGHT),
        ("stay", RIGHT),
        ("score", RIGHT),
        ("error, left out", RIGHT),
        ("repaired", RIGHT),
        ("damping", RIGHT),
        ("notes", LEFT),
    ]);
    let count = |count: usize| Cell::Count(count as u64);
    for block in shrunk.blocks.iter().filter(|block| block.removed) {
        let score = block.score.map_or(String::new(), |score| format!("{score:.4}"));
        let name = format!("block {}", block.block);
        table.row([name.into(), "block".into(), count(1), count(0), score.into()]);
    }
    let number = |error: Option<f64>| error.map_or(String::new(), |error| format!("{error:.2e}")).into();
    for units in &shrunk.units {
        let damping = if units.error.is_some() { units.damping.to_string() } else { String::new() };
        table.row([
            units.layer.clone().into(),
            units.kind.clone().into(),
            count(units.before),
            count(units.after),
            "".into(),
            number(units.naive_error),
            number(units.error),
            damping.into(),
            units.notes.join("; ").into(),
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
        let number = |x: f64| if x.is_finite() { format!("{x:.2e}") } else { String::new() };
        let verdict = |check: &Check| match (&check.failure, &check.changed) {
            (Some(failure), _) => failure.clone(),
            (None, Some(by)) => format!("changed by {by}"),
            (None, None) => "ok".into(),
        };
        table.row([
            check.name.clone().into(),
            check.form.clone().into(),
            number(check.relative_error).into(),
            number(check.bound).into(),
            verdict(check).into(),
        ]);
    }
    table
}
