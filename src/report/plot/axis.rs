use crate::report::number::significant;

/// How values stand along an axis, and where it is marked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// The values that are marked.
    pub(super) ticks: Vec<f64>,
    /// Distance of the ticks, where they are evenly spaced.
    step: Option<f64>,
}

/// Part of the range that stays free at either end.
const MARGIN: f64 = 0.07;

impl Axis {
    /// An axis over these values with at most about `most` ticks; logarithmic if all are above 0 and the largest is at
    /// least `log_from` times the smallest.
    pub(super) fn over(values: impl IntoIterator<Item = f64>, log_from: f64, most: usize) -> Self {
        let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.into_iter().filter(|value| value.is_finite()) {
            (min, max) = (min.min(value), max.max(value));
        }
        if min > max {
            (min, max) = (0.0, 1.0);
        }
        if min > 0.0 && max / min >= log_from {
            let margin = (max / min).powf(MARGIN);
            let (low, high) = (min / margin, max * margin);
            let (ticks, step) = match log_ticks(low, high, most) {
                ticks if ticks.len() >= 3 => (ticks, None),
                _ => linear_ticks(low, high, most),
            };
            return Self { low, high, log: true, ticks, step };
        }
        let span = if max > min { max - min } else { max.abs().max(1.0) * 0.2 };
        let low = if min >= 0.0 { (min - span * MARGIN).max(0.0) } else { min - span * MARGIN };
        let high = max + span * MARGIN;
        let (ticks, step) = linear_ticks(low, high, most);
        Self { low, high, log: false, ticks, step }
    }

    /// Where a value stands: 0 at the low end, 1 at the high end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let place = if self.log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        if place.is_nan() { 0.0 } else { place.clamp(0.0, 1.0) }
    }

    /// A tick in words.
    pub(super) fn label(&self, tick: f64) -> String {
        if tick.abs() >= 1e6 || (tick != 0.0 && tick.abs() < 1e-4) {
            return format!("{tick:e}");
        }
        let decimals = match self.step {
            Some(step) => (-(step.log10() + 1e-9).floor()).max(0.0),
            None => (-(tick.abs().log10() + 1e-9).floor()).max(0.0),
        };
        if tick.abs() >= 1000.0 { significant(tick) } else { format!("{tick:.0$}", decimals as usize) }
    }
}

/// Multiples of 1, 2 or 5 times a power of ten.
fn linear_ticks(low: f64, high: f64, most: usize) -> (Vec<f64>, Option<f64>) {
    let rough = (high - low) / most.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(10.0 * power);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    // a power below 1 is not exact, a division by its inverse is
    let at = |i: i64| if step < 1.0 { i as f64 / (1.0 / step).round() } else { i as f64 * step };
    ((first..=last).take(2 * most.max(1)).map(at).collect(), Some(step))
}

/// Powers of ten, with their double and fivefold if there is room.
fn log_ticks(low: f64, high: f64, most: usize) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let within = |multiples: &[f64], every: usize| -> Vec<f64> {
        (first..=last)
            .step_by(every)
            .flat_map(|power| multiples.iter().map(move |m| (m, power)))
            .map(|(m, power)| if power < 0 { m / 10f64.powi(-power) } else { m * 10f64.powi(power) })
            .filter(|tick| (low..=high).contains(tick))
            .collect()
    };
    let dense = within(&[1.0, 2.0, 5.0], 1);
    if dense.len() <= most + 1 {
        return dense;
    }
    (1..=64).map(|every| within(&[1.0], every)).find(|ticks| ticks.len() <= most + 1).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[f64], log_from: f64) -> Vec<String> {
        let axis = Axis::over(values.iter().copied(), log_from, 6);
        axis.ticks.iter().map(|tick| axis.label(*tick)).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        // from 85.98 to 90.24: steps of 1
        assert_eq!(labels(&[86.26, 89.96], f64::INFINITY), ["87", "88", "89", "90"]);
        assert_eq!(labels(&[0.0, 1.0], 8.0), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&[0.8102, 0.8205], 8.0), ["0.810", "0.812", "0.814", "0.816", "0.818", "0.820"]);
        // two decades have room for 1, 2, 5; five have not
        assert_eq!(labels(&[0.5, 30.0], 8.0), ["0.5", "1", "2", "5", "10", "20"]);
        assert_eq!(labels(&[15.0, 90_000.0], 8.0), ["10", "100", "1,000", "10,000", "100,000"]);
        // less than a decade, where 1, 2, 5 are too few
        assert_eq!(labels(&[2.1, 4.9], 2.0), ["2", "3", "4", "5"]);
        assert!(labels(&[7.0], 8.0).len() > 1);
        assert_eq!(labels(&[], 8.0), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
    }

    #[test]
    fn places_by_hand() {
        let axis = Axis::over([1.0, 100.0], 8.0, 6);
        assert!((axis.at(10.0) - 0.5).abs() < 1e-12);
        let axis = Axis::over([-1.0, 1.0], 8.0, 6);
        assert_eq!(axis.at(0.0), 0.5);
        assert_eq!((axis.at(f64::NAN), axis.at(f64::INFINITY)), (0.0, 1.0));
    }
}
