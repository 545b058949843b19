//! How the input of a layer is quantized, as it is stored beside the layer's weight.

use std::fmt;

use super::WeightError;
use crate::dtype::Precision;
use crate::kernels::matmul::ActivationCodes;

/// How the input of a layer is rounded to 8-bit codes, without the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InputForm {
    /// Every token has its own scale, found while the network runs.
    Dynamic {
        /// Whether zero points are 0.
        symmetric: bool,
    },
    /// All inputs share one scale, found by calibration.
    Static {
        /// Whether the zero point is 0 (and is not stored).
        symmetric: bool,
    },
}

impl fmt::Display for InputForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, symmetric) = match self {
            Self::Dynamic { symmetric } => ("dynamic", symmetric),
            Self::Static { symmetric } => ("static", symmetric),
        };
        write!(f, "{kind} int8{} input", if *symmetric { "" } else { " asym" })
    }
}

/// Scale and zero point of all inputs of a layer: `value = (code − zero_point) · scale`, with codes from −128 to 127. What
/// lies outside is clamped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InputScales {
    scale: f32,
    zero_point: Option<i8>,
}

impl InputScales {
    /// A scale, and a zero point unless the codes are symmetric.
    ///
    /// # Errors
    /// When the scale is not positive, or it or its inverse is not finite.
    pub fn new(scale: f32, zero_point: Option<i8>) -> Result<Self, WeightError> {
        if scale > 0.0 && scale.is_finite() && (1.0 / scale).is_finite() {
            Ok(Self { scale, zero_point })
        } else {
            Err(WeightError::Scale { index: 0, value: scale })
        }
    }

    /// Step between neighbouring codes.
    pub fn scale(self) -> f32 {
        self.scale
    }

    /// The code of 0; `None` for symmetric codes, where it is 0.
    pub fn zero_point(self) -> Option<i8> {
        self.zero_point
    }
}

/// How the input of a layer is quantized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum QuantizedInput {
    /// Every token has its own scale, found while the network runs.
    Dynamic {
        /// Whether zero points are 0.
        symmetric: bool,
    },
    /// All inputs share one scale.
    Static(InputScales),
}

impl QuantizedInput {
    /// The same without the numbers.
    pub fn form(self) -> InputForm {
        match self {
            Self::Dynamic { symmetric } => InputForm::Dynamic { symmetric },
            Self::Static(scales) => InputForm::Static { symmetric: scales.zero_point.is_none() },
        }
    }

    /// What the products do with the input.
    pub fn codes(self) -> ActivationCodes {
        match self {
            Self::Dynamic { symmetric: true } => ActivationCodes::PerToken,
            Self::Dynamic { symmetric: false } => ActivationCodes::PerTokenAsymmetric,
            Self::Static(InputScales { scale, zero_point }) => {
                ActivationCodes::Static { scale, zero_point: zero_point.unwrap_or(0) }
            }
        }
    }

    /// The same with its scale in the precision in which it is stored.
    pub(super) fn rounded(self, precision: Precision) -> Result<Self, WeightError> {
        match self {
            Self::Static(InputScales { scale, zero_point }) => {
                InputScales::new(precision.round(scale), zero_point).map(Self::Static)
            }
            dynamic @ Self::Dynamic { .. } => Ok(dynamic),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_positive_and_have_an_inverse() {
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40] {
            assert!(InputScales::new(scale, None).is_err(), "{scale}");
        }
        let input = QuantizedInput::Static(InputScales::new(0.1, Some(-3)).unwrap());
        assert_eq!(input.form(), InputForm::Static { symmetric: false });
        let ActivationCodes::Static { scale, zero_point } = input.rounded(Precision::Bf16).unwrap().codes()
        else {
            panic!("{input:?}")
        };
        assert_eq!((scale, zero_point), (0.100_097_656, -3));
        // 1e-10 vanishes in f16
        let tiny = QuantizedInput::Static(InputScales::new(1e-10, None).unwrap());
        assert!(tiny.rounded(Precision::F16).is_err());
    }
}
