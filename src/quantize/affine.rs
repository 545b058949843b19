use super::observer::Range;
use super::round::CodeType;
use crate::dtype::Precision;
use crate::kernels::quantize;
use crate::layer::MethodError;

pub use crate::kernels::quantize::Affine;

/// Largest e4m3 value.
pub(crate) const F8_E4M3_MAX: f32 = 448.0;

impl Affine {
    /// The parameters that spread the codes over a range, which is widened to include 0.
    ///
    /// Symmetric: `scale = max(−min, max) / ((2^b − 1) / 2)` for integers and `/ 448` for e4m3. Asymmetric:
    /// `scale = (max − min) / (2^b − 1)`, `zero_point = round(−2^(b−1) − min / scale)`. A scale of zero becomes the
    /// precision's epsilon. Every operation is rounded to `precision` (`compressed-tensors`, `calculate_qparams`).
    ///
    /// # Errors
    /// When the width of the range overflows the precision.
    pub fn from_range(range: Range, codes: CodeType, precision: Precision) -> Result<Self, MethodError> {
        quantize::affine(codes.kernel(), range.min, range.max, precision)
            .ok_or(MethodError::Range { min: range.min, max: range.max })
    }

    /// A value after quantizing and dequantizing.
    pub fn fake_quantize(self, x: f32, codes: CodeType, precision: Precision) -> f32 {
        self.fake_quantize_as(x, codes.kernel(), precision)
    }

    /// Whether a value lies beyond the first or the last code, and quantizing clamps it.
    #[cfg(feature = "candle")]
    pub(crate) fn clamps(self, x: f32, codes: CodeType, precision: Precision) -> bool {
        let round = |x| precision.round(x);
        match codes {
            CodeType::Int { bits, .. } => {
                let (low, high) = bits.range();
                let code = round(round(x / self.scale) + f32::from(self.zero_point)).round_ties_even();
                !(low as f32..=high as f32).contains(&code)
            }
            CodeType::F8E4M3 => round(x / self.scale).abs() > F8_E4M3_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weight::Bits;

    #[test]
    fn symmetric_int4_by_hand() {
        let codes = CodeType::Int { bits: Bits::new(4).unwrap(), symmetric: true };
        let affine = Affine::from_range(Range { min: -3.0, max: 15.0 }, codes, Precision::F32).unwrap();
        assert_eq!(affine, Affine { scale: 2.0, zero_point: 0 }); // 15 / 7.5
        // 15 / 2 = 7.5 rounds to 8 and is clamped to 7; −3 / 2 = −1.5 rounds to −2
        assert_eq!(affine.fake_quantize(15.0, codes, Precision::F32), 14.0);
        assert_eq!(affine.fake_quantize(-3.0, codes, Precision::F32), -4.0);
    }

    #[test]
    fn asymmetric_int8_by_hand() {
        let codes = CodeType::Int { bits: Bits::new(8).unwrap(), symmetric: false };
        let affine = Affine::from_range(Range { min: 1.0, max: 255.0 }, codes, Precision::F32).unwrap();
        assert_eq!(affine, Affine { scale: 1.0, zero_point: -128 }); // the range starts at 0
        let affine = Affine::from_range(Range { min: -255.0, max: 0.0 }, codes, Precision::F32).unwrap();
        assert_eq!(affine, Affine { scale: 1.0, zero_point: 127 });
        let zero = Affine::from_range(Range { min: 0.0, max: 0.0 }, codes, Precision::Bf16).unwrap();
        assert_eq!(zero, Affine { scale: 0.007_812_5, zero_point: 0 });
    }

    #[test]
    fn a_range_wider_than_f16_is_refused() {
        let codes = CodeType::Int { bits: Bits::new(8).unwrap(), symmetric: false };
        let range = Range { min: -60_000.0, max: 60_000.0 };
        assert!(Affine::from_range(range, codes, Precision::F32).is_ok());
        let error = Affine::from_range(range, codes, Precision::F16).unwrap_err();
        assert!(error.to_string().contains("-60000 to 60000"), "{error}");
    }
}
