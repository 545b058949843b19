use super::affine::Affine;
use super::histogram::Histogram;
use super::observer::{Observer, Range, least_error};
use super::round::CodeType;
use crate::dtype::Precision;
use crate::error::NonFinite;
use crate::layer::MethodError;
use crate::weight::{Bits, InputScales};

/// Watches activations stream by and finds the range that static activation quantization needs, in constant memory.
///
/// ```
/// use tersor::{ActivationObserver, Bits, CodeType, Observer, Precision};
///
/// let mut observer = ActivationObserver::new(Observer::MinMax)?;
/// observer.observe(&[-0.5, 1.0])?; // one batch
/// observer.observe(&[2.05])?; // the next
/// let int8 = CodeType::Int { bits: Bits::new(8).unwrap(), symmetric: false };
/// let affine = observer.affine(int8, Precision::F32)?;
/// assert_eq!((affine.scale, affine.zero_point), (0.01, -78));
/// # Ok::<(), tersor::MethodError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ActivationObserver {
    observer: Observer,
    histogram: Histogram,
}

impl ActivationObserver {
    /// An observer that has seen nothing.
    ///
    /// # Errors
    /// When an option is outside its range.
    pub fn new(observer: Observer) -> Result<Self, MethodError> {
        observer.check()?;
        Ok(Self { observer, histogram: Histogram::new() })
    }

    /// Adds a batch of activations.
    ///
    /// # Errors
    /// When a value is NaN or infinite; then none is added.
    pub fn observe(&mut self, activations: &[f32]) -> Result<(), NonFinite> {
        self.histogram.observe(activations)
    }

    /// What has been seen.
    pub fn histogram(&self) -> &Histogram {
        &self.histogram
    }

    /// The range of what has been seen. Percentiles, MSE and entropy work on the histogram, to within one of its bins.
    ///
    /// # Errors
    /// When the range overflows the precision.
    pub fn range(&self, codes: CodeType, precision: Precision) -> Result<Range, MethodError> {
        let seen = &self.histogram;
        let full = Range { min: seen.min(), max: seen.max() };
        match self.observer {
            Observer::MinMax => Ok(full),
            Observer::AbsMax => {
                let a = full.max.max(-full.min);
                Ok(Range { min: -a, max: a })
            }
            Observer::Percentile(p) => {
                Ok(Range { min: seen.quantile(1.0 - p / 100.0), max: seen.quantile(p / 100.0) })
            }
            Observer::Mse => least_error(full, |range| {
                let affine = Affine::from_range(range, codes, precision)?;
                Ok(seen
                    .bins()
                    .map(|(middle, count)| {
                        let error = f64::from(affine.fake_quantize(middle as f32, codes, precision)) - middle;
                        error * error * count as f64
                    })
                    .sum())
            }),
            Observer::Entropy => Ok(seen.entropy_range(codes.magnitude_levels()).unwrap_or(full)),
        }
    }

    /// What static quantization to 8 bits makes of a layer's input that was like what has been seen.
    ///
    /// # Errors
    /// When the range overflows the precision, or the scale vanishes in it.
    pub fn static_input(&self, symmetric: bool, precision: Precision) -> Result<InputScales, MethodError> {
        const BITS: Bits = Bits::new(8).expect("2 ≤ 8 ≤ 8");
        let affine = self.affine(CodeType::Int { bits: BITS, symmetric }, precision)?;
        let zero_point = (!symmetric).then_some(affine.zero_point);
        Ok(InputScales::new(affine.scale, zero_point)?)
    }

    /// Scale and zero point for what has been seen.
    ///
    /// # Errors
    /// When the range overflows the precision.
    pub fn affine(&self, codes: CodeType, precision: Precision) -> Result<Affine, MethodError> {
        Affine::from_range(self.range(codes, precision)?, codes, precision)
    }
}
