//! Products of any two matrices, of which the right one is packed once: for what ends up in a file.

use rayon::prelude::*;

use super::level::Isa;
use super::transpose::transposed;
use super::update::{PANEL, TILE, Tile, add_product};

/// Rows of the right matrix that are gone through at a time: as many of 32 rows of the left one stay in the first-level cache.
pub(super) const DEPTH: usize = 256;

/// A matrix in tiles of twelve columns, the last of them filled with zeros.
#[derive(Debug)]
pub(crate) struct ColumnTiles {
    depth: usize,
    cols: usize,
    /// `[cols.div_ceil(12)][depth][12]`
    tiles: Vec<f32>,
}

impl ColumnTiles {
    /// Packs a matrix of `depth` rows, of which `row` gives the `cols` elements.
    pub(crate) fn new<'a>(depth: usize, cols: usize, row: impl Fn(usize) -> &'a [f32] + Sync) -> Self {
        let mut tiles = vec![0.0; depth * cols.next_multiple_of(TILE)];
        tiles.par_chunks_exact_mut((depth * TILE).max(1)).enumerate().for_each(|(tile, out)| {
            let first = tile * TILE;
            let width = TILE.min(cols - first);
            for (i, out) in out.chunks_exact_mut(TILE).enumerate() {
                out[..width].copy_from_slice(&row(i)[first..first + width]);
            }
        });
        Self { depth, cols, tiles }
    }

    /// Packs the transpose of a `[cols, depth]` matrix.
    pub(crate) fn transposed(matrix: &[f32], depth: usize, cols: usize) -> Self {
        let mut tiles = vec![0.0; depth * cols.next_multiple_of(TILE)];
        let rows = matrix.par_chunks((depth * TILE).max(1));
        tiles.par_chunks_exact_mut((depth * TILE).max(1)).zip(rows).for_each(|(out, rows)| {
            for (lane, row) in rows.chunks_exact(depth).enumerate() {
                out[lane..].iter_mut().step_by(TILE).zip(row).for_each(|(to, x)| *to = *x);
            }
        });
        Self { depth, cols, tiles }
    }

    /// `x · M` on all threads; the bits of [`product_into`](Self::product_into).
    ///
    /// # Shapes
    /// `x` is `[rows, depth]`, the result `[rows, cols]`.
    pub(crate) fn product(&self, x: &[f32]) -> Vec<f32> {
        let rows = x.len().checked_div(self.depth).unwrap_or(0);
        let mut out = vec![0.0; rows * self.cols];
        let strips = out.par_chunks_mut((PANEL * self.cols).max(1));
        let of_x = x.par_chunks((PANEL * self.depth).max(1));
        strips.zip(of_x).for_each(|(out, x)| self.product_into(Isa::current(), x, out));
        out
    }

    /// `out = x · M` on the calling thread. Products of 256 rows at a time are summed in their order, each fused, and these sums
    /// added, so that all instruction levels give the same bits.
    ///
    /// # Shapes
    /// `x` is `[rows, depth]`, `out` is `[rows, cols]`.
    pub(crate) fn product_into(&self, isa: Isa, x: &[f32], out: &mut [f32]) {
        let (depth, cols) = (self.depth, self.cols);
        assert_eq!(x.len() * cols, out.len() * depth, "rows of a product");
        if depth == 0 || cols == 0 {
            out.fill(0.0);
            return;
        }
        let mut sums = self.no_sums();
        for (x, out) in x.chunks(PANEL * depth).zip(out.chunks_mut(PANEL * cols)) {
            self.strip(isa, &transposed(isa, x, depth), &mut sums, out);
        }
    }

    /// `xᵀ · M` on all threads; the bits of [`product`](Self::product) of the transposed `x`.
    ///
    /// # Shapes
    /// `x` is `[depth, rows]`, the result `[rows, cols]`.
    pub(crate) fn transposed_product(&self, x: &[f32], rows: usize) -> Vec<f32> {
        let mut out = vec![0.0; rows * self.cols];
        let strips = out.par_chunks_mut((PANEL * self.cols).max(1)).enumerate();
        strips.for_each(|(strip, out)| self.columns_into(Isa::current(), x, rows, strip * PANEL, out));
        out
    }

    /// [`transposed_product`](Self::transposed_product) on the calling thread.
    ///
    /// # Shapes
    /// `x` is `[depth, rows]`, `out` is `[rows, cols]`.
    pub(crate) fn transposed_product_into(&self, isa: Isa, x: &[f32], rows: usize, out: &mut [f32]) {
        assert_eq!(out.len(), rows * self.cols, "rows of a product");
        for (strip, out) in out.chunks_mut((PANEL * self.cols).max(1)).enumerate() {
            self.columns_into(isa, x, rows, strip * PANEL, out);
        }
    }

    /// Up to 32 rows of the product with the transposed `x`.
    fn columns_into(&self, isa: Isa, x: &[f32], rows: usize, first: usize, out: &mut [f32]) {
        assert_eq!(x.len(), self.depth * rows, "columns of a product");
        let width = PANEL.min(rows - first);
        let mut lanes = vec![0.0; self.depth * PANEL];
        for (lanes, x) in lanes.chunks_exact_mut(PANEL).zip(x.chunks_exact(rows)) {
            lanes[..width].copy_from_slice(&x[first..first + width]);
        }
        self.strip(isa, &lanes, &mut self.no_sums(), out);
    }

    fn no_sums(&self) -> Vec<Tile> {
        vec![[0.0; TILE * PANEL]; self.cols.div_ceil(TILE)]
    }

    /// The product of up to 32 rows, `[depth][32]`.
    fn strip(&self, isa: Isa, lanes: &[f32], sums: &mut [Tile], out: &mut [f32]) {
        let (depth, cols) = (self.depth, self.cols);
        sums.fill([0.0; TILE * PANEL]);
        for (block, lanes) in lanes.chunks(DEPTH * PANEL).enumerate() {
            let (from, len) = (block * DEPTH * TILE, lanes.len() / PANEL * TILE);
            for (tile, sums) in self.tiles.chunks_exact((depth * TILE).max(1)).zip(&mut *sums) {
                add_product(isa, &tile[from..from + len], lanes, sums);
            }
        }
        for (lane, row) in out.chunks_exact_mut(cols).enumerate() {
            for (columns, sums) in row.chunks_mut(TILE).zip(&*sums) {
                let of_lane = sums[lane..].iter().step_by(PANEL);
                columns.iter_mut().zip(of_lane).for_each(|(to, sum)| *to = *sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn every_level_gives_the_sums_in_their_order() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut random = |len: usize| -> Vec<f32> { (0..len).map(|_| rng.random_range(-1.0..1.0)).collect() };
        for (rows, depth, cols) in [(1, 1, 1), (3, 5, 2), (4, 16, 12), (9, 33, 40), (40, 300, 13), (2, 0, 3)]
        {
            let (x, matrix) = (random(rows * depth), random(depth * cols));
            let opposite: Vec<f32> =
                (0..cols * depth).map(|at| matrix[at % depth.max(1) * cols + at / depth.max(1)]).collect();
            let tiles = [
                ColumnTiles::new(depth, cols, |row| &matrix[row * cols..][..cols]),
                ColumnTiles::transposed(&opposite, depth, cols),
            ];
            let sum = |row: usize, col: usize| -> f32 {
                let product = |sum: f32, k: &usize| x[row * depth + k].mul_add(matrix[k * cols + col], sum);
                let all: Vec<usize> = (0..depth).collect();
                all.chunks(DEPTH).map(|ks| ks.iter().fold(0.0, product)).sum()
            };
            let expected: Vec<f32> = (0..rows * cols).map(|at| sum(at / cols, at % cols)).collect();
            for tiles in tiles {
                for isa in Isa::all() {
                    let mut out = vec![f32::NAN; rows * cols];
                    tiles.product_into(isa, &x, &mut out);
                    assert_eq!(out, expected, "{isa:?} {rows} × {depth} × {cols}");
                }
                if depth > 0 {
                    assert_eq!(tiles.product(&x), expected);
                }
                let of_x = |at: usize| x[at % rows * depth + at / rows];
                let columns: Vec<f32> = (0..x.len()).map(of_x).collect();
                assert_eq!(tiles.transposed_product(&columns, rows), expected);
                for isa in Isa::all() {
                    let mut out = vec![f32::NAN; rows * cols];
                    tiles.transposed_product_into(isa, &columns, rows, &mut out);
                    assert_eq!(out, expected, "{isa:?} {rows} × {depth} × {cols}, transposed");
                }
            }
        }
    }
}
