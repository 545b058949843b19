//! Made-up weights and activations, and products computed the plain way.

use rayon::prelude::*;

use crate::cases::Pattern;

/// Rows of activations whose products are checked; a contender that gets these right and others wrong would have to try.
const CHECKED: usize = 8;

/// Values that are close to normal, with variance one.
pub(crate) fn normal(count: usize, seed: u64) -> Vec<f32> {
    const CHUNK: usize = 1 << 16;
    let mut values = filled(count, 0.0f32);
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        let mut state =
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (chunk as u64 + 1).wrapping_mul(0xd1b5_4a32_d192_ed03);
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        // twelve uniform values have variance one together
        values.fill_with(|| (0..12).map(|_| uniform()).sum());
    });
    values
}

/// Equal values, in huge pages where the system has them, as numpy's arrays are; all contenders written in Rust use it.
pub(crate) fn filled<T: Clone>(count: usize, value: T) -> Vec<T> {
    let mut values = Vec::with_capacity(count);
    let start = values.as_mut_ptr() as usize;
    let (first, end) = (start.next_multiple_of(4096), start + count * size_of::<T>());
    if first < end {
        // SAFETY: whole pages of this vector's own memory, or its last one; `madvise` does not change what they hold.
        unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
    }
    values.resize(count, value);
    values
}

/// The first rows of `x · Wᵀ`.
///
/// # Shapes
/// `x` is `[batch, cols]`, `w` is `[rows, cols]`; the result is `[min(batch, 8), rows]`.
pub(crate) fn product(x: &[f32], w: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let batch = (x.len() / cols).min(CHECKED);
    let mut y = vec![0.0; batch * rows];
    y.par_chunks_mut(rows).zip(x.par_chunks(cols)).for_each(|(y, x)| {
        for (y, w) in y.iter_mut().zip(w.chunks_exact(cols)) {
            let sums = x.chunks_exact(16).zip(w.chunks_exact(16)).fold([0.0f64; 16], |mut sums, (x, w)| {
                for (sum, (x, w)) in sums.iter_mut().zip(x.iter().zip(w)) {
                    *sum += f64::from(*x) * f64::from(*w);
                }
                sums
            });
            *y = sums.iter().sum::<f64>() as f32;
        }
    });
    y
}

/// 8-bit codes of one row and its scale: `[-127, 127]`, nearest.
pub(crate) fn int8(values: &[f32]) -> (Vec<i8>, f32) {
    let scale = values.iter().fold(0.0f32, |a, v| a.max(v.abs())) / 127.0;
    (values.iter().map(|v| (v / scale).round() as i8).collect(), scale)
}

/// Sets to zero what a pattern drops: the smallest nine tenths of all magnitudes, or two of every four.
pub(crate) fn prune(weight: &mut [f32], pattern: Pattern) {
    match pattern {
        Pattern::NinetyPercent => {
            let mut magnitudes: Vec<f32> = weight.iter().map(|v| v.abs()).collect();
            let cut = magnitudes.len() * 9 / 10;
            let threshold = *magnitudes.select_nth_unstable_by(cut, f32::total_cmp).1;
            weight.iter_mut().filter(|v| v.abs() < threshold).for_each(|v| *v = 0.0);
        }
        Pattern::TwoOfFour => {
            for four in weight.chunks_exact_mut(4) {
                let mut order = [0, 1, 2, 3];
                order.sort_by(|a, b| four[*a].abs().total_cmp(&four[*b].abs()));
                (four[order[0]], four[order[1]]) = (0.0, 0.0);
            }
        }
    }
}

/// Drops the smaller half of all magnitudes in place, the way of the standard library; of equal ones all stay.
pub(crate) fn prune_half(values: &mut [f32], magnitudes: &mut Vec<f32>) {
    magnitudes.clear();
    magnitudes.extend(values.iter().map(|v| v.abs()));
    let threshold = *magnitudes.select_nth_unstable_by(values.len() / 2, f32::total_cmp).1;
    values.iter_mut().for_each(|v| *v = if v.abs() < threshold { 0.0 } else { *v });
}

/// The values without the smaller half of all magnitudes; of equal ones, those that come first stay.
pub(crate) fn half_pruned(values: &[f32]) -> Vec<f32> {
    let mut magnitudes: Vec<f32> = values.par_iter().map(|v| v.abs()).collect();
    let keep = values.len() - values.len() / 2;
    let threshold = *magnitudes.select_nth_unstable_by(values.len() / 2, f32::total_cmp).1;
    let mut ties = keep - values.par_iter().filter(|v| v.abs() > threshold).count();
    let stays = |v: f32| {
        let tie = v.abs() == threshold && ties > 0;
        ties -= usize::from(tie);
        if tie || v.abs() > threshold { v } else { 0.0 }
    };
    values.iter().copied().map(stays).collect()
}
