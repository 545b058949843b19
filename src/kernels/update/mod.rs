//! `C += A·B` tile by tile, and what is made of it: sums that a symmetric or triangular matrix needs half of.
//!
//! Every sum of a tile is of fused products in one order, so that it is the same at every instruction level; who adds tiles
//! does so in one order, too, whatever thread does it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::ops::Range;

use rayon::prelude::*;

use super::level::Isa;

/// Rows of a tile.
pub(crate) const TILE: usize = 12;

/// Columns of a tile.
pub(crate) const PANEL: usize = 32;

/// `[12, 32]`.
pub(crate) type Tile = [f32; TILE * PANEL];

/// Rows that are updated together, so that a panel is fetched into the first-level cache once for several tiles.
const STRIP: usize = 4 * TILE;

/// Columns that are finished before what they add to all later ones is added.
const RUN: usize = 8;

/// Products that are summed before they are added to what is there: a panel of so many rows fits into the first-level cache.
const DEPTH: usize = 256;

/// Adds `factors[i] · x` to row `i` of `[factors.len(), 32]`, each product fused with its sum.
pub(crate) fn add_outer(isa: Isa, factors: &[f32], x: &[f32; PANEL], rows: &mut [f32]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(proof) => avx512::add_outer(proof, factors, x, rows),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(proof) => avx2::add_outer(proof, factors, x, rows),
        Isa::Portable => portable::add_outer(factors, x, rows),
    }
}

/// [`add_outer`] of several factors and `x`, one after the other; the bits are the same, but each row is fetched once.
pub(crate) fn add_outers(isa: Isa, factors: &[&[f32]], x: &[[f32; PANEL]], rows: &mut [f32]) {
    assert!(factors.iter().all(|factors| factors.len() * PANEL >= rows.len()), "a factor for every row");
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(proof) => avx512::add_outers(proof, factors, x, rows),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(proof) => avx2::add_outers(proof, factors, x, rows),
        Isa::Portable => portable::add_outers(factors, x, rows),
    }
}

/// Columns of a triangular matrix that are finished from the first to the last, each of which adds to the sums of all later ones.
///
/// A few of them are finished before they add to those behind them, so that these are fetched once for all.
pub(crate) struct InTurn<'a> {
    isa: Isa,
    /// Columns that are left, from the first of the run on.
    left: usize,
    /// Sums, from the first column of the run on.
    sums: &'a mut [[f32; PANEL]],
    /// What each finished column of the run adds, times its elements to the right of the diagonal.
    finished: [([f32; PANEL], &'a [f32]); RUN],
    /// Finished columns of the run.
    done: usize,
}

impl<'a> InTurn<'a> {
    /// `sums` is `[columns and later ones][32]`.
    pub(crate) fn new(isa: Isa, columns: usize, sums: &'a mut [f32]) -> Self {
        let sums = sums.as_chunks_mut().0;
        assert!(columns <= sums.len(), "sums of {columns} columns");
        Self { isa, left: columns, sums, finished: [([0.0; PANEL], &[]); RUN], done: 0 }
    }

    /// The sums of the column whose turn it is.
    ///
    /// # Panics
    /// When all are finished and there is no later one.
    pub(crate) fn sums(&mut self) -> &mut [f32; PANEL] {
        &mut self.sums[self.done]
    }

    /// Adds `x`, times what stands to the right of the column's diagonal element, to the sums of all later columns; then it is the
    /// next one's turn.
    ///
    /// # Panics
    /// When all are finished, or a later column has no element.
    pub(crate) fn finish(&mut self, right: &'a [f32], x: &[f32; PANEL]) {
        let run = RUN.min(self.left);
        let in_run = self.sums[self.done + 1..run].as_flattened_mut();
        add_outer(self.isa, right, x, in_run);
        self.finished[self.done] = (*x, right);
        self.done += 1;
        if self.done == run {
            let later = std::mem::take(&mut self.sums).split_at_mut(run).1;
            let mut factors: [&[f32]; RUN] = [&[]; RUN];
            let mut all = [[0.0; PANEL]; RUN];
            for (at, (x, right)) in self.finished[..run].iter().enumerate() {
                (factors[at], all[at]) = (&right[run - 1 - at..], *x);
            }
            add_outers(self.isa, &factors[..run], &all[..run], later.as_flattened_mut());
            (self.sums, self.left, self.done) = (later, self.left - run, 0);
        }
    }
}

/// Adds the product of `a`, `[k][12]`, and `b`, `[k][32]`, to a tile.
pub(crate) fn add_product(isa: Isa, a: &[f32], b: &[f32], tile: &mut Tile) {
    debug_assert_eq!(a.len() / TILE, b.len() / PANEL);
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(proof) => avx512::add_product(proof, a, b, tile),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(proof) => avx2::add_product(proof, a, b, tile),
        Isa::Portable => portable::add_product(a, b, tile),
    }
}

/// A matrix `P`, `[depth, size]`, as `[size.div_ceil(32)][depth][32]`, zero beyond the last column.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) depth: usize,
}

impl<'a> Panels<'a> {
    /// Some rows of the `panel`-th 32 columns.
    fn rows(self, panel: usize, rows: &Range<usize>) -> &'a [f32] {
        &self.values[(panel * self.depth + rows.start) * PANEL..(panel * self.depth + rows.end) * PANEL]
    }

    /// Twelve columns of some rows, which may begin in one panel and end in the next; zero beyond the last panel.
    fn pack(self, first: usize, rows: &Range<usize>, tile: &mut Vec<f32>) {
        let (panel, from) = (first / PANEL, first % PANEL);
        let len = TILE.min(PANEL - from);
        let next = len < TILE && (panel + 1) * self.depth * PANEL < self.values.len();
        let next = next.then(|| self.rows(panel + 1, rows));
        for (t, own) in self.rows(panel, rows).as_chunks::<PANEL>().0.iter().enumerate() {
            let mut columns = [0.0; TILE];
            columns[..len].copy_from_slice(&own[from..from + len]);
            if let Some(next) = next {
                columns[len..].copy_from_slice(&next[t * PANEL..][..TILE - len]);
            }
            tile.extend_from_slice(&columns);
        }
    }
}

/// Hands `add` every sum of `PᵀP` on and above the diagonal in some columns, and some below it, a few in a row, with the elements
/// of `c` that they belong to. `rows` are those of `P` whose products are summed.
///
/// # Shapes
/// `c` has at least `columns.end` rows of `stride`; `columns` starts with a panel.
pub(crate) fn symmetric_product<T: Send>(
    isa: Isa,
    panels: Panels<'_>,
    rows: Range<usize>,
    columns: Range<usize>,
    (c, stride): (&mut [T], usize),
    add: impl Fn(&mut [T], &[f32]) + Sync,
) {
    let size = columns.end;
    assert!(panels.values.len() >= size.div_ceil(PANEL) * panels.depth * PANEL && rows.end <= panels.depth);
    assert!(c.len() >= size * stride && stride >= size && columns.start.is_multiple_of(PANEL));
    if columns.is_empty() || rows.is_empty() {
        return;
    }
    let strips = c[..size * stride].par_chunks_mut(STRIP * stride).enumerate();
    strips.for_each_init(Vec::new, |packed: &mut Vec<f32>, (strip, c)| {
        let first = strip * STRIP;
        packed.clear();
        (first..(first + STRIP).min(size)).step_by(TILE).for_each(|tile| panels.pack(tile, &rows, packed));
        for panel in (first.max(columns.start) / PANEL)..size.div_ceil(PANEL) {
            let cols = panel * PANEL..((panel + 1) * PANEL).min(size);
            let mut sums = [[0.0; TILE * PANEL]; STRIP / TILE];
            for (block, b) in panels.rows(panel, &rows).chunks(DEPTH * PANEL).enumerate() {
                let (from, len) = (block * DEPTH * TILE, b.len() / PANEL * TILE);
                for (a, sums) in packed.chunks_exact(rows.len() * TILE).zip(&mut sums) {
                    add_product(isa, &a[from..from + len], b, sums);
                }
            }
            for (sums, c) in sums.as_flattened().as_chunks::<PANEL>().0.iter().zip(c.chunks_mut(stride)) {
                add(&mut c[cols.clone()], &sums[..cols.len()]);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn values(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    /// By the definition: every column is finished when all before it have added to its sums.
    #[test]
    fn columns_in_turn_are_finished_as_if_one_by_one_at_every_level() {
        for (columns, later) in [(0, 0), (1, 0), (7, 5), (8, 0), (9, 26), (40, 13)] {
            let size = columns + later;
            let (matrix, before) = (values(size * size, 3), values(size * PANEL, 5));
            let right = |at: usize| &matrix[at * (size + 1) + 1..(at + 1) * size];
            let finish = |at: usize, sums: &mut [f32; PANEL]| sums.map(|sum| sum / (at + 2) as f32 - 0.25);

            let mut expected = before.clone();
            for at in 0..columns {
                let (own, others) = expected[at * PANEL..].split_first_chunk_mut().unwrap();
                let x = finish(at, own);
                for (factor, row) in right(at).iter().zip(others.chunks_mut(PANEL)) {
                    row.iter_mut().zip(x).for_each(|(to, x)| *to = factor.mul_add(x, *to));
                }
            }
            for isa in Isa::all() {
                let mut sums = before.clone();
                let mut in_turn = InTurn::new(isa, columns, &mut sums);
                for at in 0..columns {
                    let x = finish(at, in_turn.sums());
                    in_turn.finish(right(at), &x);
                }
                assert!(sums == expected, "{columns} and {later} later columns");
            }
        }
    }
}
