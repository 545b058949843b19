use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::number::{money, volume, with_unit};
use super::{Comparison, PricingError, Variant};
use crate::evaluate::{Better, Score};

/// The part of the reference's quality that must be left, above 0 and at most 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize)]
pub struct Keep(f64);

impl Keep {
    /// A fraction.
    ///
    /// # Errors
    /// When it is not above 0 and at most 1.
    pub fn new(fraction: f64) -> Result<Self, PricingError> {
        let inside = fraction > 0.0 && fraction <= 1.0;
        if inside { Ok(Self(fraction)) } else { Err(PricingError::Keep { text: fraction.to_string() }) }
    }

    /// The fraction.
    pub fn fraction(self) -> f64 {
        self.0
    }
}

/// `99%` or `0.99`.
impl FromStr for Keep {
    type Err = PricingError;

    fn from_str(text: &str) -> Result<Self, PricingError> {
        let refused = || PricingError::Keep { text: text.to_owned() };
        let (number, whole) = text.trim().strip_suffix('%').map_or((text.trim(), 1.0), |n| (n.trim(), 100.0));
        let value: f64 = number.parse().map_err(|_| refused())?;
        Self::new(value / whole).map_err(|_| refused())
    }
}

/// `99 %`.
impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // a percentage as it was written: 0.999 · 100 is 99.9
        let percent = (self.0 * 1e8).round() / 1e6;
        write!(f, "{percent} %")
    }
}

/// The cheapest variant that keeps enough of a reference's quality.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// Place of the reference among the variants.
    pub reference: usize,
    /// The part that had to be kept.
    pub keep: Keep,
    /// The metric that was looked at: the first score that tells quality.
    pub metric: Option<String>,
    /// The value that the metric had to reach, or not to exceed.
    pub threshold: Option<f64>,
    /// Place of the cheapest variant that does, among the variants; absent if none does or it cannot be said.
    pub variant: Option<usize>,
    /// The answer in words.
    pub sentence: String,
}

/// A variant that may be chosen.
struct Candidate<'a> {
    place: usize,
    variant: &'a Variant,
    score: &'a Score,
}

/// Judges the variants of one reference.
pub(super) fn judge(comparison: &Comparison<'_>, reference: usize, keep: Keep) -> Verdict {
    let mut verdict =
        Verdict { reference, keep, metric: None, threshold: None, variant: None, sentence: String::new() };
    let source = &comparison.variants[reference];
    let Some(score) = source.quality() else {
        verdict.sentence =
            format!("Nothing can be said about quality: `{}` has no score of it; name a task.", source.name);
        return verdict;
    };
    let name = score.metric.replace('_', " ");
    verdict.metric = Some(score.metric.clone());
    if !(score.value.is_finite() && score.value > 0.0) {
        verdict.sentence = format!(
            "No part of {name} can be kept: `{}` has {}, and only a part of a number above 0 has a meaning.",
            source.name,
            with_unit(score.value, &score.unit)
        );
        return verdict;
    }
    let threshold = match score.better {
        Better::Higher => score.value * keep.0,
        Better::Lower => score.value / keep.0,
    };
    verdict.threshold = Some(threshold);
    let candidates: Vec<Candidate<'_>> = comparison
        .variants_of(reference)
        .filter_map(|(place, variant)| Some(Candidate { place, variant, score: variant.same(score)? }))
        .collect();
    let (kept, lost): (Vec<_>, Vec<_>) =
        candidates.iter().partition(|c: &&Candidate<'_>| reaches(c.score.value, threshold, score.better));
    // a cost is held against costs only, and the reference's must be known too
    let priced = comparison.pricing.is_some() && kept.iter().any(|c| c.variant.cost.is_some());
    let price = |variant: &Variant| {
        if priced { variant.cost.as_ref().map(|c| c.per_million) } else { Some(variant.file_bytes as f64) }
    };
    let order = |a: &Variant, b: &Variant| {
        let known = |v: &Variant| price(v).unwrap_or(f64::INFINITY);
        known(a).total_cmp(&known(b)).then(a.file_bytes.cmp(&b.file_bytes))
    };
    let best = kept.iter().copied().min_by(|a, b| order(a.variant, b.variant));
    let adjective = if priced { "cheapest" } else { "smallest" };
    let Some(best) = best else {
        let closest = candidates.iter().min_by(|a, b| {
            let loss = |c: &Candidate<'_>| match score.better {
                Better::Higher => -c.score.value,
                Better::Lower => c.score.value,
            };
            loss(a).total_cmp(&loss(b))
        });
        verdict.sentence = format!("No variant keeps {keep} of {name}");
        if let Some(closest) = closest {
            let [has, of] = [closest.score, score].map(|s| with_unit(s.value, &s.unit));
            verdict
                .sentence
                .push_str(&format!("; the closest is `{}` with {has} of {of}", closest.variant.name));
        }
        verdict.sentence.push('.');
        verdict.sentence.push_str(&doubts(None, &lost, score, threshold, |_| true));
        return verdict;
    };
    verdict.variant = Some(best.place);
    let [has, of] = [best.score, score].map(|s| with_unit(s.value, &s.unit));
    verdict.sentence =
        format!("`{}` is the {adjective} that keeps {keep} of {name} ({has} of {of})", best.variant.name);
    verdict.sentence.push_str(&if priced {
        terms(comparison, source, best.variant)
    } else {
        size(best.variant)
    });
    if comparison.pricing.is_some() && !priced {
        verdict.sentence.push_str(" What it costs cannot be said: there is no score of throughput.");
    }
    let cheaper = |c: &Candidate<'_>| order(c.variant, best.variant).is_lt();
    verdict.sentence.push_str(&doubts(Some(best), &lost, score, threshold, cheaper));
    verdict
}

fn reaches(value: f64, threshold: f64, better: Better) -> bool {
    match better {
        Better::Higher => value >= threshold,
        Better::Lower => value <= threshold,
    }
}

/// What it costs, in words.
fn terms(comparison: &Comparison<'_>, source: &Variant, best: &Variant) -> String {
    let (Some(pricing), Some(cost)) = (&comparison.pricing, &best.cost) else { return ".".to_owned() };
    let currency = &pricing.currency;
    let mut text = format!(": {} {currency} per million {}", money(cost.per_million), cost.unit);
    let a_year = match (cost.saving_per_year, pricing.volume) {
        (Some(saving), Some(amount)) => Some((saving, format!("a year at {} {}", volume(amount), cost.unit))),
        _ => None,
    };
    match (cost.cheaper, a_year) {
        (Some(times), a_year) if times < 1.0 => {
            text.push_str(&format!(", {:.2}× the price of `{}`", 1.0 / times, source.name));
            if let Some((saving, a_year)) = a_year {
                text.push_str(&format!(" and {} {currency} more {a_year}", money(-saving)));
            }
            text.push_str(&format!(". Running `{}` unchanged costs less.", source.name));
            return text;
        }
        (Some(times), a_year) => {
            text.push_str(&match times {
                1.0 => format!(", the same as `{}`", source.name),
                times if times < 1.1 => format!(", {times:.2}× cheaper than `{}`", source.name),
                times => format!(", {times:.1}× cheaper than `{}`", source.name),
            });
            if let Some((saving, a_year)) = a_year {
                text.push_str(&format!(", saves {} {currency} {a_year}", money(saving)));
            }
        }
        (None, _) => {}
    }
    text.push('.');
    text
}

fn size(best: &Variant) -> String {
    format!(": {}, {:.2}× smaller.", super::number::bytes(best.file_bytes as f64), best.file_ratio)
}

/// What the confidence intervals leave open.
fn doubts(
    best: Option<&Candidate<'_>>,
    lost: &[&Candidate<'_>],
    score: &Score,
    threshold: f64,
    cheaper: impl Fn(&Candidate<'_>) -> bool,
) -> String {
    let across = |c: &&Candidate<'_>| c.score.interval[0] < threshold && threshold < c.score.interval[1];
    let limit = with_unit(threshold, &score.unit);
    let mut text = String::new();
    if let Some(best) = best.filter(across) {
        let [low, high] = best.score.interval.map(|value| with_unit(value, &score.unit));
        text.push_str(&format!(
            " Its 95 % interval, {low} to {high}, lies on both sides of the limit {limit}: {} samples do not settle it.",
            best.score.samples
        ));
    }
    let open: Vec<String> = lost
        .iter()
        .copied()
        .filter(|c| across(c) && cheaper(c))
        .map(|c| format!("`{}`", c.variant.name))
        .collect();
    if !open.is_empty() {
        let (verb, interval) = if open.len() == 1 {
            ("misses", "its interval reaches")
        } else {
            ("miss", "their intervals reach")
        };
        text.push_str(&format!(" {} {verb} the limit {limit}, but {interval} across it.", open.join(", ")));
    }
    text
}
