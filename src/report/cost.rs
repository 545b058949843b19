use serde::Serialize;

use super::metric::{PEAK_MEMORY, unit_of_throughput};
use crate::evaluate::Score;

/// Why something cannot be priced.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PricingError {
    /// A price or volume that is negative, or no number.
    #[error("{what} is {value}, but must be a number of at least 0")]
    Value {
        /// What it is.
        what: &'static str,
        /// The number.
        value: f64,
    },
    /// A tolerance that is no part of the whole.
    #[error(
        "`{text}` is no part to keep: write a percentage such as 99% or a fraction such as 0.99, above 0 and at most 1"
    )]
    Keep {
        /// What was written.
        text: String,
    },
}

/// What a machine costs, and how much it has to do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pricing {
    /// Price of the machine for an hour.
    pub per_hour: f64,
    /// What it is paid in.
    pub currency: String,
    /// Predictions or tokens a year.
    pub volume: Option<f64>,
}

impl Pricing {
    /// A machine at this price an hour, in `$`.
    ///
    /// # Errors
    /// When the price is negative, infinite or NaN.
    pub fn new(per_hour: f64) -> Result<Self, PricingError> {
        Ok(Self { per_hour: amount("the price per hour", per_hour)?, currency: "$".to_owned(), volume: None })
    }

    /// What it is paid in.
    #[must_use]
    pub fn currency(self, currency: impl Into<String>) -> Self {
        Self { currency: currency.into(), ..self }
    }

    /// Predictions or tokens a year.
    ///
    /// # Errors
    /// When the volume is negative, infinite or NaN.
    pub fn volume(self, volume: f64) -> Result<Self, PricingError> {
        Ok(Self { volume: Some(amount("the volume", volume)?), ..self })
    }
}

fn amount(what: &'static str, value: f64) -> Result<f64, PricingError> {
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err(PricingError::Value { what, value }) }
}

/// What running a model costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// What is counted: `predictions` or `tokens`.
    pub unit: String,
    /// How many a second.
    pub per_second: f64,
    /// Price of a million: price per hour / 3600 / per second · 10⁶.
    pub per_million: f64,
    /// How many times cheaper it is than the reference; absent when that counts something else.
    pub cheaper: Option<f64>,
    /// Price of a year's volume.
    pub per_year: Option<f64>,
    /// What a year costs less than with the reference; negative if it costs more.
    pub saving_per_year: Option<f64>,
}

impl Cost {
    /// The cost of what was scored with a throughput; `None` without such a score, or when it is not above 0.
    pub(super) fn of(scores: &[Score], pricing: &Pricing, reference: Option<&Self>) -> Option<Self> {
        let throughput = |score: &Score| {
            unit_of_throughput(score).filter(|_| score.value.is_finite() && score.value > 0.0)
        };
        let (unit, per_second) = scores.iter().find_map(|score| Some((throughput(score)?, score.value)))?;
        let per_million = pricing.per_hour / 3600.0 / per_second * 1e6;
        let per_year = pricing.volume.map(|volume| per_million * volume / 1e6);
        let reference = reference.filter(|reference| reference.unit == unit);
        Some(Self {
            unit: unit.to_owned(),
            per_second,
            per_million,
            cheaper: reference.map(|reference| per_second / reference.per_second),
            per_year,
            saving_per_year: reference.and_then(|reference| Some(reference.per_year? - per_year?)),
        })
    }
}

/// What a model needs to be held.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Memory {
    /// The peak that was measured, or else the bytes of the files.
    pub bytes: u64,
    /// Whether it was measured.
    pub measured: bool,
    /// The smallest memory that holds so much, in GiB, of those that machines have; absent beyond 1024.
    pub gib: Option<f64>,
}

/// Sizes of memory that machines and accelerators have, in GiB.
const SIZES: [f64; 17] =
    [0.5, 1., 2., 4., 8., 16., 24., 32., 48., 64., 80., 96., 128., 192., 256., 512., 1024.];

impl Memory {
    pub(super) fn of(file_bytes: u64, scores: &[Score]) -> Self {
        let peak = scores.iter().find(|s| s.metric == PEAK_MEMORY && s.value.is_finite() && s.value > 0.0);
        let bytes = peak.map_or(file_bytes, |score| score.value as u64);
        let gib = SIZES.into_iter().find(|gib| bytes as f64 <= gib * f64::from(1 << 30));
        Self { bytes, measured: peak.is_some(), gib }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Better;

    fn score(metric: &str, value: f64) -> Score {
        Score {
            task: "t".into(),
            metric: metric.into(),
            value,
            unit: String::new(),
            better: Better::Higher,
            samples: 1,
            interval: [value; 2],
        }
    }

    #[test]
    fn a_million_costs_what_the_machine_costs_while_it_works() {
        // 3.6 an hour is a thousandth a second; 1000 a second take 1000 s for a million: 1.00
        let pricing = Pricing::new(3.6).unwrap().volume(1e9).unwrap();
        let slow = Cost::of(&[score("samples_per_second", 1000.0)], &pricing, None).unwrap();
        assert!((slow.per_million - 1.0).abs() < 1e-12 && slow.saving_per_year.is_none());
        assert!((slow.per_year.unwrap() - 1000.0).abs() < 1e-9);
        let scores = [score("accuracy", 5.0), score("samples_per_second", 4000.0)];
        let fast = Cost::of(&scores, &pricing, Some(&slow)).unwrap();
        assert!((fast.per_million - 0.25).abs() < 1e-12 && fast.cheaper == Some(4.0));
        assert!((fast.saving_per_year.unwrap() - 750.0).abs() < 1e-9);
        // tokens are not predictions
        let tokens = Cost::of(&[score("tokens_per_second", 10.0)], &pricing, Some(&slow)).unwrap();
        assert_eq!((tokens.unit.as_str(), tokens.cheaper, tokens.saving_per_year), ("tokens", None, None));
        for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(Cost::of(&[score("tokens_per_second", value)], &pricing, None), None);
        }
        assert!(Pricing::new(-1.0).is_err() && Pricing::new(f64::NAN).is_err());
        assert!(Pricing::new(1.0).unwrap().volume(f64::INFINITY).is_err());
    }

    #[test]
    fn the_smallest_memory_that_holds_it() {
        let gib = |bytes, scores: &[Score]| Memory::of(bytes, scores).gib;
        assert_eq!(gib(1 << 29, &[]), Some(0.5));
        assert_eq!(gib((1 << 29) + 1, &[]), Some(1.0));
        assert_eq!(gib(1 << 40, &[]), Some(1024.0));
        assert_eq!(gib((1 << 40) + 1, &[]), None);
        // what was measured counts, not the file
        assert_eq!(
            Memory::of(5, &[score("peak_memory", 17e9)]),
            Memory { bytes: 17_000_000_000, measured: true, gib: Some(16.0) }
        );
    }
}
