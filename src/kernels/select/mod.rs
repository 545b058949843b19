//! Exact selection by magnitude: no sort and no copy of the weights.
//!
//! [`magnitude_cut`] finds the magnitude at which to cut any number of tensors as if they were one, by one pass over
//! them; [`zero_below`] applies it in place by a second one.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::convert;
use super::level::{Isa, multiversion};
use super::{CHUNK, PARALLEL_MIN};
use crate::dtype::FloatType;
use portable::{Counts, DIGITS};

pub(crate) use portable::magnitude_bits;

multiversion! {
    fn bracket_by_compiler(values: &[f32], low: u32, high: u32, inside: &mut Vec<u32>) -> Counts
        = portable::bracket
}
multiversion! {
    fn zero_below_in(values: &mut [f32], threshold: u32) -> u64 = portable::zero_below
}
multiversion! {
    fn lower_histogram(values: &[f32], upper: u32, counts: &mut [u64; 1 << DIGITS[1]])
        = portable::lower_histogram
}
multiversion! {
    fn mask_n_of_m_by_compiler(values: &[f32], n: usize, m: usize, bits: &mut [u8]) = portable::mask_n_of_m
}

#[inline]
fn bracket(isa: Isa, values: &[f32], low: u32, high: u32, inside: &mut Vec<u32>) -> Counts {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(token) => avx512::bracket(token, values, low, high, inside),
        _ => bracket_by_compiler(isa, values, low, high, inside),
    }
}

fn mask_from_in(isa: Isa, values: &[f32], threshold: u32, bits: &mut [u8]) -> u64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(token) => avx512::mask_from(token, values, threshold, bits),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(token) => avx2::mask_from(token, values, threshold, bits),
        Isa::Portable => portable::mask_from(values, threshold, bits),
    }
}

fn mask_n_of_m_in(isa: Isa, values: &[f32], n: usize, m: usize, bits: &mut [u8]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(token) => avx512::mask_n_of_m(token, values, n, m, bits),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(token) if m == 4 => avx2::mask_n_of_4(token, values, n, bits),
        _ => mask_n_of_m_by_compiler(isa, values, n, m, bits),
    }
}

/// The magnitude at which some tensors are cut, and how many of the values that equal it stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Bits of the magnitude: what is below goes, what is above stays.
    pub bits: u32,
    /// How many of the values of exactly this magnitude stay: the first ones.
    pub kept_ties: u64,
}

impl Cut {
    /// Above every finite magnitude: nothing stays.
    const ALL: Self = Self { bits: u32::MAX >> 1, kept_ties: 0 };
}

/// Values to select from: as numbers, or as the bytes of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source<'a> {
    Values(&'a [f32]),
    Bytes(FloatType, &'a [u8]),
}

impl<'a> Source<'a> {
    /// Little-endian elements of some type, in any alignment.
    pub(crate) fn of(float: FloatType, bytes: &'a [u8]) -> Self {
        if cfg!(target_endian = "little") && float == FloatType::F32 {
            // SAFETY: every pattern of four bytes is an `f32`.
            let (before, values, after) = unsafe { bytes.align_to::<f32>() };
            if before.is_empty() && after.is_empty() {
                return Self::Values(values);
            }
        }
        Self::Bytes(float, bytes)
    }

    pub(crate) fn len(self) -> usize {
        match self {
            Self::Values(values) => values.len(),
            Self::Bytes(float, bytes) => bytes.len() / float.size(),
        }
    }

    /// Some of the values, widened into `scratch` if need be.
    fn piece<'b>(self, start: usize, len: usize, scratch: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::Values(values) => &values[start..start + len],
            Self::Bytes(float, bytes) => {
                let size = float.size();
                scratch.resize(len, 0.0);
                convert::widen(float, &bytes[start * size..(start + len) * size], scratch);
                scratch
            }
        }
    }
}

/// What of one tensor stands above a cut and at it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) above: u64,
    pub(crate) ties: u64,
}

/// A cut, and how the tensors stand to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) cut: Cut,
    pub(crate) standings: Vec<Standing>,
    /// Whether all values are finite.
    pub(crate) finite: bool,
}

/// The cut that drops exactly `drop` values of all tensors together.
///
/// A sample of the values brackets the cut narrowly; one pass over the tensors counts what is below the bracket and
/// collects the few magnitudes inside, among which the cut is found. When the sample was misleading, two passes that
/// count digits find it. The result is exact either way.
///
/// ```
/// use tersor::kernels::select::{magnitude_cut, zero_below};
///
/// let mut tensors = [vec![0.5, -3.0, 1.0], vec![-1.0, 1.0]];
/// let mut cut = magnitude_cut(&[&tensors[0], &tensors[1]], 2);
/// assert_eq!((f32::from_bits(cut.bits), cut.kept_ties), (1.0, 2));
/// tensors.iter_mut().for_each(|t| zero_below(t, &mut cut));
/// assert_eq!(tensors, [vec![0.0, -3.0, 1.0], vec![-1.0, 0.0]]);
/// ```
///
/// # Shapes
/// The tensors may have any lengths. When they have no more than `drop` values, all are dropped.
pub fn magnitude_cut(tensors: &[&[f32]], drop: u64) -> Cut {
    let sources: Vec<Source<'_>> = tensors.iter().map(|t| Source::Values(t)).collect();
    select(&sources, drop).cut
}

/// As [`magnitude_cut`], with all that the pass tells.
pub(crate) fn select(sources: &[Source<'_>], drop: u64) -> Selection {
    let total: u64 = sources.iter().map(|s| s.len() as u64).sum();
    let (low, high) =
        if drop >= total { (Cut::ALL.bits, Cut::ALL.bits) } else { guess(sources, drop, total) };
    let isa = Isa::current();
    if let Some(selection) = select_between(isa, sources, drop, low, high) {
        return selection;
    }
    let visit = |look: &mut dyn FnMut(&[f32])| {
        let mut scratch = Vec::new();
        for source in sources {
            for start in (0..source.len()).step_by(VISIT) {
                look(source.piece(start, VISIT.min(source.len() - start), &mut scratch));
            }
        }
        Ok::<(), std::convert::Infallible>(())
    };
    let Ok(cut) = cut_by_digits(drop, visit);
    match select_between(isa, sources, drop, cut.bits, cut.bits) {
        Some(selection) => selection,
        None => unreachable!("the cut is {cut:?}"),
    }
}

/// Values that are sampled, and how many neighbours at a time.
const SAMPLE: usize = 1 << 17;
const NEIGHBOURS: usize = 4;

/// Values that one task looks at.
const PIECE: usize = 1 << 18;

/// Values that are counted at a time where they have to be widened.
const VISIT: usize = 1 << 22;

/// A bracket that most likely holds the cut and little else.
fn guess(sources: &[Source<'_>], drop: u64, total: u64) -> (u32, u32) {
    if total <= 2 * SAMPLE as u64 {
        return (0, Cut::ALL.bits);
    }
    let starts: Vec<u64> = sources
        .iter()
        .scan(0, |next, s| {
            let start = *next;
            *next += s.len() as u64;
            Some(start)
        })
        .collect();
    let blocks = (SAMPLE / NEIGHBOURS) as u64;
    let neighbours = |block: u64| {
        // somewhere in the block's own stretch, so that no pattern of the tensors is in step with the sample
        let stretch = total / blocks;
        let mut hash = block.wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let at = block * stretch + (hash ^ (hash >> 31)) % stretch;
        let tensor = starts.partition_point(|start| *start <= at) - 1;
        let source = sources[tensor];
        let within = (at - starts[tensor]) as usize;
        let mut scratch = Vec::new();
        let values = source.piece(within, NEIGHBOURS.min(source.len() - within), &mut scratch);
        let mut keys = [None; NEIGHBOURS];
        for (key, x) in keys.iter_mut().zip(values) {
            *key = Some(magnitude_bits(*x));
        }
        keys
    };
    let mut sample: Vec<u32> =
        (0..blocks).into_par_iter().flat_map_iter(|block| neighbours(block).into_iter().flatten()).collect();
    let count = sample.len() as f64;
    let share = drop as f64 / total as f64;
    // neighbours may be alike, so that the deviation is larger than that of as many independent values
    let margin = 6.0 * (count * share * (1.0 - share)).sqrt() + 16.0;
    let (from, to) = (count * share - margin, count * share + margin);
    let mut low = 0;
    if from >= 1.0 {
        low = *sample.select_nth_unstable(from as usize).1;
    }
    let high = if to < count - 1.0 { *sample.select_nth_unstable(to as usize).1 } else { Cut::ALL.bits };
    (low, high)
}

/// The cut, if it lies in `low..=high` and not too much else does.
fn select_between(isa: Isa, sources: &[Source<'_>], drop: u64, low: u32, high: u32) -> Option<Selection> {
    let total: usize = sources.iter().map(|s| s.len()).sum();
    let pieces: Vec<(usize, usize, usize)> = sources
        .iter()
        .enumerate()
        .flat_map(|(tensor, source)| {
            let len = source.len();
            (0..len).step_by(PIECE).map(move |start| (tensor, start, PIECE.min(len - start)))
        })
        .collect();
    let (collected, most) = (AtomicUsize::new(0), (total / 8).max(2 * SAMPLE));
    let look = |scratch: &mut Vec<f32>, (tensor, start, len): &(usize, usize, usize)| {
        let mut inside = Vec::new();
        let mut counts = Counts::default();
        if collected.load(Ordering::Relaxed) > most {
            return None;
        }
        for at in (0..*len).step_by(CHUNK) {
            let values = sources[*tensor].piece(start + at, CHUNK.min(len - at), scratch);
            let of_chunk = bracket(isa, values, low, high, &mut inside);
            counts.below += of_chunk.below;
            counts.at_low += of_chunk.at_low;
            counts.at_high += of_chunk.at_high;
            counts.above += of_chunk.above;
            counts.largest = counts.largest.max(of_chunk.largest);
        }
        collected.fetch_add(inside.len(), Ordering::Relaxed);
        Some((counts, inside))
    };
    let seen: Vec<(Counts, Vec<u32>)> = if total < PARALLEL_MIN {
        let mut scratch = Vec::new();
        pieces.iter().map(|piece| look(&mut scratch, piece)).collect::<Option<_>>()?
    } else {
        pieces.par_iter().map_init(Vec::new, look).collect::<Option<_>>()?
    };
    let sum = |of: fn(&Counts) -> u64| seen.iter().map(|(counts, _)| of(counts)).sum::<u64>();
    let (below, at_low, at_high) = (sum(|c| c.below), sum(|c| c.at_low), sum(|c| c.at_high));
    let inside: u64 = seen.iter().map(|(_, inside)| inside.len() as u64).sum();
    // how many of the values at the cut are dropped, and how many there are
    let (bits, dropped, ties) = if drop >= total as u64 {
        (Cut::ALL.bits, at_low, at_low)
    } else {
        let rank = drop.checked_sub(below)?;
        if rank < at_low {
            (low, rank, at_low)
        } else if rank < at_low + inside {
            nth(&seen, rank - at_low)
        } else if rank < at_low + inside + at_high {
            (high, rank - at_low - inside, at_high)
        } else {
            return None;
        }
    };
    let mut standings = vec![Standing::default(); sources.len()];
    let of_piece = |(counts, inside): &(Counts, Vec<u32>)| {
        let (mut above, mut ties) = (0, 0);
        for key in inside {
            above += u64::from(*key > bits);
            ties += u64::from(*key == bits);
        }
        if bits == low {
            ties += counts.at_low;
        } else if low > bits {
            above += counts.at_low;
        }
        if high != low && bits == high {
            ties += counts.at_high;
        } else if high > bits {
            above += counts.at_high;
        }
        Standing { above: above + counts.above, ties }
    };
    let of_pieces: Vec<Standing> = seen.par_iter().with_min_len(64).map(of_piece).collect();
    for ((tensor, ..), standing) in pieces.iter().zip(of_pieces) {
        standings[*tensor].above += standing.above;
        standings[*tensor].ties += standing.ties;
    }
    Some(Selection {
        cut: Cut { bits, kept_ties: ties - dropped },
        standings,
        finite: seen.iter().all(|(counts, _)| counts.largest < f32::INFINITY.to_bits()),
    })
}

/// The key of some rank among those collected, its rank among its equals, and how many of these there are.
fn nth(seen: &[(Counts, Vec<u32>)], mut rank: u64) -> (u32, u64, u64) {
    const BITS: u32 = 12;
    let all = || seen.iter().flat_map(|(_, inside)| inside);
    let (mut low, mut high) = all().fold((u32::MAX, 0), |(low, high), key| (low.min(*key), high.max(*key)));
    loop {
        // a digit of the distance from the lowest; the last digit leaves one key a bucket
        let shift = (32 - (high - low).leading_zeros()).saturating_sub(BITS);
        let count = |counts: &mut Vec<u64>, keys: &[u32]| {
            for key in keys.iter().filter(|key| (low..=high).contains(*key)) {
                counts[((key - low) >> shift) as usize] += 1;
            }
        };
        let mut counts = vec![0u64; 1 << BITS];
        for (_, inside) in seen {
            count(&mut counts, inside);
        }
        let mut bucket = 0;
        while rank >= counts[bucket] {
            rank -= counts[bucket];
            bucket += 1;
        }
        low += (bucket as u32) << shift;
        if shift == 0 {
            return (low, rank, counts[bucket]);
        }
        high = high.min(low + ((1 << shift) - 1));
    }
}

/// The cut that drops exactly `drop` of the values that `visit` shows, which it does twice, in pieces of any size.
///
/// # Errors
/// Whatever `visit` returns.
pub(crate) fn cut_by_digits<E>(
    drop: u64,
    mut visit: impl FnMut(&mut dyn FnMut(&[f32])) -> Result<(), E>,
) -> Result<Cut, E> {
    let isa = Isa::current();
    let mut upper = boxed::<{ 1 << DIGITS[0] }>();
    visit(&mut |values| count_in_parts(values, &mut upper, portable::upper_histogram))?;
    let Some((digit, rank)) = bucket_of(&upper[..], drop) else {
        return Ok(Cut::ALL);
    };
    let mut lower = boxed::<{ 1 << DIGITS[1] }>();
    visit(&mut |values| count_in_parts(values, &mut lower, |v, c| lower_histogram(isa, v, digit, c)))?;
    // found, if the second visit showed what the first did
    let Some((last, rank)) = bucket_of(&lower[..], rank) else {
        return Ok(Cut::ALL);
    };
    Ok(Cut { bits: digit << DIGITS[1] | last, kept_ties: lower[last as usize] - rank })
}

fn boxed<const N: usize>() -> Box<[u64; N]> {
    match vec![0u64; N].into_boxed_slice().try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("{N} counts"),
    }
}

/// The bucket that holds the value of some rank, and its rank in there.
fn bucket_of(counts: &[u64], mut rank: u64) -> Option<(u32, u64)> {
    for (bucket, count) in counts.iter().enumerate() {
        if rank < *count {
            return Some((bucket as u32, rank));
        }
        rank -= count;
    }
    None
}

/// Counts parts of `values` at the same time, one for each thread: the counts of all are large.
fn count_in_parts<const N: usize>(
    values: &[f32],
    counts: &mut Box<[u64; N]>,
    count: impl Fn(&[f32], &mut [u64; N]) + Sync,
) {
    let threads = rayon::current_num_threads();
    if threads == 1 || values.len() < 4 * N {
        return count(values, counts);
    }
    let parts: Vec<Box<[u64; N]>> = values
        .par_chunks(values.len().div_ceil(threads))
        .map(|values| {
            let mut counts = boxed();
            count(values, &mut counts);
            counts
        })
        .collect();
    for part in parts {
        for (count, more) in counts.iter_mut().zip(part.iter()) {
            *count += more;
        }
    }
}

/// Takes, of every part's ties, what the cut still keeps, and hands those parts whose ties do not all stay to `fix`.
fn share_ties<T: Send>(parts: Vec<(T, u64)>, cut: &mut Cut, fix: impl Fn(T, u64) + Sync) {
    let mut short = Vec::new();
    for (part, ties) in parts {
        let quota = cut.kept_ties.min(ties);
        cut.kept_ties -= quota;
        if quota < ties {
            short.push((part, quota));
        }
    }
    short.into_par_iter().for_each(|(part, quota)| fix(part, quota));
}

/// Zeroes what a cut drops, in place, and takes from the cut the ties that stay: the tensors of a cut are given to
/// this function one after the other, in their order.
///
/// # Shapes
/// `values` has any length.
pub fn zero_below(values: &mut [f32], cut: &mut Cut) {
    fn zero(isa: Isa, values: &mut [f32], bits: u32) -> (&mut [f32], u64) {
        let ties = zero_below_in(isa, values, bits);
        (values, ties)
    }
    let (isa, bits) = (Isa::current(), cut.bits);
    let parts = if values.len() < PARALLEL_MIN {
        vec![zero(isa, values, bits)]
    } else {
        values.par_chunks_mut(CHUNK).map(|values| zero(isa, values, bits)).collect()
    };
    share_ties(parts, cut, |values, quota| {
        let ties = values.iter_mut().filter(|x| magnitude_bits(**x) == bits);
        ties.skip(quota as usize).for_each(|x| *x = 0.0);
    });
}

/// Whether rows of so many columns lie in a mask without gaps, so that many can be treated as one.
fn gapless(cols: usize) -> bool {
    cols.is_multiple_of(8)
}

/// Length of the runs, each a number of whole rows or a part of one, that a mask is made in.
fn run_len(cols: usize) -> usize {
    if gapless(cols) { CHUNK } else { cols }
}

/// Sets the bits of what a cut keeps, and takes from the cut the ties that stay.
///
/// # Shapes
/// `values` is `[rows, cols]`; `bits` is `[rows, ⌈cols / 8⌉]`, lowest bit first.
///
/// # Panics
/// When `bits` is shorter.
pub fn mask_from(values: &[f32], cols: usize, cut: &mut Cut, bits: &mut [u8]) {
    mask_from_with(Isa::current(), values, cols, cut, bits);
}

/// Bytes of a mask, and the values that they are about.
type Run<'a> = (&'a mut [u8], &'a [f32]);

fn mask_from_with(isa: Isa, values: &[f32], cols: usize, cut: &mut Cut, bits: &mut [u8]) {
    fn mark(isa: Isa, (bits, values): Run<'_>, threshold: u32) -> (Run<'_>, u64) {
        let ties = mask_from_in(isa, values, threshold, bits);
        ((bits, values), ties)
    }
    if cols == 0 {
        return;
    }
    assert_eq!(bits.len(), values.len() / cols * cols.div_ceil(8), "bytes of the mask");
    let (run, threshold) = (run_len(cols), cut.bits);
    let parts = if values.len() < PARALLEL_MIN {
        bits.chunks_mut(run.div_ceil(8)).zip(values.chunks(run)).map(|r| mark(isa, r, threshold)).collect()
    } else {
        let parts = bits.par_chunks_mut(run.div_ceil(8)).zip(values.par_chunks(run));
        parts.with_min_len((CHUNK / run).max(1)).map(|r| mark(isa, r, threshold)).collect()
    };
    share_ties(parts, cut, |(bits, values), quota| {
        let ties = values.iter().enumerate().filter(|(_, x)| magnitude_bits(**x) == threshold);
        ties.skip(quota as usize).for_each(|(i, _)| bits[i / 8] &= !(1 << (i % 8)));
    });
}

/// Sets the bits of the `n` largest magnitudes of every `m` neighbours in a row; among equals the first are kept, and
/// a last group of `t < m` columns keeps `min(n, t)`.
///
/// # Shapes
/// `values` is `[rows, cols]`; `bits` is `[rows, ⌈cols / 8⌉]`, lowest bit first.
///
/// # Panics
/// When `bits` has another length, or `m` is not in `1..=16`.
pub fn mask_n_of_m(values: &[f32], cols: usize, n: usize, m: usize, bits: &mut [u8]) {
    mask_n_of_m_with(Isa::current(), values, cols, n, m, bits);
}

fn mask_n_of_m_with(isa: Isa, values: &[f32], cols: usize, n: usize, m: usize, bits: &mut [u8]) {
    assert!((1..=16).contains(&m), "groups of {m}");
    if cols == 0 {
        return;
    }
    assert_eq!(bits.len(), values.len() / cols * cols.div_ceil(8), "bytes of the mask");
    // groups must not reach from one row or run into the next
    let run = if gapless(cols) && cols.is_multiple_of(m) { CHUNK / (8 * m) * (8 * m) } else { cols };
    if values.len() < PARALLEL_MIN {
        for (bits, values) in bits.chunks_mut(run.div_ceil(8)).zip(values.chunks(run)) {
            mask_n_of_m_in(isa, values, n, m, bits);
        }
        return;
    }
    bits.par_chunks_mut(run.div_ceil(8))
        .zip(values.par_chunks(run))
        .with_min_len((CHUNK / run).max(1))
        .for_each(|(bits, values)| mask_n_of_m_in(isa, values, n, m, bits));
}

#[cfg(test)]
mod tests;
