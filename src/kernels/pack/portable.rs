/// Packs unsigned codes (each below `2^bits`) into `words`, whose unused bits become zero.
pub(crate) fn pack(codes: &[u8], bits: u8, words: &mut [u32]) {
    let bits = u32::from(bits);
    let (mut buffer, mut filled) = (0u64, 0u32);
    let mut words = words.iter_mut();
    for code in codes {
        buffer |= u64::from(*code) << filled;
        filled += bits;
        if filled >= 32 {
            if let Some(word) = words.next() {
                *word = buffer as u32;
            }
            buffer >>= 32;
            filled -= 32;
        }
    }
    for word in words {
        *word = buffer as u32;
        buffer = 0;
    }
}

/// Reads `out.len()` codes, the first being code number `start` of the stream.
pub(crate) fn unpack(words: &[u32], bits: u8, start: usize, out: &mut [u8]) {
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
