use std::num::NonZeroUsize;

use crate::dtype::Precision;
use crate::kernels::convert;
use crate::kernels::level::Isa;
use crate::layer::{Compressed, Layer, Method, MethodError};
use crate::weight::{
    Coding, CompressedWeight, DenseValues, Layout, LayoutKind, Values, WeightError, matrix_shape,
};

/// What happens to a finite value that the target type would turn into an infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// The layer is refused.
    #[default]
    Refuse,
    /// The value becomes the largest finite one, and is counted.
    Clamp,
}

/// Converts weights to another float type: nearest, ties to even.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloatCast {
    precision: Precision,
    overflow: Overflow,
}

impl FloatCast {
    /// Converts to `precision`, and refuses weights that overflow it.
    pub fn to(precision: Precision) -> Self {
        Self { precision, overflow: Overflow::Refuse }
    }

    /// Chooses what happens on overflow.
    #[must_use]
    pub fn overflow(self, overflow: Overflow) -> Self {
        Self { overflow, ..self }
    }
}

impl Method for FloatCast {
    fn name(&self) -> String {
        format!("cast to {}", self.coding(Coding::Float(self.precision)))
    }

    fn coding(&self, _before: Coding) -> Coding {
        Coding::Float(self.precision)
    }

    fn row_block(&self) -> Option<NonZeroUsize> {
        Some(NonZeroUsize::MIN)
    }

    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError> {
        let [rows, cols] = matrix_shape(layer.shape)?;
        WeightError::check_len("values of the layer", rows * cols, layer.values.len())?;
        let clamp = self.overflow == Overflow::Clamp;
        let (values, met) = if layer.layout == LayoutKind::Dense {
            // every value is stored: one pass rounds and checks
            let isa = Isa::current();
            let (values, met) = match self.precision {
                Precision::F32 => {
                    let (values, met) = convert::cast_f32(layer.values);
                    (Values::F32(values), met)
                }
                Precision::F16 => {
                    let (values, met) = convert::cast_f16(isa, layer.values, clamp);
                    (Values::F16(values), met)
                }
                Precision::Bf16 => {
                    let (values, met) = convert::cast_bf16(isa, layer.values, clamp);
                    (Values::Bf16(values), met)
                }
            };
            (Some(values), met)
        } else {
            (None, convert::would_meet(self.precision, layer.values))
        };
        if met.non_finite {
            layer.check()?;
        }
        let clamped = met.overflow;
        let limit = self.precision.max();
        if clamped > 0 && !clamp {
            let overflows = |x: &f32| self.precision.round(*x).is_infinite();
            let index = layer.values.iter().position(overflows).unwrap_or_default();
            return Err(MethodError::Overflow {
                count: clamped,
                limit,
                target: if self.precision == Precision::F16 { "f16" } else { "bf16" },
                index,
                value: layer.values[index],
            });
        }
        let weight = if let Some(values) = values {
            layer.mask.map_or(Ok(()), |mask| mask.check(rows, cols))?;
            CompressedWeight::from_parts(layer.shape, Layout::Dense, values)?
        } else {
            let bounded: Vec<f32>;
            let mut values = layer.values;
            if clamped > 0 {
                bounded = values.iter().map(|x| x.clamp(-limit, limit)).collect();
                values = &bounded;
            }
            let values = DenseValues::Float(self.precision, values);
            CompressedWeight::encode(layer.shape, layer.layout, layer.mask, values)?
        };
        Ok(Compressed { clamped: clamped as u64, ..Compressed::plain(weight) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflow_is_refused_or_clamped_and_counted() {
        // 65520 is the first value that rounds to infinity in f16, 65519 still rounds to 65504
        let values = [1.0, 65519.0, 65520.0, -1e9];
        let layer = Layer::new(&[2, 2], &values, Precision::F32);
        let cast = FloatCast::to(Precision::F16);
        let error = cast.compress(&layer).unwrap_err();
        assert!(
            matches!(error, MethodError::Overflow { count: 2, index: 2, value: 65520.0, limit: 65504.0, .. }),
            "{error}"
        );
        let clamped = cast.overflow(Overflow::Clamp).compress(&layer).unwrap();
        assert_eq!(clamped.clamped, 2);
        let dense = clamped.weight.dequantize();
        assert_eq!(dense.as_slice().unwrap(), [1.0, 65504.0, 65504.0, -65504.0]);
        assert_eq!(FloatCast::to(Precision::Bf16).compress(&layer).unwrap().clamped, 0);
    }
}
