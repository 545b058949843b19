//! Rounding to codes and back, one run of values under one scale at a time.

mod portable;

pub(crate) use portable::{dequantize_f8, dequantize_int, quantize_f8, quantize_int, quantize_one};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Precision;

    #[test]
    fn codes_are_rounded_half_to_even_and_clamped() {
        // every quarter from −200 to 200
        for quarter in -800..=800i32 {
            let x = quarter as f32 / 4.0;
            for bits in 2..=8u8 {
                let half = f32::from(1i16 << (bits - 1));
                let expected = x.clamp(-half, half - 1.0).round_ties_even() as i8;
                let mut code = [0i8];
                quantize_int(&[x], 1.0, 0, bits, Precision::F32, &mut code);
                assert_eq!(code, [expected], "{x} in {bits} bits");
            }
        }
    }
}
