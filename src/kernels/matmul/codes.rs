//! Weights of small codebooks, of which a product reads the codes, and finds the values on the way.
//!
//! Rows lie as they are multiplied: sixteen words of 32 bits hold the codes of as many columns as fit, sixteen columns in the
//! lowest bits of each word, the next sixteen in those above. Sums are those of [`rows`](super::rows).

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::codes_avx512;
use super::panels::Aligned;
use super::rows::{DOT_BATCH, DOT_ROWS, LANES, Matrix};
use crate::kernels::level::{Isa, multiversion};

/// Bits of a code at most: a codebook fills one register.
pub(crate) const MOST_BITS: u8 = 4;

/// Codes `[rows, cols]`, and the codebook of each run of columns.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CodeRows {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) bits: u8,
    /// `[rows][words of a row]`
    words: Aligned,
    /// `[tiles][16]`: smaller codebooks are repeated, so that bits above those of a code do not matter.
    tables: Aligned,
    /// Which codebook belongs to which weight.
    pub(super) tiles: Tiles,
}

/// Runs of columns, in some rows, that share a codebook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiles {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Tiles from left to right.
    pub(crate) across: usize,
}

impl CodeRows {
    /// Whether there is a product for such codebooks.
    pub(crate) fn fits(bits: u8, tiles: Tiles) -> bool {
        bits <= MOST_BITS && (tiles.across == 1 || tiles.cols.is_multiple_of(LANES))
    }

    /// Arranges the codes that `row` writes of a row. `books` holds `2^bits` values for each tile.
    pub(crate) fn new(
        [rows, cols]: [usize; 2],
        bits: u8,
        tiles: Tiles,
        books: &[f32],
        row: impl Fn(usize, &mut [u8]),
    ) -> Self {
        assert!(Self::fits(bits, tiles), "{bits} bits, {tiles:?}");
        let mut codes = Self {
            rows,
            cols,
            bits,
            words: Aligned::kept(0),
            tables: Aligned::kept_words::<f32>(
                &books
                    .chunks_exact(1 << bits)
                    .flat_map(|book| book.iter().copied().cycle().take(LANES))
                    .collect::<Vec<f32>>(),
            ),
            tiles,
        };
        let words = codes.words_of_row();
        codes.words = Aligned::kept(rows * words * 4);
        let mut of_row = vec![0u8; cols];
        for (i, words) in codes.words.words_mut::<i32>().chunks_exact_mut(words.max(1)).enumerate() {
            row(i, &mut of_row);
            for (column, code) in of_row.iter().enumerate() {
                let group = column / LANES;
                let (at, shift) =
                    (group / per_word(bits) * LANES, group % per_word(bits) * usize::from(bits));
                words[at + column % LANES] |= i32::from(*code) << shift;
            }
        }
        codes
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.words.bytes().len() + self.tables.bytes().len()
    }

    fn words_of_row(&self) -> usize {
        self.cols.div_ceil(LANES).div_ceil(per_word(self.bits)) * LANES
    }

    /// The words of some rows.
    pub(super) fn words(&self, rows: Range<usize>) -> &[i32] {
        let words = self.words_of_row();
        &self.words.words()[rows.start * words..rows.end * words]
    }

    /// The codebooks of a row, from left to right, 16 values each.
    pub(super) fn tables(&self, row: usize) -> &[f32] {
        let first = row / self.tiles.rows * self.tiles.across;
        &self.tables.words()[first * LANES..(first + self.tiles.across) * LANES]
    }
}

/// Sixteens of columns whose codes lie in the same words.
pub(super) const fn per_word(bits: u8) -> usize {
    32 / bits as usize
}

impl Matrix for &CodeRows {
    fn dim(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    fn view<'s>(
        &'s self,
        isa: Isa,
        row: usize,
        column: usize,
        len: usize,
        scratch: &'s mut [f32],
    ) -> &'s [f32] {
        let skipped = column % LANES;
        let values = &mut scratch[..skipped + len];
        decode(
            isa,
            self.words(row..row + 1),
            self.tables(row),
            self.tiles.cols,
            self.bits,
            column / LANES,
            values,
        );
        &scratch[skipped..skipped + len]
    }

    fn fill_panel_in_place(
        &self,
        isa: Isa,
        rows: Range<usize>,
        columns: Range<usize>,
        panel: &mut [f32],
    ) -> bool {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(proof) if columns.start.is_multiple_of(LANES) => {
                codes_avx512::fill_panel(proof, self, rows, columns, panel);
                true
            }
            _ => false,
        }
    }

    fn dots_in_place(
        &self,
        isa: Isa,
        first: usize,
        x: &[f32],
        sums: &mut [[f32; DOT_ROWS]; DOT_BATCH],
    ) -> bool {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(proof) => {
                codes_avx512::dots(proof, self, first, x, sums);
                true
            }
            _ => false,
        }
    }
}

multiversion! {
    /// The values of a row from its sixteen columns `first` on; `run` columns share a codebook.
    fn decode(words: &[i32], tables: &[f32], run: usize, bits: u8, first: usize, values: &mut [f32]) = decode_body
}

#[inline(always)]
fn decode_body(words: &[i32], tables: &[f32], run: usize, bits: u8, first: usize, values: &mut [f32]) {
    let (words, tables) = (words.as_chunks::<LANES>().0, tables.as_chunks::<LANES>().0);
    for (group, values) in (first..).zip(values.chunks_mut(LANES)) {
        let (words, shift) = (&words[group / per_word(bits)], group % per_word(bits) * usize::from(bits));
        let table = &tables[group * LANES / run];
        let mut sixteen = [0.0; LANES];
        for (value, word) in sixteen.iter_mut().zip(words) {
            *value = table[(word.cast_unsigned() >> shift) as usize % LANES];
        }
        values.copy_from_slice(&sixteen[..values.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::product::Epilogue;
    use super::super::rows::{RowMatrix, rows_product};
    use super::*;
    use crate::dtype::FloatType;
    use crate::kernels::view::le_bytes;

    /// Values that make every rounding show.
    fn noise(count: usize, mut seed: u32) -> Vec<f32> {
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn products_are_those_of_the_values_bit_for_bit_at_every_level() {
        for bits in 1..=MOST_BITS {
            for (rows, cols) in [(0, 5), (3, 0), (1, 1), (4, 16), (7, 100), (33, 320), (40, 1300)] {
                let whole = Tiles { rows: 1, cols: cols.max(1), across: 1 };
                let groups = Tiles { cols: 48, across: cols.div_ceil(48).max(1), ..whole };
                let blocks = Tiles { rows: 3, cols: 16, across: cols.div_ceil(16).max(1) };
                let all = Tiles { rows: rows.max(1), ..whole };
                for tiles in [whole, groups, blocks, all] {
                    let entries = 1 << bits;
                    let books = noise(rows.div_ceil(tiles.rows) * tiles.across * entries, 7);
                    let code = |row: usize, col: usize| (row * 31 + col * 7 + col / 5) % entries;
                    let codes = CodeRows::new([rows, cols], bits, tiles, &books, |row, codes| {
                        codes.iter_mut().enumerate().for_each(|(col, c)| *c = code(row, col) as u8);
                    });
                    let value = |i: usize| {
                        let (row, col) = (i / cols, i % cols);
                        books[(row / tiles.rows * tiles.across + col / tiles.cols) * entries + code(row, col)]
                    };
                    let values: Vec<f32> = (0..rows * cols).map(value).collect();
                    let bytes = le_bytes(&values);
                    let dense = RowMatrix::new(FloatType::F32, &bytes, rows, cols);
                    for batch in [0, 1, 2, 3, 4, 5, 14] {
                        let x = noise(batch * cols, 3);
                        let mut expected = vec![f32::NAN; batch * rows];
                        rows_product(Isa::Portable, dense, &x, batch, Epilogue::default(), &mut expected);
                        for isa in Isa::all() {
                            let mut y = vec![f32::NAN; batch * rows];
                            rows_product(isa, &codes, &x, batch, Epilogue::default(), &mut y);
                            let same = y.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                            assert!(same, "{bits} bits, {batch} × {rows} × {cols}, {tiles:?}, {isa:?}");
                        }
                    }
                }
            }
        }
    }
}
