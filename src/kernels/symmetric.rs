//! Products of many rows with one symmetric matrix, such as a layer's Hessian, which is packed once for all of them.

use std::ops::Range;

use rayon::prelude::*;

use super::level::Isa;
use super::product::ColumnTiles;
use super::update::PANEL;

/// A symmetric matrix, packed.
#[derive(Debug)]
pub(crate) struct SymmetricTiles {
    size: usize,
    tiles: ColumnTiles,
}

impl SymmetricTiles {
    /// Packs the block on the diagonal that these columns have in a matrix of `size` columns.
    pub(crate) fn of_block(matrix: &[f32], size: usize, columns: Range<usize>) -> Self {
        let n = columns.len();
        let tiles =
            ColumnTiles::new(n, n, |row| &matrix[(columns.start + row) * size + columns.start..][..n]);
        Self { size: n, tiles }
    }

    /// Packs a whole matrix.
    pub(crate) fn new(matrix: &[f32], size: usize) -> Self {
        Self::of_block(matrix, size, 0..size)
    }

    /// `out = x · H` on the calling thread, as [`ColumnTiles::product_into`] says.
    ///
    /// # Shapes
    /// `x` and `out` are `[rows, size]`.
    pub(crate) fn product(&self, x: &[f32], out: &mut [f32]) {
        self.tiles.product_into(Isa::current(), x, out);
    }

    /// `δ · H · δᵀ` of every row: the squared error that a difference makes in each output.
    ///
    /// # Shapes
    /// `difference` is `[rows, size]`.
    pub(crate) fn errors_of_rows(&self, difference: &[f32]) -> Vec<f64> {
        let size = self.size.max(1);
        difference
            .par_chunks(PANEL * size)
            .flat_map_iter(|rows| {
                let mut products = vec![0.0; rows.len()];
                self.product(rows, &mut products);
                let of_rows = rows.chunks_exact(size).zip(products.chunks_exact(size));
                of_rows.map(|(row, product)| inner(row, product)).collect::<Vec<_>>()
            })
            .collect()
    }
}

/// Sum of products in f64.
pub(crate) fn inner(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_that_of_the_diagonal() {
        let matrix: Vec<f32> = (0..25u8).map(f32::from).collect();
        let tiles = SymmetricTiles::of_block(&matrix, 5, 2..4);
        // [1, 10] · [[12, 13], [17, 18]] · [1, 10]ᵀ
        assert_eq!(tiles.errors_of_rows(&[1.0, 10.0]), [12.0 + 130.0 + 170.0 + 1800.0]);
    }
}
