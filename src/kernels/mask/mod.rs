//! Bitmasks, lowest bit first: applying them, counting them, and picking the values that they keep.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::level::{Isa, multiversion};
use super::memory::prefer_large_pages;
use super::{CHUNK, PARALLEL_MIN};

multiversion! {
    fn apply_by_compiler(values: &mut [f32], bits: &[u8]) = portable::apply
}
multiversion! {
    fn count_in(bits: &[u8]) -> usize = portable::count
}
multiversion! {
    fn compress_f32_by_compiler(values: &[f32], bits: &[u8], out: &mut [MaybeUninit<f32>]) -> usize
        = portable::compress
}
multiversion! {
    fn compress_u8_by_compiler(values: &[u8], bits: &[u8], out: &mut [MaybeUninit<u8>]) -> usize
        = portable::compress
}
multiversion! {
    fn expand_f32_by_compiler(values: &[f32], bits: &[u8], out: &mut [f32]) -> usize = portable::expand
}

fn apply_in(isa: Isa, values: &mut [f32], bits: &[u8]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(token) => avx512::apply(token, values, bits),
        _ => apply_by_compiler(isa, values, bits),
    }
}

/// Zeroes the values whose bit is not set.
///
/// # Shapes
/// `values` is `[rows, cols]`; `bits` is `[rows, ⌈cols / 8⌉]`.
///
/// # Panics
/// When `bits` has another length.
pub fn apply(values: &mut [f32], cols: usize, bits: &[u8]) {
    if cols == 0 {
        return;
    }
    assert_eq!(bits.len(), values.len() / cols * cols.div_ceil(8), "bytes of the mask");
    let isa = Isa::current();
    // rows that fill their bytes can be treated as one
    let run = if cols.is_multiple_of(8) { CHUNK } else { cols };
    if values.len() < PARALLEL_MIN {
        let runs = values.chunks_mut(run).zip(bits.chunks(run.div_ceil(8)));
        return runs.for_each(|(values, bits)| apply_in(isa, values, bits));
    }
    let runs = values.par_chunks_mut(run).zip(bits.par_chunks(run.div_ceil(8)));
    runs.with_min_len((CHUNK / run).max(1)).for_each(|(values, bits)| apply_in(isa, values, bits));
}

/// Number of bits that are set.
pub fn count(bits: &[u8]) -> usize {
    let isa = Isa::current();
    if bits.len() < PARALLEL_MIN {
        return count_in(isa, bits);
    }
    bits.par_chunks(CHUNK).map(|bits| count_in(isa, bits)).sum()
}

/// Calls `f` with the index of every bit that is set, ascending.
#[inline]
pub(crate) fn for_each_set(bits: &[u8], f: impl FnMut(usize)) {
    portable::for_each_set(bits, f);
}

/// Values that can be picked by a mask.
pub(crate) trait Pick: Copy + Send + Sync {
    /// Writes the values whose bit is set, one after the other, and gives their number. `out` has room for them, and
    /// may be written beyond them.
    fn compress(isa: Isa, values: &[Self], bits: &[u8], out: &mut [MaybeUninit<Self>]) -> usize;
}

impl Pick for f32 {
    fn compress(isa: Isa, values: &[Self], bits: &[u8], out: &mut [MaybeUninit<Self>]) -> usize {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(token) => avx512::compress_f32(token, values, bits, out),
            _ => compress_f32_by_compiler(isa, values, bits, out),
        }
    }
}

impl Pick for u8 {
    fn compress(isa: Isa, values: &[Self], bits: &[u8], out: &mut [MaybeUninit<Self>]) -> usize {
        #[cfg(target_arch = "x86_64")]
        if let Some(token) = isa.vbmi2() {
            return avx512::compress_u8(token, values, bits, out);
        }
        compress_u8_by_compiler(isa, values, bits, out)
    }
}

/// Values, and the mask's bytes about them.
type Run<'a, T> = (&'a [T], &'a [u8]);

/// The values of `[rows, cols]` that a mask keeps, each turned by `finish` into what is stored: it gets the kept values
/// of a stretch, and room for as many.
///
/// # Panics
/// When the lengths do not fit.
pub(crate) fn pick<T: Pick, U: Send>(
    values: &[T],
    cols: usize,
    bits: &[u8],
    finish: impl Fn(&[T], &mut [MaybeUninit<U>]) + Sync,
) -> Vec<U> {
    let isa = Isa::current();
    if cols == 0 {
        return Vec::new();
    }
    let stride = cols.div_ceil(8);
    assert_eq!(bits.len(), values.len() / cols * stride, "bytes of the mask");
    let rows = if cols.is_multiple_of(8) { 1 } else { (CHUNK / cols).max(1) };
    let (run, run_bytes) =
        if cols.is_multiple_of(8) { (CHUNK, CHUNK / 8) } else { (rows * cols, rows * stride) };
    let counts: Vec<usize> = bits.par_chunks(run_bytes).map(|bits| count_in(isa, bits)).collect();
    let kept = counts.iter().sum();
    let mut out = Vec::with_capacity(kept);
    let mut rest = &mut out.spare_capacity_mut()[..kept];
    prefer_large_pages(rest);
    let parts: Vec<&mut [MaybeUninit<U>]> =
        counts.iter().map(|count| rest.split_off_mut(..*count).unwrap_or_default()).collect();
    let take = |scratch: &mut Vec<T>, (out, run): (&mut [MaybeUninit<U>], Run<'_, T>)| {
        let (values, bits) = run;
        scratch.clear();
        scratch.reserve(values.len());
        let room = scratch.spare_capacity_mut();
        let mut taken = 0;
        if cols.is_multiple_of(8) {
            taken = T::compress(isa, values, bits, room);
        } else {
            for (values, bits) in values.chunks(cols).zip(bits.chunks(stride)) {
                taken += T::compress(isa, values, bits, &mut room[taken..]);
            }
        }
        // SAFETY: that many were written.
        unsafe { scratch.set_len(taken) };
        finish(scratch, out);
    };
    let runs = || values.par_chunks(run).zip(bits.par_chunks(run_bytes));
    if values.len() < PARALLEL_MIN {
        let mut scratch = Vec::new();
        let runs = values.chunks(run).zip(bits.chunks(run_bytes));
        parts.into_iter().zip(runs).for_each(|part| take(&mut scratch, part));
    } else {
        parts.into_par_iter().zip(runs()).for_each_init(Vec::new, take);
    }
    // SAFETY: the parts are all of it, and `finish` writes each element of the part it is given.
    unsafe { out.set_len(kept) };
    out
}

/// The same values: what [`pick`] does with those that are stored as they are.
pub(crate) fn copy<T: Copy>(values: &[T], out: &mut [MaybeUninit<T>]) {
    for (out, x) in out.iter_mut().zip(values) {
        out.write(*x);
    }
}

/// The bit patterns of signed bytes.
pub(crate) fn as_unsigned(values: &[i8]) -> &[u8] {
    // SAFETY: the same layout, and every pattern is a value of both.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// Bytes as the signed ones of the same bit patterns.
pub(crate) fn as_signed(values: &[u8]) -> &[i8] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// A row again: the next value where a bit is set, and zero elsewhere. Gives the number of values used.
///
/// # Shapes
/// `bits` is `⌈out.len() / 8⌉` bytes, none of them set beyond the last value.
///
/// # Panics
/// When there are fewer values than bits set.
pub fn expand(values: &[f32], bits: &[u8], out: &mut [f32]) -> usize {
    expand_in(Isa::current(), values, bits, out)
}

fn expand_in(isa: Isa, values: &[f32], bits: &[u8], out: &mut [f32]) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(token) => avx512::expand_f32(token, values, bits, out),
        _ => expand_f32_by_compiler(isa, values, bits, out),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bit(bits: &[u8], i: usize) -> bool {
        bits[i / 8] >> (i % 8) & 1 == 1
    }

    /// Bits for rows of so many columns; none beyond them.
    fn random_bits(rows: usize, cols: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut bits = vec![0u8; rows * cols.div_ceil(8)];
        for row in bits.chunks_mut(cols.div_ceil(8).max(1)) {
            for col in 0..cols {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // runs of all and of nothing occur as well
                let keep =
                    if state >> 60 == 0 { state & 1 << 40 == 0 } else { seed >> (state >> 58) & 1 == 1 };
                row[col / 8] |= u8::from(keep) << (col % 8);
            }
        }
        bits
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_level_applies_picks_and_expands_alike(len in 0..300usize, seed: u64, offset in 0..3usize) {
            let bits = random_bits(1, len, seed);
            // NaN payloads and signs must survive where they are kept
            let all: Vec<f32> =
                (0..len + offset).map(|i| f32::from_bits((i as u32).wrapping_mul(0x9e37_79b9))).collect();
            let values = &all[offset..];
            let codes: Vec<u8> = values.iter().map(|x| x.to_bits() as u8).collect();
            let kept: Vec<usize> = (0..len).filter(|i| bit(&bits, *i)).collect();
            let mut seen = Vec::new();
            for_each_set(&bits, |i| seen.push(i));
            prop_assert_eq!(&seen, &kept);
            for isa in Isa::all() {
                prop_assert_eq!(count_in(isa, &bits), kept.len());
                let mut applied = values.to_vec();
                apply_in(isa, &mut applied, &bits);
                for (i, x) in applied.iter().enumerate() {
                    prop_assert_eq!(x.to_bits(), if bit(&bits, i) { values[i].to_bits() } else { 0 });
                }
                // exactly the room that is needed, and more
                for room in [kept.len(), kept.len() + 100] {
                    let mut out = vec![MaybeUninit::new(7.0f32); room];
                    prop_assert_eq!(f32::compress(isa, values, &bits, &mut out), kept.len());
                    let mut out_codes = vec![MaybeUninit::new(7u8); room];
                    prop_assert_eq!(u8::compress(isa, &codes, &bits, &mut out_codes), kept.len());
                    for (next, i) in kept.iter().enumerate() {
                        // SAFETY: every element was initialized above.
                        let (x, code) = unsafe { (out[next].assume_init(), out_codes[next].assume_init()) };
                        prop_assert_eq!(x.to_bits(), values[*i].to_bits());
                        prop_assert_eq!(code, codes[*i]);
                    }
                }
                let picked: Vec<f32> = kept.iter().map(|i| values[*i]).collect();
                let mut expanded = vec![9.0; len];
                prop_assert_eq!(expand_in(isa, &picked, &bits, &mut expanded), kept.len());
                for (x, y) in expanded.iter().zip(&applied) {
                    prop_assert_eq!(x.to_bits(), y.to_bits());
                }
            }
        }

        #[test]
        fn whole_matrices_are_picked_and_applied(rows in 0..40usize, cols in 0..70usize, seed: u64, many: bool) {
            let rows = if many { rows * 60 } else { rows };
            let bits = random_bits(rows, cols, seed);
            let values: Vec<f32> = (0..rows * cols).map(|i| i as f32 + 1.0).collect();
            let stride = cols.div_ceil(8) * 8;
            let keeps = |i: usize| bit(&bits, i / cols * stride + i % cols);
            let expected: Vec<f32> = values.iter().enumerate().filter(|(i, _)| keeps(*i)).map(|(_, x)| *x).collect();
            prop_assert_eq!(pick(&values, cols, &bits, copy), &expected[..]);
            prop_assert_eq!(count(&bits), expected.len());
            let mut applied = values.clone();
            apply(&mut applied, cols, &bits);
            for (i, x) in applied.iter().enumerate() {
                prop_assert_eq!(*x, if keeps(i) { values[i] } else { 0.0 });
            }
        }
    }
}
