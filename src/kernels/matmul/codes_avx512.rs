//! Codes of small codebooks in AVX-512: one permutation finds sixteen values.

use std::arch::x86_64::{
    __m512i, __mmask16, _MM_HINT_T0, _mm_prefetch, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_maskz_loadu_ps, _mm512_maskz_permutexvar_ps, _mm512_set1_epi32, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_srli_epi32, _mm512_srlv_epi32, _mm512_storeu_ps,
};
use std::ops::Range;

use super::codes::{CodeRows, per_word};
use super::panels::PANEL;
use super::rows::{DOT_BATCH, DOT_ROWS, LANES};
use super::rows_avx512::sum_lanes;
use crate::kernels::level::Avx512;
use crate::kernels::transpose;

/// Words and codebooks of a row.
type Line<'a> = (&'a [[i32; LANES]], &'a [[f32; LANES]]);

/// Bytes by which the rows are fetched ahead.
const AHEAD: usize = 1024;

/// The products of [`DOT_ROWS`] rows from `first` on with some rows of activations, `sums[row of x][row]`.
///
/// # Shapes
/// `x` is `[1 to DOT_BATCH, cols]`.
pub(super) fn dots(
    _: Avx512,
    codes: &CodeRows,
    first: usize,
    x: &[f32],
    sums: &mut [[f32; DOT_ROWS]; DOT_BATCH],
) {
    let batch = x.len() / codes.cols;
    assert!((1..=DOT_BATCH).contains(&batch) && x.len() == batch * codes.cols);
    macro_rules! by_batch {
        ($bits:literal) => {
            match batch {
                1 => dots_of::<$bits, 1>(codes, first, x, sums),
                2 => dots_of::<$bits, 2>(codes, first, x, sums),
                3 => dots_of::<$bits, 3>(codes, first, x, sums),
                _ => dots_of::<$bits, 4>(codes, first, x, sums),
            }
        };
    }
    // SAFETY: the token proves that the instructions exist; the lengths were checked.
    unsafe {
        match codes.bits {
            1 => by_batch!(1),
            2 => by_batch!(2),
            3 => by_batch!(3),
            _ => by_batch!(4),
        }
    }
}

/// # Safety
/// `x` must hold `BATCH · cols` values.
#[allow(clippy::needless_range_loop)] // of several arrays at once
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn dots_of<const BITS: u32, const BATCH: usize>(
    codes: &CodeRows,
    first: usize,
    x: &[f32],
    sums: &mut [[f32; DOT_ROWS]; DOT_BATCH],
) {
    let (cols, run) = (codes.cols, codes.tiles.cols);
    let words: [&[[i32; LANES]]; DOT_ROWS] =
        std::array::from_fn(|i| codes.words(first + i..first + i + 1).as_chunks::<LANES>().0);
    let tables: [&[[f32; LANES]]; DOT_ROWS] =
        std::array::from_fn(|i| codes.tables(first + i).as_chunks::<LANES>().0);
    let mut all = [[_mm512_setzero_ps(); DOT_ROWS]; BATCH];
    let mut table = [_mm512_setzero_ps(); DOT_ROWS];
    let (mut column, mut tile, mut next) = (0, 0, 0);
    for word in 0..words[0].len() {
        let mut lanes = [_mm512_setzero_si512(); DOT_ROWS];
        for row in 0..DOT_ROWS {
            let at = words[row][word].as_ptr();
            // SAFETY: sixteen words.
            lanes[row] = unsafe { _mm512_loadu_si512(at.cast()) };
            _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD));
        }
        for _ in 0..per_word(BITS as u8).min((cols - column).div_ceil(LANES)) {
            if column == next {
                for row in 0..DOT_ROWS {
                    // SAFETY: sixteen values.
                    table[row] = unsafe { _mm512_loadu_ps(tables[row][tile].as_ptr()) };
                }
                (tile, next) = (tile + 1, next + run);
            }
            let mask = if cols - column >= LANES { __mmask16::MAX } else { (1 << (cols - column)) - 1 };
            let mut of_x = [_mm512_setzero_ps(); BATCH];
            for b in 0..BATCH {
                // SAFETY: the caller's promise; columns beyond the last are masked.
                of_x[b] = unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().add(b * cols + column)) };
            }
            for row in 0..DOT_ROWS {
                let w = _mm512_maskz_permutexvar_ps(mask, lanes[row], table[row]);
                lanes[row] = _mm512_srli_epi32::<BITS>(lanes[row]);
                for b in 0..BATCH {
                    all[b][row] = _mm512_fmadd_ps(w, of_x[b], all[b][row]);
                }
            }
            column += LANES;
        }
    }
    for b in 0..BATCH {
        for row in 0..DOT_ROWS {
            sums[b][row] = sum_lanes(all[b][row]);
        }
    }
}

/// Some columns of up to 32 rows as a piece of a panel, `[column][32 rows]`; rows that do not exist are zero.
///
/// # Shapes
/// `columns` begin with a multiple of 16; `panel` has room for them.
pub(super) fn fill_panel(
    _: Avx512,
    codes: &CodeRows,
    rows: Range<usize>,
    columns: Range<usize>,
    panel: &mut [f32],
) {
    assert!(rows.len() <= PANEL && columns.start.is_multiple_of(LANES) && columns.end <= codes.cols);
    assert!(panel.len() >= columns.len() * PANEL);
    // SAFETY: the token proves that the instructions exist; the lengths were checked.
    unsafe { fill_panel_of(codes, rows, columns, panel) }
}

/// # Safety
/// `panel` must hold 32 values for each of the columns, which begin with a multiple of 16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn fill_panel_of(codes: &CodeRows, rows: Range<usize>, columns: Range<usize>, panel: &mut [f32]) {
    let per_word = per_word(codes.bits);
    for half in 0..2 {
        let rows = rows.clone().skip(half * 16).take(16);
        let of_row = |row: usize| -> Line {
            let (words, tables) = (codes.words(row..row + 1), codes.tables(row));
            (words.as_chunks::<LANES>().0, tables.as_chunks::<LANES>().0)
        };
        let mut lines: [Line; 16] = Default::default();
        lines.iter_mut().zip(rows.clone()).for_each(|(line, row)| *line = of_row(row));
        let lines = &lines[..rows.len()];
        for column in columns.clone().step_by(LANES) {
            let width = (columns.end - column).min(LANES);
            let mask = (u32::MAX >> (32 - width)) as __mmask16;
            let (group, tile) = (column / LANES, column / codes.tiles.cols);
            let (word, shift) = (group / per_word, group % per_word * usize::from(codes.bits));
            let shift: __m512i = _mm512_set1_epi32(shift as i32);
            let mut block = [_mm512_setzero_ps(); 16];
            for ((words, tables), values) in lines.iter().zip(&mut block) {
                // SAFETY: sixteen words, sixteen values.
                let (words, table) = unsafe {
                    (_mm512_loadu_si512(words[word].as_ptr().cast()), _mm512_loadu_ps(tables[tile].as_ptr()))
                };
                *values = _mm512_maskz_permutexvar_ps(mask, _mm512_srlv_epi32(words, shift), table);
            }
            let block = transpose::sixteen(&block);
            for (i, values) in block.iter().enumerate().take(width) {
                let at = (column - columns.start + i) * PANEL + half * 16;
                // SAFETY: the caller's promise.
                unsafe { _mm512_storeu_ps(panel.as_mut_ptr().add(at), *values) };
            }
        }
    }
}
