//! A tile of twelve rows of two registers: 24 sums, which hide the latency of what is added to them.

use std::arch::x86_64::{
    _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::{PANEL, TILE, Tile};
use crate::kernels::level::Avx512;

pub(super) fn add_product(_: Avx512, a: &[f32], b: &[f32], tile: &mut Tile) {
    #[target_feature(enable = "avx512f")]
    fn body(a: &[f32], b: &[f32], tile: &mut Tile) {
        let mut sums = [[_mm512_setzero_ps(); 2]; TILE];
        for (a, b) in a.as_chunks::<TILE>().0.iter().zip(b.as_chunks::<PANEL>().0) {
            // SAFETY: 32 values lie there.
            let b = unsafe { [_mm512_loadu_ps(b.as_ptr()), _mm512_loadu_ps(b.as_ptr().add(16))] };
            for (sums, a) in sums.iter_mut().zip(a) {
                let a = _mm512_set1_ps(*a);
                *sums = [_mm512_fmadd_ps(a, b[0], sums[0]), _mm512_fmadd_ps(a, b[1], sums[1])];
            }
        }
        for (to, sums) in tile.as_chunks_mut::<PANEL>().0.iter_mut().zip(sums) {
            // SAFETY: 32 values lie there.
            unsafe {
                let [low, high] = [to.as_mut_ptr(), to.as_mut_ptr().add(16)];
                _mm512_storeu_ps(low, _mm512_add_ps(_mm512_loadu_ps(low), sums[0]));
                _mm512_storeu_ps(high, _mm512_add_ps(_mm512_loadu_ps(high), sums[1]));
            }
        }
    }
    // SAFETY: the token proves that the instructions exist.
    unsafe { body(a, b, tile) }
}
