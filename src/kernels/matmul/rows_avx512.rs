//! Rows of a matrix where they lie, in AVX-512: values are widened on their way into a dot product or a panel.

use std::arch::x86_64::{
    __m512, __mmask16, _MM_HINT_T0, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehdup_ps, _mm_movehl_ps,
    _mm_prefetch, _mm256_add_ps, _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_loadu_si256,
    _mm256_maskz_loadu_epi16, _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_cvtepu16_epi32,
    _mm512_cvtph_ps, _mm512_extractf32x8_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_maskz_loadu_ps,
    _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps,
};
use std::ops::Range;

use super::panels::PANEL;
use super::rows::{DOT_BATCH, DOT_ROWS};
use crate::dtype::FloatType;
use crate::kernels::level::Avx512;
use crate::kernels::transpose;

const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

/// Bytes by which the rows are fetched ahead: beyond what the processor fetches by itself, which ends with the page.
const AHEAD: usize = 4096;

/// The products of [`DOT_ROWS`] rows that follow one another with some rows of activations, `sums[row of x][row]`; `false` if
/// the rows are of another type.
///
/// # Shapes
/// `rows` is `[DOT_ROWS, cols]`, `x` is `[1 to DOT_BATCH, cols]`.
pub(super) fn dots(
    _: Avx512,
    float: FloatType,
    rows: &[u8],
    x: &[f32],
    cols: usize,
    sums: &mut [[f32; DOT_ROWS]; DOT_BATCH],
) -> bool {
    assert_eq!(rows.len(), DOT_ROWS * cols * float.size());
    let batch = x.len() / cols;
    assert!((1..=DOT_BATCH).contains(&batch) && x.len() == batch * cols);
    macro_rules! by_batch {
        ($kind:ident) => {
            match batch {
                1 => dots_of::<$kind, 1>(rows, x, cols, sums),
                2 => dots_of::<$kind, 2>(rows, x, cols, sums),
                3 => dots_of::<$kind, 3>(rows, x, cols, sums),
                _ => dots_of::<$kind, 4>(rows, x, cols, sums),
            }
        };
    }
    // SAFETY: the token proves that the instructions exist; the lengths were checked.
    unsafe {
        match float {
            FloatType::F32 => by_batch!(F32),
            FloatType::F16 => by_batch!(F16),
            FloatType::Bf16 => by_batch!(BF16),
            _ => return false,
        }
    }
    true
}

/// # Safety
/// `rows` must hold `DOT_ROWS · cols` values of this kind, `x` `BATCH · cols`.
#[allow(clippy::needless_range_loop)] // of two and three arrays at once
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn dots_of<const KIND: u8, const BATCH: usize>(
    rows: &[u8],
    x: &[f32],
    cols: usize,
    sums: &mut [[f32; DOT_ROWS]; DOT_BATCH],
) {
    let size = if KIND == F32 { 4 } else { 2 };
    let mut all = [[_mm512_setzero_ps(); DOT_ROWS]; BATCH];
    // SAFETY: the caller's promise; columns beyond the last are masked.
    unsafe {
        let mut column = 0;
        while column < cols {
            let mask = if cols - column >= 16 { u16::MAX } else { (1 << (cols - column)) - 1 };
            let mut of_x = [_mm512_setzero_ps(); BATCH];
            for b in 0..BATCH {
                of_x[b] = _mm512_maskz_loadu_ps(mask, x.as_ptr().add(b * cols + column));
            }
            for row in 0..DOT_ROWS {
                let at = rows.as_ptr().add((row * cols + column) * size);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                let w = sixteen::<KIND>(at, mask);
                for b in 0..BATCH {
                    all[b][row] = _mm512_fmadd_ps(w, of_x[b], all[b][row]);
                }
            }
            column += 16;
        }
    }
    for b in 0..BATCH {
        for row in 0..DOT_ROWS {
            sums[b][row] = sum_lanes(all[b][row]);
        }
    }
}

/// The sum of all lanes, as [`super::rows::sum_lanes`] adds them.
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
#[inline]
pub(in crate::kernels::matmul) fn sum_lanes(lanes: __m512) -> f32 {
    let eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps::<1>(lanes));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// Some columns of up to 32 rows as a piece of a panel, `[column][32 rows]`; rows that do not exist are zero. `false` if the
/// values are of another type.
///
/// # Shapes
/// `rows` holds 1 to 32 rows of `cols` values; `panel` has room for the columns.
pub(super) fn fill_panel(
    _: Avx512,
    float: FloatType,
    rows: &[u8],
    cols: usize,
    columns: Range<usize>,
    panel: &mut [f32],
) -> bool {
    let count = rows.len() / (cols * float.size());
    assert!((1..=PANEL).contains(&count) && rows.len() == count * cols * float.size());
    assert!(columns.start <= columns.end && columns.end <= cols && panel.len() >= columns.len() * PANEL);
    // SAFETY: the token proves that the instructions exist; the lengths were checked.
    unsafe {
        match float {
            FloatType::F32 => fill_panel_of::<F32>(rows, count, cols, columns, panel),
            FloatType::F16 => fill_panel_of::<F16>(rows, count, cols, columns, panel),
            FloatType::Bf16 => fill_panel_of::<BF16>(rows, count, cols, columns, panel),
            _ => return false,
        }
    }
    true
}

/// # Safety
/// `rows` must hold `count · cols` values of this kind, `panel` 32 for each of the columns.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn fill_panel_of<const KIND: u8>(
    rows: &[u8],
    count: usize,
    cols: usize,
    columns: Range<usize>,
    panel: &mut [f32],
) {
    let size = if KIND == F32 { 4 } else { 2 };
    // SAFETY: the caller's promise; columns beyond the last are masked and not written, rows beyond the last not read.
    unsafe {
        for half in 0..2 {
            for column in columns.clone().step_by(16) {
                let width = (columns.end - column).min(16);
                let mask = (u32::MAX >> (32 - width)) as __mmask16;
                let mut block = [_mm512_setzero_ps(); 16];
                for (i, values) in block.iter_mut().enumerate() {
                    let row = half * 16 + i;
                    if row < count {
                        *values = sixteen::<KIND>(rows.as_ptr().add((row * cols + column) * size), mask);
                    }
                }
                let block = transpose::sixteen(&block);
                let to = panel.as_mut_ptr().add((column - columns.start) * PANEL + half * 16);
                for (i, values) in block.iter().enumerate().take(width) {
                    _mm512_storeu_ps(to.add(i * PANEL), *values);
                }
            }
        }
    }
}

/// Sixteen values; those that the mask leaves out are zero.
///
/// # Safety
/// The others must be readable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
#[inline]
unsafe fn sixteen<const KIND: u8>(at: *const u8, mask: __mmask16) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        if KIND == F32 {
            return if mask == u16::MAX {
                _mm512_loadu_ps(at.cast())
            } else {
                _mm512_maskz_loadu_ps(mask, at.cast())
            };
        }
        let halves = if mask == u16::MAX {
            _mm256_loadu_si256(at.cast())
        } else {
            _mm256_maskz_loadu_epi16(mask, at.cast())
        };
        if KIND == F16 {
            _mm512_cvtph_ps(halves)
        } else {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }
}
