//! Conversions between `f32` and the narrower float types, on the bytes of a file.

mod portable;

use rayon::prelude::*;

use super::{CHUNK, PARALLEL_MIN};
use crate::dtype::{FloatType, Precision};

pub(crate) use portable::{f8_e4m3_from_f32, f8_e4m3_to_f32};
#[cfg(test)]
pub(crate) use portable::{f8_e5m2_from_f32, f8_e5m2_to_f32};

/// Widens little-endian elements of type `float` to `f32`.
///
/// # Shapes
/// `bytes` holds `out.len()` elements.
pub(crate) fn widen(float: FloatType, bytes: &[u8], out: &mut [f32]) {
    let size = float.size();
    debug_assert_eq!(bytes.len(), out.len() * size);
    if out.len() < PARALLEL_MIN {
        return portable::widen(float, bytes, out);
    }
    out.par_chunks_mut(CHUNK)
        .zip(bytes.par_chunks(CHUNK * size))
        .for_each(|(out, bytes)| portable::widen(float, bytes, out));
}

/// Appends `values`, rounded to `precision` (nearest, ties to even), to `out` as little-endian bytes.
pub(crate) fn narrow(precision: Precision, values: &[f32], out: &mut Vec<u8>) {
    let start = out.len();
    let size = precision.size();
    out.resize(start + values.len() * size, 0);
    let out = &mut out[start..];
    if values.len() < PARALLEL_MIN {
        return portable::narrow(precision, values, out);
    }
    out.par_chunks_mut(CHUNK * size)
        .zip(values.par_chunks(CHUNK))
        .for_each(|(out, values)| portable::narrow(precision, values, out));
}

/// Counts the finite values that become infinite when rounded to `precision`.
pub(crate) fn count_overflow(precision: Precision, values: &[f32]) -> usize {
    if precision == Precision::F32 {
        return 0;
    }
    values.par_chunks(CHUNK).map(|v| portable::count_overflow(precision, v)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The e4m3 and e5m2 values by their definition: sign · 2^(e − bias) · (1 + m/2^mbits), denormal for e = 0.
    fn by_definition(code: u8, exponent_bits: u32, mantissa_bits: u32) -> f64 {
        let bias = (1i32 << (exponent_bits - 1)) - 1;
        let exponent = i32::from((code & 0x7f) >> mantissa_bits);
        let fraction = f64::from(code & ((1 << mantissa_bits) - 1)) / f64::from(1u32 << mantissa_bits);
        let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
        if exponent == 0 {
            sign * 2f64.powi(1 - bias) * fraction
        } else {
            sign * 2f64.powi(exponent - bias) * (1.0 + fraction)
        }
    }

    #[test]
    fn f8_codes_widen_to_their_definition_and_back() {
        for code in 0..=255u8 {
            let e4m3 = f8_e4m3_to_f32(code);
            if code & 0x7f == 0x7f {
                assert!(e4m3.is_nan());
            } else {
                assert_eq!(f64::from(e4m3), by_definition(code, 4, 3), "e4m3 {code:#04x}");
                assert_eq!(f8_e4m3_from_f32(e4m3), code);
            }
            let e5m2 = f8_e5m2_to_f32(code);
            match code & 0x7f {
                0x7c => assert!(e5m2.is_infinite()),
                0x7d.. => assert!(e5m2.is_nan()),
                _ => {
                    assert_eq!(f64::from(e5m2), by_definition(code, 5, 2), "e5m2 {code:#04x}");
                    assert_eq!(f8_e5m2_from_f32(e5m2), code);
                }
            }
        }
    }

    #[test]
    fn f8_rounds_half_to_even_between_neighbours() {
        for code in 0..0x7eu8 {
            let (low, high) = (f8_e4m3_to_f32(code), f8_e4m3_to_f32(code + 1));
            let middle = f32::midpoint(low, high); // exact: both have few mantissa bits
            let even = if code % 2 == 0 { code } else { code + 1 };
            assert_eq!(f8_e4m3_from_f32(middle), even, "middle of {low} and {high}");
            assert_eq!(f8_e4m3_from_f32(middle.next_down()), code);
            assert_eq!(f8_e4m3_from_f32(middle.next_up()), code + 1);
            assert_eq!(f8_e4m3_from_f32(-middle.next_up()), (code + 1) | 0x80);
        }
        // beyond the largest finite value: clamped
        assert_eq!(f8_e4m3_from_f32(1e30), 0x7e);
        assert_eq!(f8_e4m3_from_f32(f32::NEG_INFINITY), 0xfe);
    }

    #[test]
    fn widening_is_the_same_at_every_length() {
        let values: Vec<f32> = (0..PARALLEL_MIN * 2 + 7).map(|i| (i as f32 - 300.0) * 0.37).collect();
        for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
            let float = match precision {
                Precision::F32 => FloatType::F32,
                Precision::F16 => FloatType::F16,
                Precision::Bf16 => FloatType::Bf16,
            };
            let mut bytes = Vec::new();
            narrow(precision, &values, &mut bytes);
            let mut wide = vec![0.0; values.len()];
            widen(float, &bytes, &mut wide);
            for (x, y) in values.iter().zip(&wide) {
                assert_eq!(precision.round(*x), *y);
            }
        }
    }

    /// Every tensor of `fixtures/golden/convert.safetensors`, which torch wrote (`convert.py` beside it).
    #[test]
    fn conversions_equal_torch() {
        const GOLDEN: &[u8] = include_bytes!("../../../fixtures/golden/convert.safetensors");
        let golden = safetensors::SafeTensors::deserialize(GOLDEN).unwrap();
        let bytes = |name: &str| golden.tensor(name).unwrap().data().to_vec();
        let floats = |name: &str| -> Vec<f32> {
            bytes(name).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let input = floats("input");
        assert_eq!(input.len(), 16_796);
        for (name, precision) in [("f16", Precision::F16), ("bf16", Precision::Bf16)] {
            let mut narrowed = Vec::new();
            narrow(precision, &input, &mut narrowed);
            let (ours, torch) = (narrowed.as_chunks::<2>().0, bytes(name));
            for ((x, ours), torch) in input.iter().zip(ours).zip(torch.as_chunks::<2>().0) {
                assert_eq!(ours, torch, "{x:e} to {name}");
            }
        }
        for (x, (e4m3, e5m2)) in input.iter().zip(bytes("e4m3").iter().zip(bytes("e5m2"))) {
            assert_eq!((f8_e4m3_from_f32(*x), f8_e5m2_from_f32(*x)), (*e4m3, e5m2), "{x:e}");
        }
        let codes: Vec<u8> = (0..=255).collect();
        for (name, float) in [("e4m3.f32", FloatType::F8E4M3), ("e5m2.f32", FloatType::F8E5M2)] {
            let mut wide = vec![0.0; codes.len()];
            widen(float, &codes, &mut wide);
            for (code, (ours, torch)) in wide.iter().zip(floats(name)).enumerate() {
                // a NaN's sign and payload depend on the processor
                let same = ours.to_bits() == torch.to_bits() || (ours.is_nan() && torch.is_nan());
                assert!(same, "{name} of {code:#04x}: {ours}, torch {torch}");
            }
        }
    }
}
