//! Element types, and which of them tersor computes with.

use half::{bf16, f16};

/// Element type of a tensor in a safetensors file, as the format itself names it.
pub use safetensors::Dtype as DType;

/// A floating-point element type that tersor can widen to `f32`.
///
/// Every type but [`FloatType::F64`] widens exactly; `f64` is rounded to the nearest `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    Bf16,
    /// OCP 8-bit float with 4 exponent and 3 mantissa bits, no infinities, largest value 448.
    F8E4M3,
    /// OCP 8-bit float with 5 exponent and 2 mantissa bits, largest value 57344.
    F8E5M2,
}

impl FloatType {
    /// The float type that `dtype` names, or `None` for integers, booleans and types tersor only carries along.
    pub fn of(dtype: DType) -> Option<Self> {
        Some(match dtype {
            DType::F64 => Self::F64,
            DType::F32 => Self::F32,
            DType::F16 => Self::F16,
            DType::BF16 => Self::Bf16,
            DType::F8_E4M3 => Self::F8E4M3,
            DType::F8_E5M2 => Self::F8E5M2,
            _ => return None,
        })
    }

    /// Size of one element in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::F8E4M3 | Self::F8E5M2 => 1,
        }
    }
}

/// The precision a model is kept in: the type of its scales and of the arithmetic that quantizes it.
///
/// The `compressed-tensors` package divides, adds and multiplies in the dtype of the weight, so that a bf16
/// model gets bf16 scales and every intermediate result rounded to bf16. tersor does the same, in order to write
/// the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// binary32
    #[default]
    F32,
    /// binary16
    F16,
    /// bfloat16
    Bf16,
}

impl Precision {
    /// The precision in which a weight of type `float` is compressed: its own for F16 and BF16, F32 for the rest.
    pub fn of(float: FloatType) -> Self {
        match float {
            FloatType::F16 => Self::F16,
            FloatType::Bf16 => Self::Bf16,
            _ => Self::F32,
        }
    }

    /// Rounds to the nearest value of this precision, ties to even, overflow to infinity.
    #[inline(always)]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => round_to_f16(x),
            Self::Bf16 => round_to_bf16(x),
        }
    }

    /// Distance from 1 to the next larger value: what stands in for a scale of zero.
    pub fn epsilon(self) -> f32 {
        match self {
            Self::F32 => f32::EPSILON,
            Self::F16 => f16::EPSILON.to_f32(),
            Self::Bf16 => bf16::EPSILON.to_f32(),
        }
    }

    /// Largest finite value.
    pub fn max(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::F16 => f16::MAX.to_f32(),
            Self::Bf16 => bf16::MAX.to_f32(),
        }
    }

    /// Smallest positive value, a subnormal, and smallest normal one. The first does not fit `f32` with room to halve it.
    pub(crate) fn smallest(self) -> (f64, f64) {
        match self {
            Self::F32 => (2f64.powi(-149), 2f64.powi(-126)),
            Self::F16 => (2f64.powi(-24), 2f64.powi(-14)),
            Self::Bf16 => (2f64.powi(-133), 2f64.powi(-126)),
        }
    }

    /// The dtype a tensor of this precision has in a file.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Size of one element in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

// Both are `half`'s conversion there and back, but without a branch or a call, so that loops over them vectorize.

#[inline(always)]
fn round_to_f16(x: f32) -> f32 {
    let sign = x.to_bits() & 0x8000_0000;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    // 13 bits fewer, half to even; a carry into the exponent is right
    let normal = (magnitude + 0x0fff + ((magnitude >> 13) & 1)) & !0x1fff;
    // 65520 and above are beyond the largest; NaN stays NaN, and becomes quiet
    let normal = if normal >= 0x4780_0000 { 0x7f80_0000 } else { normal };
    let normal = if magnitude > 0x7f80_0000 { (magnitude | 0x0040_0000) & !0x1fff } else { normal };
    // below 2^-14 the step is 2^-24: the last place of numbers from 0.5 on
    let denormal = ((f32::from_bits(magnitude) + 0.5) - 0.5).to_bits();
    f32::from_bits(sign | if magnitude < 0x3880_0000 { denormal } else { normal })
}

#[inline(always)]
fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    let nan = (bits | 0x0040_0000) & 0xffff_0000;
    f32::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_the_conversion_there_and_back() {
        // every upper half with the lower bits around every rounding boundary
        let ends = [0, 1, 0xfff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff];
        for upper in 0..=0xffffu32 {
            for lower in ends {
                let x = f32::from_bits(upper << 16 | lower);
                assert_eq!(Precision::F16.round(x).to_bits(), f16::from_f32(x).to_f32().to_bits(), "{x:e}");
                assert_eq!(Precision::Bf16.round(x).to_bits(), bf16::from_f32(x).to_f32().to_bits(), "{x:e}");
            }
        }
    }

    #[test]
    fn epsilons_are_those_of_the_formats() {
        // 2^-23, 2^-10 and 2^-7: one unit in the last place of 1.0
        assert_eq!(Precision::F32.epsilon(), 2f32.powi(-23));
        assert_eq!(Precision::F16.epsilon(), 2f32.powi(-10));
        assert_eq!(Precision::Bf16.epsilon(), 2f32.powi(-7));
    }

    #[test]
    fn smallest_values_are_those_of_the_formats() {
        assert_eq!(Precision::F32.smallest().0, f64::from(f32::from_bits(1)));
        assert_eq!(Precision::F16.smallest().0, f16::from_bits(1).to_f64());
        assert_eq!(Precision::Bf16.smallest().0, bf16::from_bits(1).to_f64());
        assert_eq!(Precision::F16.smallest().1, f16::MIN_POSITIVE.to_f64());
        assert_eq!(Precision::Bf16.smallest().1, bf16::MIN_POSITIVE.to_f64());
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        // halfway between 1 and 1 + 2^-7, and between 1 + 2^-7 and 1 + 2^-6
        assert_eq!(Precision::Bf16.round(1.0 + 2f32.powi(-8)), 1.0);
        assert_eq!(Precision::Bf16.round(1.0 + 3.0 * 2f32.powi(-8)), 1.0 + 2f32.powi(-6));
        assert_eq!(Precision::F16.round(65519.0), 65504.0);
        assert_eq!(Precision::F16.round(65520.0), f32::INFINITY);
    }
}
