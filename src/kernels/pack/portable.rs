use std::mem::MaybeUninit;

/// Packs unsigned codes; see [`super::pack`].
#[inline(always)]
pub(super) fn pack(codes: &[u8], bits: u8, words: &mut [u32]) {
    let (codes_len, words_len) = (codes.len(), words.len());
    // SAFETY: initialized memory may be seen as maybe uninitialized, and `pack_uninit` writes only initialized words.
    let (codes, words) = unsafe {
        (
            std::slice::from_raw_parts(codes.as_ptr().cast(), codes_len),
            std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words_len),
        )
    };
    pack_uninit(codes, bits, words);
}

/// [`pack`] into memory that need not be initialized; all of `words` is.
///
/// All `codes` must be initialized.
#[inline(always)]
pub(crate) fn pack_uninit(codes: &[MaybeUninit<u8>], bits: u8, words: &mut [MaybeUninit<u32>]) {
    // SAFETY: the caller's promise.
    let codes: &[u8] = unsafe { std::slice::from_raw_parts(codes.as_ptr().cast(), codes.len()) };
    // constants let the compiler vectorize
    match bits {
        1 => pack_bits::<1>(codes, words),
        2 => pack_bits::<2>(codes, words),
        3 => pack_bits::<3>(codes, words),
        4 => pack_bits::<4>(codes, words),
        5 => pack_bits::<5>(codes, words),
        6 => pack_bits::<6>(codes, words),
        7 => pack_bits::<7>(codes, words),
        _ => pack_bits::<8>(codes, words),
    }
}

/// The lowest `B` bits of each of eight bytes, next to each other.
#[inline(always)]
fn gather<const B: u32>(v: u64) -> u64 {
    let pairs =
        |v: u64, from: u32, width: u32, low: u64| (v & low) | ((v >> (from - width)) & (low << width));
    let ones = |width: u32| (1u64 << width) - 1;
    let v = pairs(v, 8, B, 0x0001_0001_0001_0001 * ones(B));
    let v = pairs(v, 16, 2 * B, 0x0000_0001_0000_0001 * ones(2 * B));
    pairs(v, 32, 4 * B, if 4 * B == 32 { 0xffff_ffff } else { ones(4 * B) })
}

/// The inverse of [`gather`].
#[inline(always)]
fn scatter<const B: u32>(v: u64) -> u64 {
    let pairs = |v: u64, to: u32, width: u32, low: u64| (v & low) | ((v & (low << width)) << (to - width));
    let ones = |width: u32| (1u64 << width) - 1;
    let v = pairs(v, 32, 4 * B, if 4 * B == 32 { 0xffff_ffff } else { ones(4 * B) });
    let v = pairs(v, 16, 2 * B, 0x0000_0001_0000_0001 * ones(2 * B));
    pairs(v, 8, B, 0x0001_0001_0001_0001 * ones(B))
}

#[inline(always)]
fn pack_bits<const B: u32>(codes: &[u8], words: &mut [MaybeUninit<u32>]) {
    let bits = B as usize;
    // 32 codes are `B` words
    let (blocks, tail) = codes.as_chunks::<32>();
    let (whole, rest) = words.split_at_mut(blocks.len() * bits);
    for (codes, words) in blocks.iter().zip(whole.chunks_exact_mut(bits)) {
        if B == 8 {
            for (word, codes) in words.iter_mut().zip(codes.as_chunks::<4>().0) {
                word.write(u32::from_le_bytes(*codes));
            }
        } else if B == 4 {
            for (word, codes) in words.iter_mut().zip(codes.as_chunks::<8>().0) {
                word.write(gather::<B>(u64::from_le_bytes(*codes)) as u32);
            }
        } else {
            // four parts of 8·B bits; a constant number of steps, which the compiler unrolls
            let mut stream = [0u64; 5];
            for (part, codes) in codes.as_chunks::<8>().0.iter().enumerate() {
                let (at, part) = (part * 8 * bits, gather::<B>(u64::from_le_bytes(*codes)));
                stream[at / 64] |= part << (at % 64);
                if at % 64 + 8 * bits > 64 {
                    stream[at / 64 + 1] |= part >> (64 - at % 64);
                }
            }
            for (i, word) in words.iter_mut().enumerate() {
                word.write((stream[i / 2] >> (i % 2 * 32)) as u32);
            }
        }
    }
    let (mut buffer, mut filled) = (0u64, 0u32);
    let mut rest = rest.iter_mut();
    for code in tail {
        buffer |= u64::from(*code) << filled;
        filled += B;
        if filled >= 32 {
            if let Some(word) = rest.next() {
                word.write(buffer as u32);
            }
            buffer >>= 32;
            filled -= 32;
        }
    }
    for word in rest {
        word.write(buffer as u32);
        buffer = 0;
    }
}

/// Reads codes; see [`super::unpack`].
#[inline(always)]
pub(super) fn unpack(words: &[u32], bits: u8, start: usize, out: &mut [u8]) {
    // up to the next block of 32 codes, which starts on a word
    let (head, out) = out.split_at_mut((start.next_multiple_of(32) - start).min(out.len()));
    unpack_each(words, bits, start, head);
    let words = &words[((start + head.len()) * usize::from(bits) / 32).min(words.len())..];
    match bits {
        1 => unpack_bits::<1>(words, out),
        2 => unpack_bits::<2>(words, out),
        3 => unpack_bits::<3>(words, out),
        4 => unpack_bits::<4>(words, out),
        5 => unpack_bits::<5>(words, out),
        6 => unpack_bits::<6>(words, out),
        7 => unpack_bits::<7>(words, out),
        _ => unpack_bits::<8>(words, out),
    }
}

#[inline(always)]
fn unpack_bits<const B: u32>(words: &[u32], out: &mut [u8]) {
    let bits = B as usize;
    let (blocks, tail) = out.as_chunks_mut::<32>();
    let (whole, rest) = words.split_at(blocks.len() * bits);
    for (words, out) in whole.chunks_exact(bits).zip(blocks) {
        if B == 8 {
            for (out, word) in out.as_chunks_mut::<4>().0.iter_mut().zip(words) {
                *out = word.to_le_bytes();
            }
        } else if B == 4 {
            for (out, word) in out.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *out = scatter::<B>(u64::from(*word)).to_le_bytes();
            }
        } else {
            let mut stream = [0u64; 5];
            for (i, word) in words.iter().enumerate() {
                stream[i / 2] |= u64::from(*word) << (i % 2 * 32);
            }
            for (part, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let at = part * 8 * bits;
                let mut codes = stream[at / 64] >> (at % 64);
                if at % 64 + 8 * bits > 64 {
                    codes |= stream[at / 64 + 1] << (64 - at % 64);
                }
                *out = scatter::<B>(codes).to_le_bytes();
            }
        }
    }
    unpack_each(rest, B as u8, 0, tail);
}

#[inline(always)]
fn unpack_each(words: &[u32], bits: u8, start: usize, out: &mut [u8]) {
    let width = usize::from(bits);
    let mask = (1u32 << bits) - 1;
    let mut bit = start * width;
    for out in out {
        let (word, shift) = (bit / 32, bit % 32);
        let mut code = words[word] >> shift;
        if shift + width > 32 {
            code |= words[word + 1] << (32 - shift);
        }
        *out = (code & mask) as u8;
        bit += width;
    }
}
