//! Codes of 1 to 8 bits in a dense stream of 32-bit words, lowest index in the lowest bits; a code may straddle two
//! words. This is the stream that `compressed-tensors` 0.18 and later writes.

mod portable;

pub(crate) use portable::{pack, unpack};

/// Words that `len` codes of `bits` bits take.
pub(crate) fn words_for(len: usize, bits: u8) -> usize {
    (len * usize::from(bits)).div_ceil(32)
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
}
