//! Codes of a panel in a wider form, for use by several tiles.

use super::panels::{BLOCK, PANEL, Storage};
use super::portable;
use super::tile::Zeros;
use crate::kernels::level::{Isa, multiversion};

#[cfg(target_arch = "x86_64")]
use super::avx512;

/// Writes whole blocks of codes as scaled values, `[column][32 outputs]`.
pub(super) fn decode(
    isa: Isa,
    storage: Storage,
    codes: &[u8],
    zeros: Zeros<'_>,
    scales: &[f32],
    out: &mut [f32],
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(proof) => avx512::decode(proof, storage, codes, zeros, scales, out),
        _ => decode_blocks(isa, storage, codes, zeros, scales, out),
    }
}

multiversion! {
    fn decode_blocks(storage: Storage, codes: &[u8], zeros: Zeros<'_>, scales: &[f32], out: &mut [f32]) = decode_body
}

#[inline(always)]
fn decode_body(storage: Storage, codes: &[u8], zeros: Zeros<'_>, scales: &[f32], out: &mut [f32]) {
    let blocks = codes.chunks_exact(storage.block_bytes());
    for (codes, out) in blocks.zip(out.as_chunks_mut::<{ BLOCK * PANEL }>().0) {
        portable::decode_block(storage, codes, zeros, out);
        if let Some(scales) = scales.get(..PANEL) {
            for out in out.chunks_exact_mut(PANEL) {
                out.iter_mut().zip(scales).for_each(|(x, scale)| *x *= scale);
            }
        }
    }
}

/// Writes blocks of nibbles as blocks of bytes.
pub(super) fn widen_nibbles(isa: Isa, codes: &[u8], out: &mut [u8]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(proof) => avx512::widen_nibbles(proof, codes, out),
        _ => widen_blocks(isa, codes, out),
    }
}

multiversion! {
    fn widen_blocks(codes: &[u8], out: &mut [u8]) = widen_body
}

#[inline(always)]
fn widen_body(codes: &[u8], out: &mut [u8]) {
    for (codes, out) in codes.chunks_exact(PANEL * 4).zip(out.chunks_exact_mut(PANEL * 8)) {
        let (low, high) = out.split_at_mut(PANEL * 4);
        for ((code, low), high) in codes.iter().zip(low).zip(high) {
            (*low, *high) = (code & 15, code >> 4);
        }
    }
}
