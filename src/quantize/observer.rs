use super::affine::Affine;
use super::histogram::Histogram;
use super::round::CodeType;
use crate::dtype::Precision;
use crate::kernels::level::Isa;
use crate::kernels::quantize::search;
use crate::kernels::reduce;
use crate::layer::MethodError;

/// The range of values that codes span.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Lower end.
    pub min: f32,
    /// Upper end.
    pub max: f32,
}

/// How the range is found. What lies outside is clamped to its ends.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Observer {
    /// Smallest to largest value.
    #[default]
    MinMax,
    /// `−a` to `a`, where `a` is the largest magnitude.
    AbsMax,
    /// The `100 − p` and `p` percentiles, `50 < p ≤ 100`, interpolated linearly between values.
    Percentile(f64),
    /// The smallest-to-largest range shrunk by one of 100 factors from 1 down to 0.2, so that the sum of squared
    /// errors of the dequantized values is least; among equals the widest.
    Mse,
    /// The clipping threshold whose quantized distribution of magnitudes has the least Kullback–Leibler divergence from
    /// the observed one (Migacz, "8-bit inference with TensorRT", GTC 2017).
    Entropy,
}

impl Range {
    /// The range that step `step` of [`Observer::Mse`] tries.
    fn shrunk(self, step: usize) -> Self {
        let factor = search::FACTORS[step];
        Self { min: self.min * factor, max: self.max * factor }
    }
}

impl Observer {
    /// Checks the options.
    ///
    /// # Errors
    /// When the percentile is not in `(50, 100]`.
    pub fn check(self) -> Result<(), MethodError> {
        match self {
            Self::Percentile(value) if !(value > 50.0 && value <= 100.0) => {
                Err(MethodError::Option { option: "percentile", value, expected: "above 50 and at most 100" })
            }
            _ => Ok(()),
        }
    }

    /// Whether it sorts a copy of the values.
    pub(super) fn sorts(self) -> bool {
        matches!(self, Self::Percentile(_))
    }

    /// The range of some values.
    ///
    /// # Errors
    /// When a value is NaN or infinite, an option is outside its range, or the range overflows the precision.
    pub fn range(self, values: &[f32], codes: CodeType, precision: Precision) -> Result<Range, MethodError> {
        self.check()?;
        let (min, max) = reduce::min_max(values)?;
        let full = Range { min, max };
        match self {
            Self::MinMax => Ok(full),
            Self::AbsMax => {
                let a = max.max(-min);
                Ok(Range { min: -a, max: a })
            }
            Self::Percentile(p) => {
                let mut sorted = values.to_vec();
                sorted.sort_unstable_by(f32::total_cmp);
                Ok(Range { min: quantile(&sorted, 1.0 - p / 100.0), max: quantile(&sorted, p / 100.0) })
            }
            Self::Mse => {
                // no narrower range overflows if this one does not
                Affine::from_range(full, codes, precision)?;
                let step = search::least_error(Isa::current(), codes.kernel(), precision, values, (min, max));
                Ok(full.shrunk(step))
            }
            Self::Entropy => {
                let mut histogram = Histogram::new();
                histogram.observe(values)?;
                Ok(histogram.entropy_range(codes.magnitude_levels()).unwrap_or(full))
            }
        }
    }
}

/// The shrunk range with the least error; among equals the widest.
pub(super) fn least_error(
    full: Range,
    error_of: impl Fn(Range) -> Result<f64, MethodError>,
) -> Result<Range, MethodError> {
    let mut best = (error_of(full)?, full);
    for step in 1..search::STEPS {
        let range = full.shrunk(step);
        let error = error_of(range)?;
        if error < best.0 {
            best = (error, range);
        }
    }
    Ok(best.1)
}

/// Linear interpolation between order statistics, as numpy's default; 0 for no values.
fn quantile(sorted: &[f32], q: f64) -> f32 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let position = q * last as f64;
    let below = (position.floor() as usize).min(last);
    let above = (below + 1).min(last);
    let fraction = position - below as f64;
    (f64::from(sorted[below]) * (1.0 - fraction) + f64::from(sorted[above]) * fraction) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weight::Bits;

    fn int4() -> CodeType {
        CodeType::Int { bits: Bits::new(4).unwrap(), symmetric: true }
    }

    fn range(observer: Observer, values: &[f32]) -> Range {
        observer.range(values, int4(), Precision::F32).unwrap()
    }

    #[test]
    fn simple_ranges_follow_from_their_definition() {
        let values = [3.0, -1.0, 0.5, 2.0];
        assert_eq!(range(Observer::MinMax, &values), Range { min: -1.0, max: 3.0 });
        assert_eq!(range(Observer::AbsMax, &values), Range { min: -3.0, max: 3.0 });
        // numpy.percentile([3, -1, .5, 2], [10, 90]) = [-0.55, 2.7]
        assert_eq!(range(Observer::Percentile(90.0), &values), Range { min: -0.55, max: 2.7 });
        assert_eq!(range(Observer::Percentile(100.0), &values), Range { min: -1.0, max: 3.0 });
        assert_eq!(range(Observer::MinMax, &[]), Range { min: 0.0, max: 0.0 });
        assert!(Observer::Percentile(50.0).range(&values, int4(), Precision::F32).is_err());
    }

    #[test]
    fn mse_clips_a_lone_outlier_and_never_loses_to_min_max() {
        // 400 values on a fine grid in ±1 and one outlier of 2
        let mut values: Vec<f32> = (0..400).map(|i| (i as f32 - 199.5) / 200.0).collect();
        values.push(2.0);
        let error = |range: Range| -> f64 {
            let affine = Affine::from_range(range, int4(), Precision::F32).unwrap();
            values
                .iter()
                .map(|x| f64::from(affine.fake_quantize(*x, int4(), Precision::F32) - x).powi(2))
                .sum()
        };
        let clipped = range(Observer::Mse, &values);
        assert!(clipped.max < 1.5, "{clipped:?}");
        // with a step s: 400·s²/12 within the grid and (2 − 7s)² for the outlier; 2.39 at s = 2/7.5, least 1.62 at 0.17
        assert!(error(clipped) < 0.7 * error(range(Observer::MinMax, &values)));
        // the best of all 100 candidates, by exhaustive search of the definition
        let least = (0..100)
            .map(|i| {
                let f = 1.0 - 0.8f32 * i as f32 / 99.0;
                error(Range { min: values[0] * f, max: 2.0 * f })
            })
            .fold(f64::INFINITY, f64::min);
        assert_eq!(error(clipped), least);
    }
}
