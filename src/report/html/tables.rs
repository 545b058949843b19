use std::fmt::Write;

use crate::report::escape::escape;
use crate::report::number::{bytes, money, percent, signed, significant, volume, with_unit};
use crate::report::{Align, Cell, Comparison, Environment, Made, Table, Variant, metric};

const LEFT: Align = Align::Left;
const RIGHT: Align = Align::Right;

/// A table whose first column names its rows.
pub(super) fn html(table: &Table) -> String {
    let class = |align: Align| if align == Align::Right { " class=\"n\"" } else { "" };
    let mut out = String::from("<table>\n<thead><tr>");
    for (heading, align) in table.headings() {
        let _ = write!(out, "<th scope=\"col\"{}>{}</th>", class(*align), escape(heading));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in table.rows() {
        out.push_str("<tr>");
        for (i, (cell, (_, align))) in row.iter().zip(table.headings()).enumerate() {
            let text = escape(&cell.for_readers());
            let _ = if i == 0 {
                write!(out, "<th scope=\"row\">{text}</th>")
            } else {
                write!(out, "<td{}>{text}</td>", class(*align))
            };
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n");
    out
}

/// Something wide that is scrolled by itself, also with the keyboard.
pub(super) fn region(label: &str, body: &str) -> String {
    format!(
        "<div class=\"wide\" role=\"region\" tabindex=\"0\" aria-label=\"{}\">\n{body}</div>\n",
        escape(label)
    )
}

pub(super) fn element(name: &str, class: &str, html: &str) -> String {
    format!("<{name} class=\"{class}\">{html}</{name}>\n")
}

/// What running and holding each variant takes, and how it was worked out; `None` without a price.
pub(super) fn costs(comparison: &Comparison<'_>) -> Option<(String, Table)> {
    let pricing = comparison.pricing.as_ref()?;
    let currency = &pricing.currency;
    let [million, year, saving] = [
        format!("{currency} per million"),
        format!("{currency} a year"),
        format!("saved a year, {currency}"),
    ];
    let mut headings =
        vec![("model", LEFT), ("per second", RIGHT), (million.as_str(), RIGHT), ("cheaper", RIGHT)];
    if pricing.volume.is_some() {
        headings.extend([(year.as_str(), RIGHT), (saving.as_str(), RIGHT)]);
    }
    headings.extend([("holds", RIGHT), ("smallest memory", RIGHT)]);
    let mut table = Table::new(headings);
    let none = || Cell::from("–");
    for variant in &comparison.variants {
        let cost = variant.cost.as_ref();
        let amount = |value: Option<f64>| value.map_or_else(none, |value| money(value).into());
        let mut cells: Vec<Cell> = vec![
            variant.name.clone().into(),
            cost.map_or_else(none, |c| format!("{} {}", significant(c.per_second), c.unit).into()),
            amount(cost.map(|c| c.per_million)),
            cost.and_then(|c| c.cheaper).map_or_else(none, |times| format!("{times:.2}×").into()),
        ];
        if pricing.volume.is_some() {
            cells.extend([
                amount(cost.and_then(|c| c.per_year)),
                amount(cost.and_then(|c| c.saving_per_year)),
            ]);
        }
        cells.push(bytes(variant.memory.bytes as f64).into());
        cells.push(variant.memory.gib.map_or("more than 1024 GiB".into(), |gib| format!("{gib} GiB").into()));
        table.row(cells);
    }
    let measured = comparison.variants.iter().any(|v| v.memory.measured);
    let holds = if measured { "the peak of memory that was measured" } else { "the bytes of the files" };
    let mut note = format!(
        "A machine for {} {currency} an hour that does nothing else; price per million = price per hour / 3600 / per \
         second × 10⁶. Memory: the smallest size that holds {holds}.",
        money(pricing.per_hour)
    );
    if let Some(amount) = pricing.volume {
        let _ = write!(note, " A year: {}.", volume(amount));
    }
    Some((note, table))
}

/// Every score; `None` without any.
pub(super) fn scores(comparison: &Comparison<'_>) -> Option<Table> {
    let mut table = Table::new([
        ("model", LEFT),
        ("task", LEFT),
        ("metric", LEFT),
        ("value", RIGHT),
        ("95 % interval", RIGHT),
        ("drop", RIGHT),
        ("samples", RIGHT),
    ]);
    for variant in &comparison.variants {
        for score in &variant.scores {
            let [low, high] = score.interval.map(|value| with_unit(value, &score.unit));
            table.row([
                variant.name.clone().into(),
                score.task.clone().into(),
                metric::title(&score.metric).into(),
                with_unit(score.value, &score.unit).into(),
                if low == high { "–".into() } else { format!("{low} to {high}").into() },
                variant.drop_of(score).map_or("–".into(), |drop| signed(drop, &score.unit).into()),
                (score.samples as u64).into(),
            ]);
        }
    }
    (!table.rows().is_empty()).then_some(table)
}

pub(super) fn layers(variant: &Variant) -> Table {
    let mut table = Table::new([
        ("tensor", LEFT),
        ("class", LEFT),
        ("shape", LEFT),
        ("form", LEFT),
        ("bytes", RIGHT),
        ("bytes after", RIGHT),
        ("rel. error", RIGHT),
        ("SNR dB", RIGHT),
        ("cosine", RIGHT),
        ("max error", RIGHT),
    ]);
    for layer in &variant.layers {
        let form = if layer.before == layer.after {
            layer.after.clone()
        } else {
            format!("{} → {}", layer.before, layer.after)
        };
        let shape: Vec<String> = layer.shape.iter().map(ToString::to_string).collect();
        table.row([
            layer.name.clone().into(),
            layer.class.clone().into(),
            shape.join(" × ").into(),
            form.into(),
            layer.bytes_before.into(),
            layer.bytes_after.into(),
            layer.errors.sqnr_db.map_or("0".into(), |_| format!("{:.2e}", layer.errors.relative).into()),
            layer.errors.sqnr_db.map_or("exact".into(), |db| format!("{db:.1}").into()),
            format!("{:.6}", layer.errors.cosine).into(),
            format!("{:.2e}", layer.errors.max_abs).into(),
        ]);
    }
    table
}

pub(super) fn steps(made: &Made) -> Table {
    let mut table = Table::new([
        ("methods", LEFT),
        ("form", LEFT),
        ("tensors", RIGHT),
        ("bytes before", RIGHT),
        ("bytes after", RIGHT),
    ]);
    for step in &made.steps {
        table.row([
            step.methods.join(" → ").into(),
            step.form.clone().into(),
            (step.tensors as u64).into(),
            step.bytes_before.into(),
            step.bytes_after.into(),
        ]);
    }
    table
}

pub(super) fn made(made: &Made) -> Table {
    let mut table = Table::new([
        ("tensor", LEFT),
        ("methods", LEFT),
        ("from", LEFT),
        ("to", LEFT),
        ("bytes before", RIGHT),
        ("bytes after", RIGHT),
        ("sparsity", RIGHT),
        ("clamped", RIGHT),
    ]);
    for tensor in &made.tensors {
        table.row([
            tensor.name.clone().into(),
            tensor.methods.join(" → ").into(),
            tensor.before.clone().into(),
            tensor.after.clone().into(),
            tensor.bytes_before.into(),
            tensor.bytes_after.into(),
            tensor.sparsity.map_or("–".into(), |fraction| percent(fraction).into()),
            tensor.clamped.into(),
        ]);
    }
    table
}

pub(super) fn environment(environment: &Environment) -> Table {
    let mut table = Table::new([("environment", LEFT), ("", LEFT)]);
    let Environment { tersor, date, os, arch, cpu, cores, threads, level } = environment;
    for (name, value) in [
        ("tersor", tersor.clone()),
        ("date", date.clone()),
        ("processor", cpu.clone().unwrap_or_else(|| "not told".to_owned())),
        ("cores, threads", format!("{cores}, {threads}")),
        ("instructions", level.clone()),
        ("system", format!("{os}, {arch}")),
    ] {
        table.row([name.into(), value.into()]);
    }
    table
}

/// Every file that was read.
pub(super) fn files(comparison: &Comparison<'_>) -> Table {
    let mut table = Table::new([("file", LEFT), ("of", LEFT), ("bytes", RIGHT), ("SHA-256", LEFT)]);
    let of_variants = comparison.variants.iter().flat_map(|v| v.files.iter().map(|f| (f, v.name.as_str())));
    for (file, of) in comparison.data.iter().map(|file| (file, "data")).chain(of_variants) {
        table.row([file.name.clone().into(), of.into(), file.bytes.into(), file.sha256.clone().into()]);
    }
    table
}
