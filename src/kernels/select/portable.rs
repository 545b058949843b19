/// Passes that a selection over 31-bit keys takes, most significant digit first.
pub(crate) const RADIX_PASSES: usize = 3;

/// Bits and shift of each pass's digit: 11 + 10 + 10 = 31.
const DIGITS: [(u32, u32); RADIX_PASSES] = [(11, 20), (10, 10), (10, 0)];

/// A key that orders like the magnitude of `x`: the bit pattern without its sign.
#[inline(always)]
pub(crate) fn magnitude_bits(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// Number of bits and shift of the digit that pass `pass` looks at.
pub(crate) fn radix_digit(pass: usize) -> (u32, u32) {
    DIGITS[pass]
}

/// Counts, per value of this pass's digit, the magnitudes whose higher digits equal those of `prefix`.
pub(crate) fn radix_histogram(values: &[f32], pass: usize, prefix: u32, counts: &mut [u64]) {
    let (bits, shift) = DIGITS[pass];
    let mask = (1u32 << bits) - 1;
    let high = !(((1u64 << (shift + bits)) - 1) as u32) & 0x7fff_ffff;
    for x in values {
        let key = magnitude_bits(*x);
        if key & high == prefix & high {
            counts[((key >> shift) & mask) as usize] += 1;
        }
    }
}

/// Marks the `n` largest magnitudes of a group of at most 16; among equals the lower index is kept.
pub(crate) fn keep_n_of_m(group: &[f32], n: usize, keep: &mut [bool]) {
    for (i, x) in group.iter().enumerate() {
        let key = magnitude_bits(*x);
        let ahead = group
            .iter()
            .enumerate()
            .filter(|(j, y)| {
                let other = magnitude_bits(**y);
                other > key || (other == key && *j < i)
            })
            .count();
        keep[i] = ahead < n;
    }
}
