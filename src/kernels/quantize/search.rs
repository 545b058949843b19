//! The search for the range with the least squared error.

use super::portable::{clamp, e4m3, e4m3_value, parameters, with_precision};
use super::{Codes, F8_E4M3_MAX, ROUND};
use crate::dtype::Precision;
#[cfg(target_arch = "x86_64")]
use crate::kernels::level::Avx512;
use crate::kernels::level::{Isa, multiversion};

/// Shrunk ranges that are tried.
pub(crate) const STEPS: usize = 100;

/// Candidates that are tried side by side: their sums are independent, while the terms of each must be added in order.
pub(super) const LANES: usize = 16;

/// Values after which candidates that have lost already are given up.
pub(super) const CHECK: usize = 16;

/// Registers of candidates for all steps.
#[cfg(target_arch = "x86_64")]
pub(super) const BATCHES: usize = STEPS.div_ceil(LANES);

/// Squared errors that a rough sum adds in `f32`.
#[cfg(target_arch = "x86_64")]
pub(super) const BLOCK: usize = 64;

/// What each step multiplies the range with: 1 down to 0.2.
pub(crate) static FACTORS: [f32; STEPS] = {
    let mut factors = [0.0; STEPS];
    let mut step = 0;
    while step < STEPS {
        factors[step] = 1.0 - (1.0 - 0.2f32) * step as f32 / (STEPS - 1) as f32;
        step += 1;
    }
    factors
};

/// The step whose range, shrunk from `[min, max]`, gives the least sum of squared errors; the first among equals.
///
/// Sums are of `f64` squares of `f32` errors, in the order of the values. The values must be finite, the range must be
/// their smallest and largest, and its scale finite.
pub(crate) fn least_error(
    isa: Isa,
    codes: Codes,
    precision: Precision,
    values: &[f32],
    range: (f32, f32),
) -> usize {
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Avx512(token), Codes::Int { bits, symmetric }, Precision::F32) = (isa, codes, precision)
        && let Some(best) = least_of_shortlist(token, bits, symmetric, values, range)
    {
        return best;
    }
    let (mut least, mut best) = (f64::INFINITY, 0);
    for first in (0..STEPS).step_by(LANES) {
        let (lanes, low, high) = candidates_in(isa, codes, precision, range, first);
        // no intermediate result of the division by reciprocal may overflow or lose bits to underflow
        let tame = low >= 1e-18 && high <= 1e18 && range.0.abs().max(range.1.abs()) / low <= 1e9;
        // The errors of the two ends alone are enough to lose, with some room for the rounding of the sums.
        if range.0 < range.1
            && least < f64::INFINITY
            && errors_of(isa, codes, precision, &[range.0, range.1], &lanes, tame, f64::INFINITY)
                .iter()
                .all(|sum| *sum * (1.0 - 1e-6) >= least)
        {
            continue;
        }
        let sums = errors_of(isa, codes, precision, values, &lanes, tame, least);
        for (lane, sum) in sums.iter().enumerate() {
            if first + lane < STEPS && *sum < least {
                (least, best) = (*sum, first + lane);
            }
        }
        if least == 0.0 {
            break;
        }
    }
    best
}

/// [`least_error`] of `f32` values to integers, exactly computed only for candidates that a rough sum does not rule out;
/// `None` where rough sums could over- or underflow.
#[cfg(target_arch = "x86_64")]
#[inline]
fn least_of_shortlist(
    token: Avx512,
    bits: u8,
    symmetric: bool,
    values: &[f32],
    range: (f32, f32),
) -> Option<usize> {
    let (isa, codes) = (Isa::Avx512(token), Codes::Int { bits, symmetric });
    let mut lanes = [Candidates::NONE; BATCHES];
    for (batch, lanes) in lanes.iter_mut().enumerate() {
        let (batch, low, high) = candidates_in(isa, codes, Precision::F32, range, batch * LANES);
        let magnitude = range.0.abs().max(range.1.abs());
        if !(low >= 1e-15 && high <= 1e12 && magnitude <= 1e6 * low) {
            return None;
        }
        *lanes = batch;
    }
    let mut left = super::avx512::shortlist(token, bits, symmetric, values, &lanes);
    let (mut least, mut best) = (f64::INFINITY, left.trailing_zeros() as usize);
    if left.is_power_of_two() {
        return Some(best);
    }
    while left != 0 {
        // lanes that are not filled do not count
        let (mut exact, mut tried, mut count) = (Candidates::NONE, [0; LANES], 0);
        while left != 0 && count < LANES {
            let (lane, step) = (count, left.trailing_zeros() as usize);
            left &= left - 1;
            let from = &lanes[step / LANES];
            exact.scale[lane] = from.scale[step % LANES];
            exact.reciprocal[lane] = from.reciprocal[step % LANES];
            exact.zero_point[lane] = from.zero_point[step % LANES];
            (tried[lane], count) = (step, lane + 1);
        }
        let sums = super::avx512::int_errors(token, bits, symmetric, values, &exact, least);
        for (sum, step) in sums.iter().zip(&tried[..count]) {
            if *sum < least {
                (least, best) = (*sum, *step);
            }
        }
    }
    Some(best)
}

#[inline]
fn errors_of(
    isa: Isa,
    codes: Codes,
    precision: Precision,
    values: &[f32],
    lanes: &Candidates,
    tame: bool,
    least: f64,
) -> [f64; LANES] {
    match (isa, codes) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512(token), Codes::Int { bits, symmetric }) if tame && precision == Precision::F32 => {
            super::avx512::int_errors(token, bits, symmetric, values, lanes, least)
        }
        (Isa::Portable, _) => errors_divided(isa, codes, precision, values, lanes, least),
        _ if !tame => errors_divided(isa, codes, precision, values, lanes, least),
        #[cfg(target_arch = "x86_64")]
        _ => errors_fused(isa, codes, precision, values, lanes, least),
    }
}

/// `LANES` candidates, lane by lane.
#[derive(Clone, Copy)]
pub(super) struct Candidates {
    pub(super) scale: [f32; LANES],
    pub(super) reciprocal: [f32; LANES],
    pub(super) zero_point: [f32; LANES],
}

impl Candidates {
    const NONE: Self = Self { scale: [1.0; LANES], reciprocal: [1.0; LANES], zero_point: [0.0; LANES] };
}

multiversion! {
    fn candidates_in(codes: Codes, precision: Precision, range: (f32, f32), first: usize) -> (Candidates, f32, f32) =
        candidates_any
}

multiversion! {
    /// With fused multiplication: slow at the portable level.
    fn errors_fused(codes: Codes, precision: Precision, values: &[f32], lanes: &Candidates, least: f64) -> [f64; LANES] =
        errors_any::<true>
}

multiversion! {
    fn errors_divided(codes: Codes, precision: Precision, values: &[f32], lanes: &Candidates, least: f64) -> [f64; LANES] =
        errors_any::<false>
}

/// Calls `f` with constants for what decides about the operations of a loop.
macro_rules! with_codes {
    ($codes:expr, $precision:expr, |$c:ident, $p:ident| $body:expr) => {
        with_precision!($precision, |$p| match $codes {
            Codes::Int { bits, symmetric: true } => {
                let $c = Codes::Int { bits, symmetric: true };
                $body
            }
            Codes::Int { bits, symmetric: false } => {
                let $c = Codes::Int { bits, symmetric: false };
                $body
            }
            Codes::F8E4M3 => {
                let $c = Codes::F8E4M3;
                $body
            }
        })
    };
}

#[inline(always)]
fn candidates_any(
    codes: Codes,
    precision: Precision,
    range: (f32, f32),
    first: usize,
) -> (Candidates, f32, f32) {
    with_codes!(codes, precision, |c, p| candidates(c, p, range, first))
}

/// The candidates from step `first` on, with the smallest and the largest scale.
#[inline(always)]
fn candidates(codes: Codes, precision: Precision, range: (f32, f32), first: usize) -> (Candidates, f32, f32) {
    let mut lanes = Candidates::NONE;
    // lanes beyond the last step do not count
    let mut factors = [1.0; LANES];
    let steps = &FACTORS[first..(first + LANES).min(STEPS)];
    factors[..steps.len()].copy_from_slice(steps);
    for (lane, factor) in factors.into_iter().enumerate() {
        let (scale, zero_point) = parameters(codes, range.0 * factor, range.1 * factor, precision);
        lanes.scale[lane] = scale;
        lanes.zero_point[lane] = zero_point;
        lanes.reciprocal[lane] = 1.0 / scale;
    }
    let (mut low, mut high) = (f32::INFINITY, 0.0);
    for scale in lanes.scale {
        low = if scale < low { scale } else { low };
        high = if scale > high { scale } else { high };
    }
    (lanes, low, high)
}

#[inline(always)]
fn errors_any<const FMA: bool>(
    codes: Codes,
    precision: Precision,
    values: &[f32],
    lanes: &Candidates,
    least: f64,
) -> [f64; LANES] {
    with_codes!(codes, precision, |c, p| errors::<FMA>(c, p, values, lanes, least))
}

/// Sums of the squared errors; less than all of some that are not below `least` anyway.
#[inline(always)]
fn errors<const FMA: bool>(
    codes: Codes,
    precision: Precision,
    values: &[f32],
    lanes: &Candidates,
    least: f64,
) -> [f64; LANES] {
    let Candidates { scale, reciprocal, zero_point } = lanes;
    let mut sums = [0.0f64; LANES];
    for values in values.chunks(CHECK) {
        for x in values {
            for lane in 0..LANES {
                let scale = scale[lane];
                let scaled = precision.round(divide::<FMA>(*x, scale, reciprocal[lane]));
                let decoded = match codes {
                    Codes::Int { bits, .. } => {
                        let half = (1i32 << (bits - 1)) as f32;
                        let zero_point = zero_point[lane];
                        let code =
                            (clamp(precision.round(scaled + zero_point), -half, half - 1.0) + ROUND) - ROUND;
                        (code - zero_point) * scale
                    }
                    Codes::F8E4M3 => e4m3_value(e4m3(clamp(scaled, -F8_E4M3_MAX, F8_E4M3_MAX))) * scale,
                };
                let error = f64::from(precision.round(decoded) - x);
                // the square of an `f32` is exact in `f64`, so that fusing changes nothing
                sums[lane] = if FMA { error.mul_add(error, sums[lane]) } else { sums[lane] + error * error };
            }
        }
        // no sum ever becomes smaller
        if sums.iter().all(|sum| *sum >= least) {
            break;
        }
    }
    sums
}

/// `x / scale`, correctly rounded.
///
/// With fused multiplication and `reciprocal` the correctly rounded one of `scale`: the first correction leaves a quotient
/// that is off by less than one unit in the last place; the remainder of such a quotient is exact, and a correction by
/// it rounds correctly (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990,
/// theorem 8.1), as long as nothing over- or underflows. Where the remainder does underflow, the quotient is far below
/// the smallest code.
#[inline(always)]
fn divide<const FMA: bool>(x: f32, scale: f32, reciprocal: f32) -> f32 {
    if !FMA {
        return x / scale;
    }
    let quotient = x * reciprocal;
    let quotient = (-quotient).mul_add(scale, x).mul_add(reciprocal, quotient);
    (-quotient).mul_add(scale, x).mul_add(reciprocal, quotient)
}

/// Whether the short division, `x·r + x·(1/scale − r)` with the rounded reciprocal `r`, may lead to another code under this
/// scale, or round to another f16 or bf16.
///
/// It multiplies by a reciprocal of two parts, whose relative error, with that of the product, is below 2^-46. It rounds to
/// another float than division only where `x / scale` is that close to the middle `m` between two floats. Neighbouring
/// floats round to different codes, or to different f16 or bf16, only where one of them is a tie: `(2k + 1)/2` units, with at
/// most 8 bits in `2k + 1` for a code, 9 for bf16 and 12 for f16. As integers, `m` is then `(2k + 1)·2^t ± 1` of 25 bits with
/// `t ≥ 13`, and `|X·2^j − m·S| ≤ 2^(25 + 24 − 46) = 8` for the mantissas `X` and `S` with `j ≥ 23`. Modulo 2^13 that leaves
/// `±S`, so that `S` is within 8 of a multiple of 2^13.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn is_awkward(scale: f32) -> bool {
    (scale.to_bits() + 8) & 0x1fff <= 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::quantize::affine;

    /// The definition, without a shortcut.
    fn by_definition(codes: Codes, precision: Precision, values: &[f32], (min, max): (f32, f32)) -> usize {
        let error_of = |step: usize| -> f64 {
            let factor = 1.0 - (1.0 - 0.2f32) * step as f32 / 99.0;
            let affine = affine(codes, min * factor, max * factor, precision).unwrap();
            values.iter().map(|x| f64::from(affine.fake_quantize_as(*x, codes, precision) - x).powi(2)).sum()
        };
        let mut best = (error_of(0), 0);
        for step in 1..STEPS {
            let error = error_of(step);
            if error < best.0 {
                best = (error, step);
            }
        }
        best.1
    }

    #[test]
    fn every_level_finds_the_candidate_of_the_definition() {
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 16_777_216.0 - 0.5
        };
        let int = |bits, symmetric| Codes::Int { bits, symmetric };
        for codes in [int(2, true), int(4, true), int(4, false), int(8, false), int(3, true), Codes::F8E4M3] {
            for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
                for (len, size) in
                    [(1, 1.0f32), (17, 1e-3), (128, 1.0), (128, 1e-30), (128, 1e-7), (200, 1e4)]
                {
                    let values: Vec<f32> = (0..len)
                        .map(|_| precision.round((uniform() + uniform() + uniform()) * size))
                        .collect();
                    let range = crate::kernels::reduce::min_max(&values).unwrap();
                    let expected = by_definition(codes, precision, &values, range);
                    for isa in Isa::all() {
                        let found = least_error(isa, codes, precision, &values, range);
                        assert_eq!(found, expected, "{codes:?} {precision:?} {len} × {size} {isa:?}");
                    }
                }
            }
        }
        for isa in Isa::all() {
            assert_eq!(least_error(isa, int(4, true), Precision::F32, &[0.0; 9], (0.0, 0.0)), 0);
            assert_eq!(least_error(isa, int(4, true), Precision::F32, &[], (0.0, 0.0)), 0);
        }
    }

    multiversion! {
        fn quotients(x: &[f32], scale: &[f32], out: &mut [f32]) = quotients_body
    }

    #[inline(always)]
    fn quotients_body(x: &[f32], scale: &[f32], out: &mut [f32]) {
        for ((out, x), scale) in out.iter_mut().zip(x).zip(scale) {
            *out = divide::<true>(*x, *scale, 1.0 / scale);
        }
    }

    /// Quotients next to the middle of two floats are the ones that a wrong last step would round wrongly.
    #[test]
    fn division_by_reciprocal_is_division() {
        let (mut x, mut scale) = (Vec::new(), Vec::new());
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as u32
        };
        for _ in 0..300_000 {
            // mantissas close to a multiple of a power of two, and any
            let near = |r: u32, e: u32, d: u32| (r >> e << e).wrapping_add(d % 9).wrapping_sub(4) & 0x7f_ffff;
            let s = f32::from_bits(0x3c00_0000 | near(random(), random() % 24, random()));
            let k = (random() % 255) as f32 - 127.5;
            let close = f32::from_bits((s * k).to_bits().wrapping_add(random() % 5).wrapping_sub(2));
            x.extend([close, f32::from_bits(0x3d00_0000 | random() >> 1)]);
            scale.extend([s, s]);
        }
        for isa in Isa::all() {
            let mut out = vec![0.0; x.len()];
            quotients(isa, &x, &scale, &mut out);
            for ((x, scale), out) in x.iter().zip(&scale).zip(&out) {
                assert_eq!(out.to_bits(), (x / scale).to_bits(), "{x:e} / {scale:e} {isa:?}");
            }
        }
    }

    /// Scales that leave a division little room: powers of two and what is awkward, give or take, and any.
    #[cfg(target_arch = "x86_64")]
    fn hard_scales(random: &mut impl FnMut() -> u32) -> Vec<f32> {
        let mut scales = Vec::new();
        for d in -20..=20i32 {
            scales.extend([0x3c00_0000i32, 0x3c80_0000].map(|power| f32::from_bits((power + d) as u32)));
            for _ in 0..6 {
                let multiple = (random() % 1024) as i32;
                scales.push(f32::from_bits((0x3c00_0000 + (multiple << 13) + d) as u32));
            }
        }
        scales.extend((0..500).map(|_| f32::from_bits(0x3c00_0000 + (random() & 0x7f_ffff))));
        scales
    }

    /// A tie may go either way if the quotient is off by one place.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn short_division_finds_the_codes_of_division() {
        let Some(Isa::Avx512(token)) = Isa::all().pop() else { return };
        let mut state = 11u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as u32
        };
        let scales = hard_scales(&mut random);
        assert!(scales.iter().any(|s| is_awkward(*s)) && scales.iter().any(|s| !is_awkward(*s)));
        for power in [1.0, 2f32.powi(-40), 2f32.powi(40)] {
            for bits in [2, 4, 8] {
                for scales in scales.chunks(LANES) {
                    let mut lanes = Candidates::NONE;
                    for lane in 0..LANES {
                        lanes.scale[lane] = scales[lane % scales.len()] * power;
                        lanes.reciprocal[lane] = 1.0 / lanes.scale[lane];
                    }
                    let half = 1i32 << (bits - 1);
                    let mut values = Vec::new();
                    for scale in lanes.scale {
                        for k in -half - 1..=half {
                            let tie = scale * (k as f32 + 0.5);
                            values
                                .extend((-2..=2).map(|d| f32::from_bits((tie.to_bits() as i32 + d) as u32)));
                        }
                    }
                    let codes = Codes::Int { bits, symmetric: true };
                    // one by one: a sum would hide the difference of two small errors
                    for value in values {
                        let found = super::super::avx512::int_errors(
                            token,
                            bits,
                            true,
                            &[value],
                            &lanes,
                            f64::INFINITY,
                        );
                        let expected =
                            errors::<false>(codes, Precision::F32, &[value], &lanes, f64::INFINITY);
                        assert_eq!(found, expected, "{value:e} {:?}", lanes.scale);
                    }
                }
            }
        }
    }

    /// Sums that lie close together, or are equal, are told apart by their exact values.
    #[test]
    fn no_candidate_is_ruled_out_wrongly() {
        let mut state = 5u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as u32
        };
        for round in 0..600u32 {
            let (bits, symmetric) = ([2, 3, 4, 8][round as usize % 4], round % 3 != 0);
            let half = 1i32 << (bits - 1);
            let size = 2f32.powi([0, -20, 20, -49, -60, 50][random() as usize % 6]);
            let len = 1 + random() as usize % [3, 130, 700][round as usize % 3];
            let values: Vec<f32> = (0..len)
                .map(|_| {
                    let k = (random() % (2 * half as u32 + 3)) as f32 - half as f32 - 1.0;
                    match round % 5 {
                        0 => k * size,
                        1 => (k + 0.5) * size,
                        2 => f32::from_bits(((k + 0.5) * size).to_bits() + random() % 3),
                        3 => {
                            if k > 0.0 {
                                size
                            } else {
                                -size
                            }
                        }
                        _ => (random() as f32 - 8e6) * size,
                    }
                })
                .collect();
            let range = crate::kernels::reduce::min_max(&values).unwrap();
            let codes = Codes::Int { bits, symmetric };
            let expected = by_definition(codes, Precision::F32, &values, range);
            for isa in Isa::all() {
                let found = least_error(isa, codes, Precision::F32, &values, range);
                assert_eq!(found, expected, "{codes:?} {isa:?} round {round} {values:?}");
            }
        }
    }
}
