//! Products of many rows with one symmetric matrix, such as a layer's Hessian, which is packed once for all of them.

use std::ops::Range;

use rayon::prelude::*;

use super::level::Isa;
use super::update::{PANEL, TILE, Tile, add_product, transposed};

/// Rows of the matrix that are gone through at a time: as many of 32 rows of activations stay in the first-level cache.
const DEPTH: usize = 256;

/// A symmetric matrix in tiles of twelve columns, the last of them filled with zeros.
#[derive(Debug)]
pub(crate) struct SymmetricTiles {
    size: usize,
    /// `[size.div_ceil(12)][size][12]`
    tiles: Vec<f32>,
}

impl SymmetricTiles {
    /// Packs the block on the diagonal that these columns have in a matrix of `size` columns.
    pub(crate) fn of_block(matrix: &[f32], size: usize, columns: Range<usize>) -> Self {
        let n = columns.len();
        let mut tiles = vec![0.0; n * n.next_multiple_of(TILE)];
        tiles.par_chunks_exact_mut((n * TILE).max(1)).enumerate().for_each(|(tile, out)| {
            let first = columns.start + tile * TILE;
            let width = TILE.min(columns.end - first);
            for (out, row) in out.chunks_exact_mut(TILE).zip(columns.clone()) {
                out[..width].copy_from_slice(&matrix[row * size + first..][..width]);
            }
        });
        Self { size: n, tiles }
    }

    /// Packs a whole matrix.
    pub(crate) fn new(matrix: &[f32], size: usize) -> Self {
        Self::of_block(matrix, size, 0..size)
    }

    /// `out = x · H` on the calling thread. Products of 256 columns at a time are summed in their order, each fused, and these sums
    /// added, so that all instruction levels give the same bits.
    ///
    /// # Shapes
    /// `x` and `out` are `[rows, size]`.
    pub(crate) fn product(&self, x: &[f32], out: &mut [f32]) {
        self.product_in(Isa::current(), x, out);
    }

    fn product_in(&self, isa: Isa, x: &[f32], out: &mut [f32]) {
        let size = self.size;
        assert!(x.len() == out.len() && x.len().is_multiple_of(size.max(1)), "rows of a product");
        if size == 0 {
            return;
        }
        let mut sums: Vec<Tile> = vec![[0.0; TILE * PANEL]; size.div_ceil(TILE)];
        for (x, out) in x.chunks(PANEL * size).zip(out.chunks_mut(PANEL * size)) {
            let lanes = transposed(x, size);
            sums.fill([0.0; TILE * PANEL]);
            for (depth, lanes) in lanes.chunks(DEPTH * PANEL).enumerate() {
                let (from, len) = (depth * DEPTH * TILE, lanes.len() / PANEL * TILE);
                for (tile, sums) in self.tiles.chunks_exact(size * TILE).zip(&mut sums) {
                    add_product(isa, &tile[from..from + len], lanes, sums);
                }
            }
            for (lane, row) in out.chunks_exact_mut(size).enumerate() {
                for (columns, sums) in row.chunks_mut(TILE).zip(&sums) {
                    let of_lane = sums[lane..].iter().step_by(PANEL);
                    columns.iter_mut().zip(of_lane).for_each(|(to, sum)| *to = *sum);
                }
            }
        }
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
        for (rows, size) in [(1, 1), (3, 5), (4, 16), (9, 33), (40, 300)] {
            let x = random(&mut rng, rows * size);
            let matrix = random(&mut rng, size * size);
            let tiles = SymmetricTiles::new(&matrix, size);
            for isa in Isa::all() {
                let mut out = vec![f32::NAN; rows * size];
                tiles.product_in(isa, &x, &mut out);
                for row in 0..rows {
                    for col in 0..size {
                        let product =
                            |sum: f32, k: &usize| x[row * size + k].mul_add(matrix[k * size + col], sum);
                        let all: Vec<usize> = (0..size).collect();
                        let sum: f32 = all.chunks(DEPTH).map(|ks| ks.iter().fold(0.0, product)).sum();
                        assert_eq!(out[row * size + col].to_bits(), sum.to_bits(), "{isa:?} {row} {col}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_block_is_that_of_the_diagonal() {
        let matrix: Vec<f32> = (0..25u8).map(f32::from).collect();
        let tiles = SymmetricTiles::of_block(&matrix, 5, 2..4);
        // [1, 10] · [[12, 13], [17, 18]] · [1, 10]ᵀ
        assert_eq!(tiles.errors_of_rows(&[1.0, 10.0]), [12.0 + 130.0 + 170.0 + 1800.0]);
    }
}
