//! Codes of 1 to 8 bits in a dense stream of 32-bit words, lowest index in the lowest bits; a code may straddle two
//! words. This is the stream that `compressed-tensors` 0.18 and later writes.

pub(crate) mod portable;

use super::level::{Isa, multiversion};

/// Words that `len` codes of `bits` bits take.
pub fn words_for(len: usize, bits: u8) -> usize {
    (len * usize::from(bits)).div_ceil(32)
}

multiversion! {
    fn pack_in(codes: &[u8], bits: u8, words: &mut [u32]) = portable::pack
}

multiversion! {
    fn unpack_in(words: &[u32], bits: u8, start: usize, out: &mut [u8]) = portable::unpack
}

/// Packs unsigned codes (each below `2^bits`) into `words`, whose unused bits become zero.
///
/// ```
/// use tersor::kernels::pack::{pack, unpack, words_for};
///
/// let mut words = vec![0; words_for(3, 5)];
/// pack(&[1, 2, 31], 5, &mut words);
/// assert_eq!(words, [1 | 2 << 5 | 31 << 10]);
/// let mut codes = [0; 2];
/// unpack(&words, 5, 1, &mut codes);
/// assert_eq!(codes, [2, 31]);
/// ```
///
/// # Panics
/// When `bits` is not 1 to 8, or `words` is shorter than [`words_for`] the codes.
pub fn pack(codes: &[u8], bits: u8, words: &mut [u32]) {
    check(codes.len(), bits, words.len());
    pack_in(Isa::current(), codes, bits, words);
}

/// Reads `out.len()` codes, the first being code number `start` of the stream.
///
/// # Panics
/// When `bits` is not 1 to 8, or `words` ends before the last code.
pub fn unpack(words: &[u32], bits: u8, start: usize, out: &mut [u8]) {
    check(start + out.len(), bits, words.len());
    unpack_in(Isa::current(), words, bits, start, out);
}

fn check(codes: usize, bits: u8, words: usize) {
    assert!((1..=8).contains(&bits), "codes of {bits} bits");
    assert!(words >= words_for(codes, bits), "{codes} codes of {bits} bits do not fit {words} words");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_bit_codes_straddle_words() {
        // ten codes fill 30 bits; the eleventh has two bits in word 0 and one in word 1
        let codes = [1u8, 2, 3, 4, 5, 6, 7, 0, 1, 2, 0b101, 7];
        let mut words = vec![0; words_for(codes.len(), 3)];
        pack(&codes, 3, &mut words);
        let expected = codes.iter().enumerate().fold(0u64, |acc, (i, c)| acc | u64::from(*c) << (3 * i));
        assert_eq!(words, [expected as u32, (expected >> 32) as u32]);
    }

    #[test]
    fn unpack_reads_back_from_any_start() {
        for bits in 1..=8u8 {
            let codes: Vec<u8> = (0..101u32).map(|i| ((i * 37 + 11) % (1 << bits)) as u8).collect();
            let mut words = vec![0; words_for(codes.len(), bits)];
            pack(&codes, bits, &mut words);
            for start in 0..codes.len() {
                let mut out = vec![0; codes.len() - start];
                unpack(&words, bits, start, &mut out);
                assert_eq!(out, codes[start..], "{bits} bits from {start}");
            }
        }
    }

    /// Bit `i` of the stream is bit `i % bits` of code `i / bits`.
    fn by_definition(codes: &[u8], bits: u8, words: &mut [u32]) {
        words.fill(0);
        for i in 0..codes.len() * usize::from(bits) {
            let bit = codes[i / usize::from(bits)] >> (i % usize::from(bits)) & 1;
            words[i / 32] |= u32::from(bit) << (i % 32);
        }
    }

    proptest::proptest! {
        #[test]
        fn every_level_packs_by_definition(
            bits in 1..=8u8,
            seed: u64,
            len in 0..700usize,
            offset in 0..9usize,
            more in 0..4usize,
        ) {
            let mut state = seed | 1;
            let all: Vec<u8> = (0..len + offset)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 40) as u8 & (0xff >> (8 - bits))
                })
                .collect();
            let codes = &all[offset..];
            let mut expected = vec![0; words_for(len, bits) + more];
            by_definition(codes, bits, &mut expected);
            for isa in Isa::all() {
                let mut words = vec![u32::MAX; expected.len()];
                pack_in(isa, codes, bits, &mut words);
                proptest::prop_assert_eq!(&words, &expected, "{:?}", isa);
                let start = offset.min(len);
                let mut out = vec![0xee; len - start];
                unpack_in(isa, &words, bits, start, &mut out);
                proptest::prop_assert_eq!(&out, &codes[start..], "{:?}", isa);
            }
        }
    }
}
