//! `C += A·B` tile by tile, and what is made of it: sums that a symmetric or triangular matrix needs half of.
//!
//! Every sum of a tile is of fused products in one order, so that it is the same at every instruction level; who adds tiles
//! does so in one order, too, whatever thread does it.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::ops::Range;

use rayon::prelude::*;

use super::level::{Isa, multiversion};

/// Rows of a tile.
pub(crate) const TILE: usize = 12;

/// Columns of a tile.
pub(crate) const PANEL: usize = 32;

/// `[12, 32]`.
pub(crate) type Tile = [f32; TILE * PANEL];

/// Rows that are updated together, so that a panel is fetched into the first-level cache once for several tiles.
const STRIP: usize = 4 * TILE;

/// Products that are summed before they are added to what is there: a panel of so many rows fits into the first-level cache.
const DEPTH: usize = 256;

multiversion! {
    fn add_product_any(a: &[f32], b: &[f32], tile: &mut Tile) = portable::add_product
}

multiversion! {
    fn add_outer_any(factors: &[f32], x: &[f32; PANEL], rows: &mut [f32]) = portable::add_outer
}

/// Adds `factors[i] · x` to row `i` of `[factors.len(), 32]`, each product fused with its sum.
pub(crate) fn add_outer(isa: Isa, factors: &[f32], x: &[f32; PANEL], rows: &mut [f32]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(proof) => avx512::add_outer(proof, factors, x, rows),
        _ => add_outer_any(isa, factors, x, rows),
    }
}

/// Adds the product of `a`, `[k][12]`, and `b`, `[k][32]`, to a tile.
pub(crate) fn add_product(isa: Isa, a: &[f32], b: &[f32], tile: &mut Tile) {
    debug_assert_eq!(a.len() / TILE, b.len() / PANEL);
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(proof) => avx512::add_product(proof, a, b, tile),
        _ => add_product_any(isa, a, b, tile),
    }
}

/// Hands `add` every sum of `PᵀP` on and above the diagonal, and some below it, a few in a row, with the elements of `c` that they
/// belong to.
///
/// # Shapes
/// `panels` holds `P`, `[k, size]`, as `[size.div_ceil(32)][k][32]`, zero beyond the last column; `c` has at least `size`
/// rows of `stride`.
pub(crate) fn symmetric_product<T: Send>(
    isa: Isa,
    panels: &[f32],
    k: usize,
    size: usize,
    (c, stride): (&mut [T], usize),
    add: impl Fn(&mut [T], &[f32]) + Sync,
) {
    assert!(panels.len() >= size.div_ceil(PANEL) * k * PANEL && c.len() >= size * stride && stride >= size);
    if size == 0 || k == 0 {
        return;
    }
    let strips = c[..size * stride].par_chunks_mut(STRIP * stride).enumerate();
    strips.for_each_init(Vec::new, |rows: &mut Vec<f32>, (strip, c)| {
        let first = strip * STRIP;
        rows.clear();
        for first in (first..(first + STRIP).min(size)).step_by(TILE) {
            // a tile may begin in one panel and end in the next
            for t in 0..k {
                rows.extend((first..first + TILE).map(|row| {
                    panels.get(row / PANEL * k * PANEL + t * PANEL + row % PANEL).copied().unwrap_or(0.0)
                }));
            }
        }
        for (panel, b) in panels.chunks_exact(k * PANEL).enumerate().skip(first / PANEL) {
            let cols = panel * PANEL..((panel + 1) * PANEL).min(size);
            if cols.is_empty() {
                break;
            }
            for (a, c) in rows.chunks_exact(k * TILE).zip(c.chunks_mut(TILE * stride)) {
                let mut tile = [0.0; TILE * PANEL];
                add_product(isa, a, b, &mut tile);
                for (sums, c) in tile.as_chunks::<PANEL>().0.iter().zip(c.chunks_mut(stride)) {
                    add(&mut c[cols.clone()], &sums[..cols.len()]);
                }
            }
        }
    });
}

/// Rows of a matrix that a sweep goes through, 32 at a time.
pub(crate) trait Lanes: Send {
    /// `[size][32]`: columns that have been passed are read, those of the current block may be written.
    fn columns(&self) -> &[f32];

    /// Takes the sums of a block's columns over all earlier columns, `[columns][32]`.
    fn block(&mut self, isa: Isa, columns: Range<usize>, sums: &mut [f32]);

    /// What all rows do together once each has taken its sums.
    fn together(isa: Isa, columns: Range<usize>, rows: &mut [Self])
    where
        Self: Sized,
    {
        let _ = (isa, columns, rows);
    }
}

/// Goes through the columns of `X·T` from the first to the last, block by block: to each block of columns `J` it gives the sums
/// `Σ_{i < J.start} X_ri · T_ij`. Products within a block are left to the rows, for which the block may depend on them.
///
/// # Shapes
/// `matrix` is `[size, size]`, of which the part above the diagonal blocks is read.
pub(crate) fn sweep<L: Lanes>(isa: Isa, matrix: &[f32], size: usize, block: usize, rows: &mut [L]) {
    assert!(matrix.len() == size * size && block > 0);
    let mut tiles = vec![0f32; block.div_ceil(TILE) * TILE * size];
    for first in (0..size).step_by(block) {
        let columns = first..(first + block).min(size);
        // tiles of twelve columns of what lies above the block
        let tiles = &mut tiles[..columns.len().div_ceil(TILE) * TILE * first];
        if first > 0 {
            tiles.par_chunks_exact_mut(TILE * first).enumerate().for_each(|(tile, packed)| {
                let from = columns.start + tile * TILE;
                let len = TILE.min(columns.end - from);
                for (to, row) in packed.as_chunks_mut::<TILE>().0.iter_mut().zip(matrix.chunks_exact(size)) {
                    if let Some(whole) = row[from..columns.end].first_chunk() {
                        *to = *whole;
                    } else {
                        to[..len].copy_from_slice(&row[from..from + len]);
                        to[len..].fill(0.0);
                    }
                }
            });
        }
        let tiles = &*tiles;
        rows.par_iter_mut().for_each_init(Vec::new, |sums: &mut Vec<f32>, rows| {
            sums.clear();
            sums.resize(columns.len().div_ceil(TILE) * TILE * PANEL, 0.0);
            let passed = &rows.columns()[..first * PANEL];
            for (depth, b) in passed.chunks(DEPTH * PANEL).enumerate() {
                let (from, len) = (depth * DEPTH * TILE, b.len() / PANEL * TILE);
                let all = tiles.chunks_exact(TILE * first).zip(sums.as_chunks_mut().0);
                for (a, sums) in all {
                    add_product(isa, &a[from..from + len], b, sums);
                }
            }
            sums.truncate(columns.len() * PANEL);
            rows.block(isa, columns.clone(), sums);
        });
        L::together(isa, columns, rows);
    }
}

/// Up to 32 rows as columns of 32 lanes, of which those beyond the last row are zero.
///
/// # Shapes
/// `rows` is `[up to 32, cols]`, the result `[cols][32]`.
pub(crate) fn transposed(rows: &[f32], cols: usize) -> Vec<f32> {
    let mut lanes = vec![0f32; cols * PANEL];
    transpose(rows, cols, &mut lanes);
    lanes
}

/// [`transposed`] into `[cols][32]` zeros.
pub(crate) fn transpose(rows: &[f32], cols: usize, lanes: &mut [f32]) {
    /// Columns whose lanes stay in the first-level cache while the rows are gone through.
    const AT_ONCE: usize = 16;
    for (block, lanes) in lanes.chunks_mut(AT_ONCE * PANEL).enumerate() {
        for (lane, row) in rows.chunks_exact(cols).enumerate() {
            let values = &row[block * AT_ONCE..];
            lanes.as_chunks_mut::<PANEL>().0.iter_mut().zip(values).for_each(|(to, x)| to[lane] = *x);
        }
    }
}
