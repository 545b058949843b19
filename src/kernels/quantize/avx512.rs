//! The search's inner loop: left to itself, the compiler works on half registers.

#[allow(clippy::wildcard_imports)] // the instructions
use std::arch::x86_64::*;

use super::ROUND;
use super::search::{BATCHES, BLOCK, CHECK, Candidates, LANES, STEPS, is_awkward};
use crate::kernels::level::Avx512;

/// Integer codes in `f32`: what [`super::search`]'s portable `errors` computes, with all candidates in one register.
pub(super) fn int_errors(
    _: Avx512,
    bits: u8,
    symmetric: bool,
    values: &[f32],
    lanes: &Candidates,
    least: f64,
) -> [f64; LANES] {
    let half = (1i32 << (bits - 1)) as f32;
    // SAFETY: the token is the proof that the processor has AVX-512 F and DQ.
    unsafe {
        match (symmetric, lanes.scale.iter().any(|scale| is_awkward(*scale))) {
            (true, false) => errors::<true, true>(half, values, lanes, least),
            (true, true) => errors::<true, false>(half, values, lanes, least),
            (false, _) => errors::<false, false>(half, values, lanes, least),
        }
    }
}

/// `SHORT`: with a division of two steps, for scales that are not awkward and without zero points.
#[target_feature(enable = "avx512f,avx512dq")]
fn errors<const SYMMETRIC: bool, const SHORT: bool>(
    half: f32,
    values: &[f32],
    lanes: &Candidates,
    least: f64,
) -> [f64; LANES] {
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    // SAFETY: each array has as many elements as a register.
    let (scale, reciprocal, zero_point) = unsafe {
        (
            _mm512_loadu_ps(lanes.scale.as_ptr()),
            _mm512_loadu_ps(lanes.reciprocal.as_ptr()),
            _mm512_loadu_ps(lanes.zero_point.as_ptr()),
        )
    };
    // what the reciprocal lacks
    let rest = _mm512_mul_ps(_mm512_fnmadd_ps(scale, reciprocal, _mm512_set1_ps(1.0)), reciprocal);
    let (low, high) = (_mm512_set1_ps(-half), _mm512_set1_ps(half - 1.0));
    let least = _mm512_set1_pd(least);
    let (mut left, mut right) = (_mm512_setzero_pd(), _mm512_setzero_pd());
    for values in values.chunks(CHECK) {
        for x in values {
            let x = _mm512_set1_ps(*x);
            let q = if SHORT {
                _mm512_fmadd_ps(x, reciprocal, _mm512_mul_ps(x, rest))
            } else {
                // x / scale, see `search::divide`
                let q = _mm512_mul_ps(x, reciprocal);
                let q = _mm512_fmadd_ps(_mm512_fnmadd_ps(q, scale, x), reciprocal, q);
                _mm512_fmadd_ps(_mm512_fnmadd_ps(q, scale, x), reciprocal, q)
            };
            let q = if SYMMETRIC { q } else { _mm512_add_ps(q, zero_point) };
            let mut code = _mm512_roundscale_ps::<NEAREST>(_mm512_min_ps(_mm512_max_ps(q, low), high));
            if !SYMMETRIC {
                code = _mm512_sub_ps(code, zero_point);
            }
            let error = _mm512_sub_ps(_mm512_mul_ps(code, scale), x);
            let first = _mm512_cvtps_pd(_mm512_castps512_ps256(error));
            let second = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(error));
            left = _mm512_fmadd_pd(first, first, left);
            right = _mm512_fmadd_pd(second, second, right);
        }
        let behind = |sums| _mm512_cmp_pd_mask::<_CMP_LT_OQ>(sums, least) == 0;
        if behind(left) && behind(right) {
            break;
        }
    }
    let mut sums = [0.0; LANES];
    // SAFETY: 8 elements each are written to the halves of 16.
    unsafe {
        _mm512_storeu_pd(sums.as_mut_ptr(), left);
        _mm512_storeu_pd(sums.as_mut_ptr().add(LANES / 2), right);
    }
    sums
}

/// The candidates that rough sums of squared errors do not rule out, as bits: with reciprocals for divisions, and sums in
/// `f32` of [`BLOCK`] values.
///
/// With scale `s`, largest code `K` less its zero point, and `n` values with errors `e`, a rough sum `S` is off by:
/// - the sums in `f32`: relative `(BLOCK + 1)·2^-24`; the rounding of each error: relative `2^-22`;
/// - the rounding of `code·s`: `2^-24·K·s` in each error, `2^-23·K·s·Σ|e| ≤ 2^-23·K·s·√(n·Σe²)` in the sum, and
///   `s·√(n·Σe²) ≤ (n·s² / 4 + 4·Σe²) / 2`;
/// - another code: only if a tie lies between the two quotients, rounded with the zero point, hence within
///   `d = 2^-24·(2·|x/s| + |code|)` of `x/s`. The squares of the errors next to a tie then differ by at most `2·s²·d`.
///
/// Each is at least doubled here. What is below `2^-149` and lost is far less than these, as no scale is below `1e-15`.
pub(super) fn shortlist(
    _: Avx512,
    bits: u8,
    symmetric: bool,
    values: &[f32],
    lanes: &[Candidates; BATCHES],
) -> u128 {
    let half = (1i32 << (bits - 1)) as f32;
    let mut sums = [[0.0; LANES]; BATCHES];
    // SAFETY: the token is the proof that the processor has AVX-512 F and DQ.
    unsafe {
        if symmetric {
            rough::<BATCHES, true>(half, values, lanes, &mut sums);
            within(f64::from(half), values.len(), lanes, &mut sums)
        } else {
            // every candidate has a zero point, for which there are not enough registers
            const FIRST: usize = BATCHES / 2;
            rough::<FIRST, false>(half, values, &lanes[..FIRST], &mut sums[..FIRST]);
            rough::<{ BATCHES - FIRST }, false>(half, values, &lanes[FIRST..], &mut sums[FIRST..]);
            within(f64::from(4.0 * half), values.len(), lanes, &mut sums)
        }
    }
}

/// Candidates whose lower bound is not above the least upper bound, see [`shortlist`]; `width` is no less than `K` there, nor,
/// apart from halves, than `2^23·d`.
#[target_feature(enable = "avx512f,avx512dq")]
fn within(width: f64, values: usize, lanes: &[Candidates], sums: &mut [[f64; LANES]; BATCHES]) -> u128 {
    const UNIT: f64 = 1.0 / 4_194_304.0;
    let relative = _mm512_set1_pd(2.0 * (BLOCK + 8) as f64 / 16_777_216.0 + 2.0 * width * UNIT);
    let absolute = _mm512_set1_pd((2.0 + 0.25) * width * UNIT * values as f64);
    // lanes beyond the last step
    sums[STEPS / LANES][STEPS % LANES..].fill(f64::MAX);
    let halves = sums.as_flattened().as_chunks::<{ LANES / 2 }>().0;
    let (mut lower, mut least) = ([_mm512_setzero_pd(); 2 * BATCHES], _mm512_set1_pd(f64::INFINITY));
    for (i, (half, lower)) in halves.iter().zip(&mut lower).enumerate() {
        // SAFETY: 8 of the sums, and 8 of the 16 scales.
        let (sum, scale) = unsafe {
            let scale = lanes[i / 2].scale.as_ptr().add(i % 2 * (LANES / 2));
            (_mm512_loadu_pd(half.as_ptr()), _mm512_cvtps_pd(_mm256_loadu_ps(scale)))
        };
        let off = _mm512_mul_pd(_mm512_mul_pd(scale, scale), absolute);
        least = _mm512_min_pd(_mm512_add_pd(_mm512_fmadd_pd(sum, relative, sum), off), least);
        *lower = _mm512_sub_pd(_mm512_fnmadd_pd(sum, relative, sum), off);
    }
    let least = _mm512_set1_pd(_mm512_reduce_min_pd(least));
    let mut within = 0;
    for (i, lower) in lower.iter().enumerate() {
        let kept = _mm512_cmp_pd_mask::<_CMP_LE_OQ>(*lower, least);
        within |= u128::from(kept) << (i * (LANES / 2));
    }
    within
}

#[target_feature(enable = "avx512f,avx512dq")]
fn rough<const N: usize, const SYMMETRIC: bool>(
    half: f32,
    values: &[f32],
    lanes: &[Candidates],
    totals: &mut [[f64; LANES]],
) {
    assert!(lanes.len() == N && totals.len() == N);
    // SAFETY: each array has as many elements as a register.
    let load = |lanes: &[f32; LANES]| unsafe { _mm512_loadu_ps(lanes.as_ptr()) };
    let scale: [_; N] = std::array::from_fn(|i| load(&lanes[i].scale));
    let reciprocal: [_; N] = std::array::from_fn(|i| load(&lanes[i].reciprocal));
    let round = _mm512_set1_ps(ROUND);
    // added to a quotient: the zero point, and what leaves no bits for a fraction
    let shift: [_; N] =
        std::array::from_fn(
            |i| {
                if SYMMETRIC { round } else { _mm512_add_ps(load(&lanes[i].zero_point), round) }
            },
        );
    let (low, high) = (_mm512_set1_ps(ROUND - half), _mm512_set1_ps(ROUND + half - 1.0));
    for values in values.chunks(BLOCK) {
        let mut sums = [_mm512_setzero_ps(); N];
        for x in values {
            let x = _mm512_set1_ps(*x);
            for i in 0..N {
                let code = _mm512_fmadd_ps(x, reciprocal[i], shift[i]);
                let code = _mm512_min_ps(_mm512_max_ps(code, low), high);
                let error = _mm512_fnmadd_ps(_mm512_sub_ps(code, shift[i]), scale[i], x);
                sums[i] = _mm512_fmadd_ps(error, error, sums[i]);
            }
        }
        for (totals, sums) in totals.iter_mut().zip(sums) {
            let mut lanes = [0.0; LANES];
            // SAFETY: as many elements as a register.
            unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sums) };
            for (total, sum) in totals.iter_mut().zip(lanes) {
                *total += f64::from(sum);
            }
        }
    }
}
