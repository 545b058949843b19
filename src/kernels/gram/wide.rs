//! Products of all pairs of rows in `f64`, where what is small beside the largest counts.

use rayon::prelude::*;

use crate::kernels::level::{Isa, multiversion};

/// Rows of a panel.
const LANES: usize = 8;

multiversion! {
    fn tile(a: &[f64], b: &[f64]) -> [[f64; LANES]; LANES] = tile_any
}

#[inline(always)]
fn tile_any(a: &[f64], b: &[f64]) -> [[f64; LANES]; LANES] {
    let mut sums = [[0f64; LANES]; LANES];
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        for (a, sums) in a.iter().zip(&mut sums) {
            sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
        }
    }
    sums
}

/// `X·Xᵀ`, products and sums in `f64`, in the order of the columns.
///
/// The result depends on neither the number of threads nor the instruction level.
///
/// # Shapes
/// `x` is `[rows, cols]`, the result `[rows, rows]`, symmetric to the last bit.
pub(crate) fn gram_of_rows(x: &[f32], rows: usize) -> Vec<f64> {
    gram_of_rows_in(Isa::current(), x, rows)
}

fn gram_of_rows_in(isa: Isa, x: &[f32], rows: usize) -> Vec<f64> {
    let cols = x.len().checked_div(rows).unwrap_or(0);
    assert_eq!(x.len(), rows * cols, "rows of a matrix");
    let mut gram = vec![0f64; rows * rows];
    if x.is_empty() {
        return gram;
    }
    // [rows.div_ceil(8)][cols][8]
    let mut panels = vec![0f64; rows.next_multiple_of(LANES) * cols];
    panels.par_chunks_exact_mut(LANES * cols).zip(x.par_chunks(LANES * cols)).for_each(|(panel, x)| {
        for (lane, row) in x.chunks_exact(cols).enumerate() {
            panel[lane..].iter_mut().step_by(LANES).zip(row).for_each(|(to, x)| *to = f64::from(*x));
        }
    });
    gram.par_chunks_mut(LANES * rows).enumerate().for_each(|(strip, out)| {
        let a = &panels[strip * LANES * cols..][..LANES * cols];
        for (panel, b) in panels.chunks_exact(LANES * cols).enumerate().skip(strip) {
            let sums = tile(isa, a, b);
            let first = panel * LANES;
            let width = LANES.min(rows - first);
            for (row, sums) in out.chunks_exact_mut(rows).zip(&sums) {
                row[first..first + width].copy_from_slice(&sums[..width]);
            }
        }
    });
    for i in 1..rows {
        let (above, row) = gram.split_at_mut(i * rows);
        let columns = above.iter().skip(i).step_by(rows);
        row[..i].iter_mut().zip(columns).for_each(|(to, x)| *to = *x);
    }
    gram
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn every_level_gives_the_sums_in_their_order() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for (rows, cols) in [(0, 3), (1, 1), (7, 5), (8, 0), (19, 70), (41, 13)] {
            let x: Vec<f32> = (0..rows * cols).map(|_| random.random_range(-1.0..1.0)).collect();
            let sum = |i: usize, j: usize| -> f64 {
                (0..cols).fold(0.0, |sum, k| sum + f64::from(x[i * cols + k]) * f64::from(x[j * cols + k]))
            };
            let expected: Vec<f64> = (0..rows * rows).map(|at| sum(at / rows, at % rows)).collect();
            for isa in Isa::all() {
                assert_eq!(gram_of_rows_in(isa, &x, rows), expected, "{isa:?} {rows} × {cols}");
            }
        }
    }
}
