use std::arch::x86_64::{
    __m512, __mmask16, _mm512_castpd_ps, _mm512_castps_pd, _mm512_loadu_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_unpackhi_pd, _mm512_unpackhi_ps,
    _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};
use std::ops::Range;

use crate::kernels::level::Avx512;
use crate::kernels::update::PANEL;

/// The first so many of sixteen lanes.
fn first_lanes(count: usize) -> __mmask16 {
    (u32::MAX >> (32 - count.min(16) as u32)) as __mmask16
}

pub(super) fn to_lanes(_: Avx512, rows: &[f32], stride: usize, columns: Range<usize>, lanes: &mut [f32]) {
    #[target_feature(enable = "avx512f")]
    fn body(rows: &[f32], stride: usize, columns: Range<usize>, lanes: &mut [f32]) {
        for (half, rows) in rows.chunks(16 * stride).enumerate() {
            let there = first_lanes(rows.len() / stride);
            for (block, lanes) in lanes.chunks_mut(16 * PANEL).enumerate() {
                let first = columns.start + block * 16;
                let mask = first_lanes(columns.end - first);
                let mut values = [_mm512_setzero_ps(); 16];
                for (values, row) in values.iter_mut().zip(rows.chunks_exact(stride)) {
                    // SAFETY: the row has the columns that the mask does not leave out.
                    *values = unsafe { _mm512_maskz_loadu_ps(mask, row[first..].as_ptr()) };
                }
                for (values, lanes) in sixteen(&values).iter().zip(lanes.as_chunks_mut::<PANEL>().0) {
                    // SAFETY: sixteen values lie there.
                    unsafe { _mm512_mask_storeu_ps(lanes[half * 16..].as_mut_ptr(), there, *values) };
                }
            }
        }
    }
    // SAFETY: the token proves that the instructions exist.
    unsafe { body(rows, stride, columns, lanes) }
}

pub(super) fn from_lanes(_: Avx512, lanes: &[f32], rows: &mut [f32], stride: usize, first: usize) {
    #[target_feature(enable = "avx512f")]
    fn body(lanes: &[f32], rows: &mut [f32], stride: usize, first: usize) {
        for (half, rows) in rows.chunks_mut(16 * stride).enumerate() {
            for (block, lanes) in lanes.chunks(16 * PANEL).enumerate() {
                let mask = first_lanes(lanes.len() / PANEL);
                let mut values = [_mm512_setzero_ps(); 16];
                for (values, lanes) in values.iter_mut().zip(lanes.as_chunks::<PANEL>().0) {
                    // SAFETY: sixteen values lie there.
                    *values = unsafe { _mm512_loadu_ps(lanes[half * 16..].as_ptr()) };
                }
                for (values, row) in sixteen(&values).iter().zip(rows.chunks_exact_mut(stride)) {
                    // SAFETY: the row has the columns that the mask does not leave out.
                    unsafe { _mm512_mask_storeu_ps(row[first + block * 16..].as_mut_ptr(), mask, *values) };
                }
            }
        }
    }
    // SAFETY: the token proves that the instructions exist.
    unsafe { body(lanes, rows, stride, first) }
}

/// Sixteen rows of sixteen values, as columns.
#[target_feature(enable = "avx512f")]
#[inline]
pub(in crate::kernels) fn sixteen(rows: &[__m512; 16]) -> [__m512; 16] {
    // pairs of rows, then fours: afterwards register 4i + j holds, in its lane q, column 4q + j of rows 4i to 4i + 3
    let mut pairs = *rows;
    for i in 0..8 {
        let (a, b) = (rows[2 * i], rows[2 * i + 1]);
        (pairs[2 * i], pairs[2 * i + 1]) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    let mut fours = *rows;
    for i in (0..16).step_by(4) {
        let (a, b) = (_mm512_castps_pd(pairs[i]), _mm512_castps_pd(pairs[i + 1]));
        let (c, d) = (_mm512_castps_pd(pairs[i + 2]), _mm512_castps_pd(pairs[i + 3]));
        fours[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        fours[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        fours[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        fours[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    // even and odd lanes, twice
    let mut columns = *rows;
    for j in 0..4 {
        let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
        let (even, odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let (more_even, more_odd) = (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
        columns[j] = _mm512_shuffle_f32x4::<0x88>(even, more_even);
        columns[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd, more_odd);
        columns[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even, more_even);
        columns[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd, more_odd);
    }
    columns
}
