//! Products of many rows with one symmetric matrix, such as a layer's Hessian, which is packed once for all of them.

mod portable;

use std::ops::Range;

use rayon::prelude::*;

use super::level::{Isa, multiversion};
use portable::{PANEL, Tile};

multiversion! {
    fn product_in(tile: Tile<'_>) = portable::product
}

/// Rows that one task multiplies at a time.
const ROWS: usize = 32;

/// A symmetric matrix as columns of panels: 16 columns lie together, row by row, the last ones filled with zeros.
#[derive(Debug)]
pub(crate) struct SymmetricPanels {
    size: usize,
    panels: Vec<f32>,
}

impl SymmetricPanels {
    /// Packs the block on the diagonal that these columns have in a matrix of `size` columns.
    pub(crate) fn of_block(matrix: &[f32], size: usize, columns: Range<usize>) -> Self {
        let n = columns.len();
        let mut panels = vec![0.0; n * n.next_multiple_of(PANEL)];
        panels.par_chunks_exact_mut((n * PANEL).max(1)).enumerate().for_each(|(panel, out)| {
            let first = columns.start + panel * PANEL;
            let width = PANEL.min(columns.end - first);
            for (out, row) in out.chunks_exact_mut(PANEL).zip(columns.clone()) {
                out[..width].copy_from_slice(&matrix[row * size + first..][..width]);
            }
        });
        Self { size: n, panels }
    }

    /// Packs a whole matrix.
    pub(crate) fn new(matrix: &[f32], size: usize) -> Self {
        Self::of_block(matrix, size, 0..size)
    }

    /// `out = x · H` on the calling thread. Every sum goes from the first column to the last, multiplying and adding apart,
    /// so that all instruction levels give the same bits.
    ///
    /// # Shapes
    /// `x` and `out` are `[rows, size]`.
    pub(crate) fn product(&self, x: &[f32], out: &mut [f32]) {
        assert!(x.len() == out.len() && x.len().is_multiple_of(self.size.max(1)), "rows of a product");
        product_in(Isa::current(), Tile { x, size: self.size, panels: &self.panels, out });
    }

    /// `δ · H · δᵀ` of every row: the squared error that a difference makes in each output.
    ///
    /// # Shapes
    /// `difference` is `[rows, size]`.
    pub(crate) fn errors_of_rows(&self, difference: &[f32]) -> Vec<f64> {
        let size = self.size.max(1);
        difference
            .par_chunks(ROWS * size)
            .flat_map_iter(|rows| {
                let mut products = vec![0.0; rows.len()];
                self.product(rows, &mut products);
                let of_rows = rows.chunks_exact(size).zip(products.chunks_exact(size));
                of_rows.map(|(row, product)| inner(row, product)).collect::<Vec<_>>()
            })
            .collect()
    }

    /// `tr(Δ · H · Δᵀ)`: [`errors_of_rows`](Self::errors_of_rows) added up.
    pub(crate) fn error(&self, difference: &[f32]) -> f64 {
        self.errors_of_rows(difference).into_iter().sum()
    }
}

/// Sum of products in f64.
pub(crate) fn inner(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[cfg(test)]
mod tests {
    use rand::Rng;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn random(rng: &mut ChaCha8Rng, len: usize) -> Vec<f32> {
        (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    #[test]
    fn every_level_gives_the_sums_in_their_order() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for (rows, size) in [(1, 1), (3, 5), (4, 16), (9, 33), (6, 50)] {
            let x = random(&mut rng, rows * size);
            let matrix = random(&mut rng, size * size);
            let panels = SymmetricPanels::new(&matrix, size);
            for isa in Isa::all() {
                let mut out = vec![f32::NAN; rows * size];
                product_in(isa, Tile { x: &x, size, panels: &panels.panels, out: &mut out });
                for row in 0..rows {
                    for col in 0..size {
                        let sum =
                            (0..size).fold(0.0f32, |sum, k| sum + x[row * size + k] * matrix[k * size + col]);
                        assert_eq!(out[row * size + col].to_bits(), sum.to_bits(), "{isa:?} {row} {col}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_block_is_that_of_the_diagonal() {
        let matrix: Vec<f32> = (0..25u8).map(f32::from).collect();
        let panels = SymmetricPanels::of_block(&matrix, 5, 2..4);
        // [1, 10] · [[12, 13], [17, 18]] · [1, 10]ᵀ
        assert_eq!(panels.errors_of_rows(&[1.0, 10.0]), [12.0 + 130.0 + 170.0 + 1800.0]);
    }
}
