//! Sums over the rows of a matrix of activations that calibration keeps: `XᵀX`, and what is weighted by it.

mod wide;

use std::ops::Range;

use rayon::prelude::*;

use super::level::{Isa, multiversion};
use super::matmul::panels::Aligned;
use super::transpose::to_lanes;
use super::update::{self, InTurn, Lanes, PANEL, Panels, symmetric_product};

pub(crate) use wide::gram_of_rows;

/// Rows whose products are summed in `f32` before they are added to the `f64` sums.
const TOKENS: usize = 256;

/// Columns of a block of [`quadratic_form`]: some whole tiles.
const BLOCK: usize = 8 * update::TILE;

/// Adds `XᵀX` to a symmetric matrix, of which the part on and above the diagonal is kept; what lies below is unspecified.
///
/// Products of 256 rows at a time are summed in `f32`, fused and in order, and then added to the `f64` sums. The result
/// depends on neither the number of threads nor the instruction level.
///
/// # Shapes
/// `x` is `[tokens, size]`, `gram` is `[size, size]`.
///
/// # Panics
/// When a slice is of another length.
pub fn add_gram(x: &[f32], size: usize, gram: &mut [f64]) {
    add_gram_in(Isa::current(), x, size, gram);
}

fn add_gram_in(isa: Isa, x: &[f32], size: usize, gram: &mut [f64]) {
    assert!(
        gram.len() == size * size && x.len().is_multiple_of(size.max(1)),
        "activations and their products"
    );
    if size == 0 {
        return;
    }
    let mut panels = Vec::new();
    for x in x.chunks(TOKENS * size) {
        let tokens = x.len() / size;
        panels.resize(size.div_ceil(PANEL) * tokens * PANEL, 0.0);
        panels.par_chunks_exact_mut(tokens * PANEL).enumerate().for_each(|(panel, packed)| {
            let first = panel * PANEL;
            let len = PANEL.min(size - first);
            for (to, row) in packed.as_chunks_mut::<PANEL>().0.iter_mut().zip(x.chunks_exact(size)) {
                to[..len].copy_from_slice(&row[first..first + len]);
                to[len..].fill(0.0);
            }
        });
        let panels = Panels { values: &panels, depth: tokens };
        let add = |to: &mut [f64], sums: &[f32]| add_in_f64(isa, to, sums);
        symmetric_product(isa, panels, 0..tokens, 0..size, (gram, size), add);
    }
}

/// A symmetric matrix divided by a number, from the part of it that [`add_gram`] keeps.
///
/// # Shapes
/// `gram` and the result are `[size, size]`.
///
/// # Panics
/// When the slice is of another length.
pub fn mean(gram: &[f64], size: usize, count: f64) -> Vec<f32> {
    assert_eq!(gram.len(), size * size, "products");
    let mut mean = vec![0f32; size * size];
    mean.par_chunks_mut((PANEL * size).max(1)).enumerate().for_each(|(strip, rows)| {
        let first = strip * PANEL;
        for (i, row) in rows.chunks_exact_mut(size).enumerate() {
            let from = (first + i) * size;
            for (to, sum) in row[first + i..].iter_mut().zip(&gram[from + first + i..from + size]) {
                *to = (sum / count) as f32;
            }
        }
        // the columns left of the diagonal are rows above it
        let height = rows.len() / size;
        for j in 0..first + height {
            for i in (j + 1).saturating_sub(first)..height {
                rows[i * size + j] = (gram[j * size + first + i] / count) as f32;
            }
        }
    });
    mean
}

/// `Σ_r δ_r · H · δ_rᵀ` over the rows of a difference: the squared error that it makes in a layer's output.
///
/// Products with the part of `H` above the diagonal are summed in `f32`, fused and in one order, what they are weighted with in
/// `f64`. The result depends on neither the number of threads nor the instruction level.
///
/// # Shapes
/// `difference` is `[rows, size]`, `hessian` is `[size, size]` and symmetric.
///
/// # Panics
/// When a slice is of another length.
pub fn quadratic_form(difference: &[f32], size: usize, hessian: &[f32]) -> f64 {
    quadratic_forms(&[difference], size, hessian)[0]
}

/// [`quadratic_form`] of several differences, in one pass over the Hessian.
///
/// # Panics
/// When a slice is of another length.
pub fn quadratic_forms(differences: &[&[f32]], size: usize, hessian: &[f32]) -> Vec<f64> {
    quadratic_forms_in(Isa::current(), differences, size, hessian)
}

fn quadratic_forms_in(isa: Isa, differences: &[&[f32]], size: usize, hessian: &[f32]) -> Vec<f64> {
    assert!(hessian.len() == size * size, "a matrix");
    assert!(differences.iter().all(|x| x.len().is_multiple_of(size.max(1))), "the matrix's weights");
    if size == 0 {
        return vec![0.0; differences.len()];
    }
    let panels = differences.iter().map(|rows| rows.len().div_ceil(PANEL * size));
    let all: Vec<&[f32]> = differences.iter().flat_map(|rows| rows.chunks(PANEL * size)).collect();
    let mut columns = Aligned::zeroed(all.len() * size * PANEL * size_of::<f32>());
    let columns = columns.words_mut().par_chunks_exact_mut(size * PANEL);
    let of_rows = columns.zip(all).map(|(columns, rows)| {
        to_lanes(isa, rows, size, 0..size, columns);
        Weighted { hessian, size, columns, totals: [0.0; PANEL] }
    });
    let mut rows: Vec<Weighted<'_>> = of_rows.collect();
    update::sweep(isa, hessian, size, BLOCK, &mut rows);
    let mut totals = rows.iter().map(|rows| rows.totals.iter().sum::<f64>());
    panels.map(|panels| totals.by_ref().take(panels).sum()).collect()
}

/// 32 rows of a difference, and the sums of their weighted squares so far.
struct Weighted<'a> {
    hessian: &'a [f32],
    size: usize,
    columns: &'a [f32],
    totals: [f64; PANEL],
}

impl Lanes for Weighted<'_> {
    fn columns(&self) -> &[f32] {
        self.columns
    }

    fn block(&mut self, isa: Isa, columns: Range<usize>, sums: &mut [f32]) {
        let mut in_turn = InTurn::new(isa, columns.len(), sums);
        for j in columns {
            let weights = &self.hessian[j * (self.size + 1)..];
            let x = &self.columns.as_chunks::<PANEL>().0[j];
            add_weighted(isa, weights[0], x, in_turn.sums(), &mut self.totals);
            in_turn.finish(&weights[1..], x);
        }
    }
}

multiversion! {
    fn add_in_f64(to: &mut [f64], sums: &[f32]) = add_in_f64_any
}

#[inline(always)]
fn add_in_f64_any(to: &mut [f64], sums: &[f32]) {
    to.iter_mut().zip(sums).for_each(|(to, sum)| *to += f64::from(*sum));
}

multiversion! {
    /// Adds what a column and twice its products with earlier ones weigh to the sums of 32 rows.
    fn add_weighted(
        weight: f32, x: &[f32; PANEL], products: &[f32; PANEL], totals: &mut [f64; PANEL],
    ) = add_weighted_any
}

#[inline(always)]
fn add_weighted_any(weight: f32, x: &[f32; PANEL], products: &[f32; PANEL], totals: &mut [f64; PANEL]) {
    for ((x, product), total) in x.iter().zip(products).zip(totals) {
        *total += f64::from(*x) * f64::from(weight.mul_add(*x, 2.0 * product));
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn random(seed: u64, len: usize) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..len).map(|_| random.random_range(-1.0..1.0f32)).collect()
    }

    #[test]
    fn products_of_all_columns_are_those_of_the_definition() {
        for (tokens, size) in [(0, 3), (1, 1), (5, 13), (300, 33), (520, 100), (7, 97)] {
            let x = random(1, tokens * size);
            let mut gram = vec![0.5; size * size];
            add_gram(&x, size, &mut gram);
            let mean = mean(&gram, size, 4.0);
            for i in 0..size {
                for j in 0..size {
                    let sum: f64 = x.chunks_exact(size).map(|x| f64::from(x[i]) * f64::from(x[j])).sum();
                    let error = (f64::from(mean[i * size + j]) - (0.5 + sum) / 4.0).abs();
                    assert!(error < 3e-6 * (1.0 + tokens as f64).sqrt(), "{tokens} × {size}: {error}");
                }
            }
        }
    }

    #[test]
    fn weighted_squares_are_those_of_the_definition() {
        for (rows, size) in [(0, 3), (1, 1), (3, 13), (33, 150), (65, 300)] {
            let x = random(2, 40 * size);
            let mut gram = vec![0.0; size * size];
            add_gram(&x, size, &mut gram);
            let (hessian, difference) = (mean(&gram, size, 40.0), random(3, rows * size));
            let found = quadratic_form(&difference, size, &hessian);
            let mut expected = 0.0;
            for d in difference.chunks_exact(size) {
                for x in x.chunks_exact(size) {
                    let y: f64 = d.iter().zip(x).map(|(d, x)| f64::from(*d) * f64::from(*x)).sum();
                    expected += y * y / 40.0;
                }
            }
            assert!((found - expected).abs() <= 1e-5 * expected, "{rows} × {size}: {found} {expected}");
        }
    }

    #[test]
    fn every_level_and_number_of_threads_gives_the_same_bits() {
        let (tokens, size) = (290, 141);
        let (x, difference) = (random(4, tokens * size), random(5, 70 * size));
        let of = |isa| {
            let mut gram = vec![0.0; size * size];
            add_gram_in(isa, &x, size, &mut gram);
            let hessian = mean(&gram, size, tokens as f64);
            let forms = quadratic_forms_in(isa, &[&difference, &x], size, &hessian);
            assert_eq!(forms[1].to_bits(), quadratic_form(&x, size, &hessian).to_bits());
            (
                hessian.iter().map(|h| h.to_bits()).collect::<Vec<_>>(),
                forms.into_iter().map(f64::to_bits).collect::<Vec<_>>(),
            )
        };
        let expected = of(Isa::Portable);
        for isa in Isa::all() {
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert!(pool.install(|| of(isa)) == expected, "{isa:?} with {threads} threads");
            }
        }
    }
}
