use std::fmt::Write;

use crate::evaluate::Score;
use crate::report::escape::escape;
use crate::report::number::{bytes, percent, signed, with_unit};
use crate::report::{Comparison, Made, Variant, metric, pareto_front};

/// The answer for every reference: what was asked with a price or a part to keep, and what the figures show.
pub(super) fn answers(comparison: &Comparison<'_>) -> Vec<String> {
    let mut paragraphs: Vec<String> = comparison.verdicts.iter().map(|v| v.sentence.clone()).collect();
    for (place, reference) in comparison.references() {
        let variants: Vec<&Variant> = comparison.variants_of(place).map(|(_, v)| v).collect();
        if !variants.is_empty() {
            paragraphs.push(overview(reference, &variants));
        }
    }
    paragraphs
}

fn overview(reference: &Variant, variants: &[&Variant]) -> String {
    let size = bytes(reference.file_bytes as f64);
    let count = match variants.len() {
        1 => "One variant".to_owned(),
        n => format!("{n} variants"),
    };
    if let Some(quality) = reference.quality() {
        return against_quality(reference, variants, quality, &count, &size);
    }
    let mut text = format!("{count} of `{}` ({size}).", reference.name);
    if let Some(smallest) = variants.iter().min_by_key(|v| v.file_bytes) {
        let _ = write!(text, " The smallest is `{}`, {:.2}× smaller", smallest.name, smallest.file_ratio);
        if let Some(worst) = &smallest.worst_layer {
            let _ = write!(text, "; its worst layer is off by {}", percent(worst.errors.relative));
        }
        text.push('.');
    }
    text
}

fn against_quality(
    reference: &Variant,
    variants: &[&Variant],
    quality: &Score,
    count: &str,
    size: &str,
) -> String {
    let title = metric::title(&quality.metric);
    let value = with_unit(quality.value, &quality.unit);
    let scored: Vec<(&Variant, &Score)> =
        variants.iter().filter_map(|v| Some((*v, v.same(quality)?))).collect();
    let mut points = vec![[reference.file_bytes as f64, quality.value]];
    points.extend(scored.iter().map(|(v, score)| [v.file_bytes as f64, score.value]));
    let on_front = pareto_front(&points, quality.better);
    let mut front: Vec<_> =
        scored.iter().zip(&on_front[1..]).filter(|(_, on)| **on).map(|(scored, _)| *scored).collect();
    front.sort_by_key(|(v, _)| std::cmp::Reverse(v.file_bytes));
    let mut text = format!("{count} of `{}` ({size}, {title} {value}).", reference.name);
    let describe = |(variant, score): &(&Variant, &Score)| {
        let lost =
            variant.drop_of(score).map_or(String::new(), |d| format!(", drop {}", signed(d, &score.unit)));
        format!("`{}` ({:.2}× smaller{lost})", variant.name, variant.file_ratio)
    };
    match front.as_slice() {
        [] => text.push_str(" None of them is on the Pareto front of size and quality."),
        [one] => {
            let _ = write!(text, " On the Pareto front of size and quality stands {}.", describe(one));
        }
        [first, .., last] => {
            let _ = write!(
                text,
                " {} stand on the Pareto front of size and quality, from {} to {}.",
                front.len(),
                describe(first),
                describe(last)
            );
        }
    }
    text
}

/// Text with what stands between backquotes as code.
pub(super) fn with_code(text: &str) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    // a name that holds a backquote itself
    if parts.len().is_multiple_of(2) {
        return escape(text);
    }
    let mut html = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        let _ = if i % 2 == 1 {
            write!(html, "<code>{}</code>", escape(part))
        } else {
            write!(html, "{}", escape(part))
        };
    }
    html
}

/// How something was made, in one line.
pub(super) fn made(made: &Made) -> String {
    match made.steps.as_slice() {
        [] => "nothing was compressed".to_owned(),
        steps => {
            let line =
                |step: &crate::report::MadeStep| format!("{} × {}", step.tensors, step.methods.join(" → "));
            let mut text = steps.iter().take(2).map(line).collect::<Vec<_>>().join("; ");
            if steps.len() > 2 {
                let _ = write!(text, "; {} more", steps.len() - 2);
            }
            text
        }
    }
}
