//! Codes of a panel in a wider form, for use by several tiles.

use super::panels::{BLOCK, PANEL, Storage};
use super::portable;
use super::tile::Zeros;
use crate::kernels::level::Isa;

#[cfg(target_arch = "x86_64")]
use super::{avx512, floats_avx2};

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
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(proof) => floats_avx2::decode(proof, storage, codes, zeros, scales, out),
        Isa::Portable => decode_blocks(storage, codes, zeros, scales, out),
    }
}

fn decode_blocks(storage: Storage, codes: &[u8], zeros: Zeros<'_>, scales: &[f32], out: &mut [f32]) {
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
