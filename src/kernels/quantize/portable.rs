use std::mem::MaybeUninit;

use super::{Affine, Codes, Encode, F8_E4M3_MAX, Job, Params, ROUND};
use crate::dtype::Precision;
use crate::kernels::pack;
use crate::kernels::reduce::{self, INFINITY};

/// Codes that are made before they are packed, a multiple of 32 so that they end on a word: few enough to stay in the
/// first-level cache, and so many that storing them is over before they are read again.
const PIECE: usize = 1024;

/// Calls `f` with a constant precision, so that the loops of `f32` are free of conversions.
macro_rules! with_precision {
    ($precision:expr, |$p:ident| $body:expr) => {
        match $precision {
            Precision::F32 => {
                let $p = Precision::F32;
                $body
            }
            Precision::F16 => {
                let $p = Precision::F16;
                $body
            }
            Precision::Bf16 => {
                let $p = Precision::Bf16;
                $body
            }
        }
    };
}
pub(super) use with_precision;

/// `x.clamp(low, high)` without its assertion; NaN becomes `low`.
#[inline(always)]
pub(super) fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// `f32` in ±448 → e4m3: nearest, ties to even.
#[inline(always)]
pub(super) fn e4m3(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) & 0x80;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    // 20 of the mantissa's bits go, half to even; a carry into the exponent is right. The bias goes from 127 to 7.
    let normal = ((magnitude + 0x7_ffff + ((magnitude >> 20) & 1)) >> 20).wrapping_sub(120 << 3);
    // below 2^-6 the step is 2^-9: the last place of numbers from 2^14 on
    let denormal = (f32::from_bits(magnitude) + 16_384.0).to_bits() & 0xff;
    (sign | if magnitude < 0x3c80_0000 { denormal } else { normal }) as u8
}

/// Codes of values under one scale as they are stored: integers `code + 2^(bits−1)`, or e4m3.
#[inline(always)]
pub(super) fn encode(
    codes: Codes,
    affine: Affine,
    precision: Precision,
    values: &[f32],
    out: &mut [MaybeUninit<u8>],
) {
    let Affine { scale, zero_point } = affine;
    match codes {
        Codes::Int { bits, .. } => {
            let half = (1i32 << (bits - 1)) as f32;
            let (low, high, zero_point) = (-half, half - 1.0, f32::from(zero_point));
            // half is even: adding it does not change which way a tie goes
            let round = ROUND + half;
            for (out, x) in out.iter_mut().zip(values) {
                let scaled = precision.round(precision.round(*x / scale) + zero_point);
                out.write((clamp(scaled, low, high) + round).to_bits() as u8);
            }
        }
        Codes::F8E4M3 => {
            for (out, x) in out.iter_mut().zip(values) {
                // Negative zero becomes zero, as adding a zero point of zero does.
                let scaled = precision.round(*x / scale) + 0.0;
                out.write(e4m3(clamp(scaled, -F8_E4M3_MAX, F8_E4M3_MAX)));
            }
        }
    }
}

/// Scale and zero point for values from `min` to `max`; `None` if the scale is not finite.
#[inline(always)]
pub(crate) fn affine(codes: Codes, min: f32, max: f32, precision: Precision) -> Option<Affine> {
    let (scale, zero_point) = parameters(codes, min, max, precision);
    scale.is_finite().then_some(Affine { scale, zero_point: zero_point as i8 })
}

/// [`affine`] unchecked, and without a branch once codes and precision are known.
#[inline(always)]
pub(super) fn parameters(codes: Codes, min: f32, max: f32, precision: Precision) -> (f32, f32) {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let round = |x| precision.round(x);
    let magnitude = larger(larger(max, -min), 0.0);
    let (scale, zero_point) = match codes {
        Codes::F8E4M3 => (round(magnitude / F8_E4M3_MAX), 0.0),
        Codes::Int { bits, symmetric: true } => (round(magnitude / (((1i32 << bits) - 1) as f32 / 2.0)), 0.0),
        Codes::Int { bits, symmetric: false } => {
            let (min, max) = (-larger(-min, 0.0), larger(max, 0.0));
            let half = (1i32 << (bits - 1)) as f32;
            let (low, high) = (-half, half - 1.0);
            let scale = round(round(max - min) / (high - low));
            let shift = round(min / scale);
            // All values zero: 0/0 would be NaN, and any zero point is right.
            let shift = if min == 0.0 { 0.0 } else { shift };
            let zero_point = if scale == 0.0 && min == 0.0 { 0.0 } else { round(low - shift) };
            (scale, (clamp(zero_point, low, high) + ROUND) - ROUND)
        }
    };
    (if scale == 0.0 { precision.epsilon() } else { scale }, zero_point)
}

/// Scale and zero point for these values; `None` if one of them, or the scale, is not finite.
#[inline(always)]
pub(super) fn affine_of(codes: Codes, precision: Precision, values: &[f32]) -> Option<Affine> {
    let (min, max) = if let Codes::Int { symmetric: false, .. } = codes {
        let extremes = reduce::extremes(values);
        if !reduce::all_finite(extremes) {
            return None;
        }
        if values.is_empty() { (0.0, 0.0) } else { (reduce::unkey(extremes.0), reduce::unkey(extremes.1)) }
    } else {
        let largest = reduce::largest(values);
        if largest >= INFINITY {
            return None;
        }
        (0.0, f32::from_bits(largest))
    };
    affine(codes, min, max, precision)
}

/// Where the codes of rows go.
pub(super) enum Out<'a> {
    /// Packed; every row starts on a word.
    Words(u8, &'a mut [MaybeUninit<u32>]),
    /// One byte each.
    Bytes(&'a mut [MaybeUninit<u8>]),
}

/// Quantizes rows; `affine(row, run, values)` gives the parameters of a run of `group` columns.
#[inline(always)]
pub(super) fn rows(
    codes: Codes,
    precision: Precision,
    values: &[f32],
    cols: usize,
    group: usize,
    out: Out<'_>,
    mut affine: impl FnMut(usize, usize, &[f32]) -> Option<Affine>,
) -> bool {
    match out {
        Out::Bytes(bytes) => {
            for (row, (values, bytes)) in
                values.chunks_exact(cols).zip(bytes.chunks_exact_mut(cols)).enumerate()
            {
                for (run, (values, bytes)) in values.chunks(group).zip(bytes.chunks_mut(group)).enumerate() {
                    let Some(affine) = affine(row, run, values) else { return false };
                    encode(codes, affine, precision, values, bytes);
                }
            }
        }
        Out::Words(bits, words) => {
            let words_per_row = pack::words_for(cols, bits);
            let mut piece = [MaybeUninit::new(0u8); PIECE];
            for (row, (values, words)) in
                values.chunks_exact(cols).zip(words.chunks_exact_mut(words_per_row)).enumerate()
            {
                let (mut filled, mut written) = (0, 0);
                for (run, mut values) in values.chunks(group).enumerate() {
                    let Some(affine) = affine(row, run, values) else { return false };
                    while !values.is_empty() {
                        let (now, later) = values.split_at(values.len().min(PIECE - filled));
                        encode(codes, affine, precision, now, &mut piece[filled..filled + now.len()]);
                        filled += now.len();
                        values = later;
                        if filled == PIECE {
                            let to = written + PIECE / 32 * usize::from(bits);
                            pack::portable::pack_uninit(&piece, bits, &mut words[written..to]);
                            (filled, written) = (0, to);
                        }
                    }
                }
                pack::portable::pack_uninit(&piece[..filled], bits, &mut words[written..]);
            }
        }
    }
    true
}

/// `false` when a value or scale is not finite.
#[inline(always)]
pub(super) fn quantize_task(job: Job<'_>) -> bool {
    let Job { scheme, values, out, params } = job;
    let Params { scales, mut zero_points } = params;
    let groups = scheme.groups_per_row();
    let mut quantize = |codes: Codes, precision: Precision, out: Out<'_>| {
        rows(codes, precision, values, scheme.cols, scheme.group, out, |row, run, values| {
            let affine = affine_of(codes, precision, values)?;
            scales[row * groups + run].write(affine.scale);
            if let Some(zero_points) = &mut zero_points {
                zero_points[row * groups + run].write(affine.zero_point);
            }
            Some(affine)
        })
    };
    with_precision!(scheme.precision, |p| match scheme.codes {
        Codes::Int { .. } => quantize(scheme.codes, p, out),
        Codes::F8E4M3 => quantize(Codes::F8E4M3, p, out),
    })
}

#[inline(always)]
pub(super) fn encode_task(job: Encode<'_>) {
    let Encode { scheme, values, out, affines, stride } = job;
    let encode = |codes: Codes, precision: Precision, out: Out<'_>| {
        rows(codes, precision, values, scheme.cols, scheme.group, out, |row, run, _| {
            Some(affines[row * stride + run])
        });
    };
    with_precision!(scheme.precision, |p| match scheme.codes {
        Codes::Int { .. } => encode(scheme.codes, p, out),
        Codes::F8E4M3 => encode(Codes::F8E4M3, p, out),
    });
}

/// [`encode`] with the precision as a constant.
#[inline(always)]
pub(super) fn encode_each(
    codes: Codes,
    affine: Affine,
    precision: Precision,
    values: &[f32],
    out: &mut [MaybeUninit<u8>],
) {
    with_precision!(precision, |p| encode(codes, affine, p, values, out));
}

/// `(code − zero_point) · scale`, rounded to `precision`.
#[inline(always)]
pub(super) fn dequantize_int(codes: &[i8], affine: Affine, precision: Precision, out: &mut [f32]) {
    let zero_point = i32::from(affine.zero_point);
    with_precision!(precision, |p| for (out, code) in out.iter_mut().zip(codes) {
        *out = p.round((i32::from(*code) - zero_point) as f32 * affine.scale);
    });
}

/// e4m3 → `f32`, exactly.
#[inline(always)]
pub(super) fn e4m3_value(code: u8) -> f32 {
    let (sign, magnitude) = (u32::from(code & 0x80) << 24, u32::from(code & 0x7f));
    let normal = (magnitude + (120 << 3)) << 20;
    // in the lowest binade the code counts steps of 2^-9
    let denormal = (f32::from_bits(magnitude | 0x4680_0000) - 16_384.0).to_bits();
    let value = if magnitude < 8 { denormal } else { normal };
    f32::from_bits(sign | if magnitude == 0x7f { f32::NAN.to_bits() } else { value })
}

/// `code · scale`, rounded to `precision`.
#[inline(always)]
pub(super) fn dequantize_f8(codes: &[u8], scale: f32, precision: Precision, out: &mut [f32]) {
    with_precision!(precision, |p| for (out, code) in out.iter_mut().zip(codes) {
        *out = p.round(e4m3_value(*code) * scale);
    });
}
