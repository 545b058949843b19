// bits of comparisons are joined without branches, so that the compiler vectorizes
#![allow(clippy::needless_bitwise_bool)]

/// A key that orders like the magnitude of `x`: the bit pattern without its sign.
#[inline(always)]
pub(crate) fn magnitude_bits(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// How some keys lie to a bracket `low..=high`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) below: u64,
    pub(super) at_low: u64,
    /// Zero when both ends are the same.
    pub(super) at_high: u64,
    pub(super) above: u64,
    pub(super) largest: u32,
}

/// Counts the magnitudes at and beyond the ends of a bracket, and appends those strictly inside to `inside`, in any
/// order.
#[inline(always)]
pub(super) fn bracket(values: &[f32], low: u32, high: u32, inside: &mut Vec<u32>) -> Counts {
    const LANES: usize = 16;
    let one = |values: &[f32], counts: &mut Counts, inside: &mut Vec<u32>| {
        for x in values {
            let key = magnitude_bits(*x);
            counts.below += u64::from(key < low);
            counts.at_low += u64::from(key == low);
            counts.at_high += u64::from(key == high && high != low);
            counts.largest = counts.largest.max(key);
            if key > low && key < high {
                inside.push(key);
            }
        }
    };
    let before = inside.len();
    let mut counts = Counts::default();
    let (blocks, tail) = values.as_chunks::<LANES>();
    let (mut below, mut at_low, mut at_high) = ([0u32; LANES], [0u32; LANES], [0u32; LANES]);
    let mut largest = [0u32; LANES];
    for blocks in blocks.chunks(1 << 16) {
        for block in blocks {
            let mut any = 0;
            for lane in 0..LANES {
                let key = magnitude_bits(block[lane]);
                below[lane] += u32::from(key < low);
                at_low[lane] += u32::from(key == low);
                at_high[lane] += u32::from(key == high);
                largest[lane] = largest[lane].max(key);
                any |= u32::from((key > low) & (key < high));
            }
            if any != 0 {
                inside
                    .extend(block.iter().map(|x| magnitude_bits(*x)).filter(|key| *key > low && *key < high));
            }
        }
        for lane in 0..LANES {
            counts.below += u64::from(std::mem::take(&mut below[lane]));
            counts.at_low += u64::from(std::mem::take(&mut at_low[lane]));
            counts.at_high += u64::from(std::mem::take(&mut at_high[lane]));
        }
    }
    counts.largest = largest.into_iter().max().unwrap_or_default();
    if high == low {
        counts.at_high = 0;
    }
    one(tail, &mut counts, inside);
    let counted = counts.below + counts.at_low + counts.at_high + (inside.len() - before) as u64;
    counts.above = values.len() as u64 - counted;
    counts
}

/// Bits of a key that the first histogram counts, and those that the second does.
pub(super) const DIGITS: [u32; 2] = [16, 15];

/// Counts the upper 16 of the 31 bits of every key.
#[inline(always)]
pub(super) fn upper_histogram(values: &[f32], counts: &mut [u64; 1 << DIGITS[0]]) {
    for x in values {
        counts[(magnitude_bits(*x) >> DIGITS[1]) as usize] += 1;
    }
}

/// Counts the lower 15 bits of the keys whose upper bits are `upper`.
#[inline(always)]
pub(super) fn lower_histogram(values: &[f32], upper: u32, counts: &mut [u64; 1 << DIGITS[1]]) {
    for block in values.chunks(32) {
        let of_upper = |x: &f32| magnitude_bits(*x) >> DIGITS[1] == upper;
        if block.iter().fold(false, |any, x| any | of_upper(x)) {
            for x in block.iter().filter(|x| of_upper(x)) {
                counts[(magnitude_bits(*x) & ((1 << DIGITS[1]) - 1)) as usize] += 1;
            }
        }
    }
}

/// Zeroes the magnitudes below `threshold`, and counts those that equal it.
#[inline(always)]
pub(super) fn zero_below(values: &mut [f32], threshold: u32) -> u64 {
    let mut ties = 0u64;
    for block in values.chunks_mut(1 << 14) {
        let mut of_block = 0u32;
        for x in block {
            let key = magnitude_bits(*x);
            *x = if key < threshold { 0.0 } else { *x };
            of_block += u32::from(key == threshold);
        }
        ties += u64::from(of_block);
    }
    ties
}

/// Sets a bit for every magnitude of at least `threshold`, and counts those that equal it.
#[inline(always)]
pub(super) fn mask_from(values: &[f32], threshold: u32, bits: &mut [u8]) -> u64 {
    let mut ties = 0;
    for (byte, values) in bits.iter_mut().zip(values.chunks(8)) {
        *byte = 0;
        for (bit, x) in values.iter().enumerate() {
            let key = magnitude_bits(*x);
            *byte |= u8::from(key >= threshold) << bit;
            ties += u64::from(key == threshold);
        }
    }
    ties
}

/// The bits of the `n` largest magnitudes of a group of at most 16; among equals the lower index is kept.
#[inline(always)]
pub(super) fn keep_n_of_group(group: &[f32], n: usize) -> u16 {
    let mut bits = 0;
    for (i, x) in group.iter().enumerate() {
        let key = magnitude_bits(*x);
        let mut ahead = 0;
        for (j, y) in group.iter().enumerate() {
            let other = magnitude_bits(*y);
            ahead += usize::from((other > key) | ((other == key) & (j < i)));
        }
        bits |= u16::from(ahead < n) << i;
    }
    bits
}

/// Sets the bits of the `n` largest magnitudes of every `m` neighbours; the last group may be shorter.
#[inline(always)]
pub(super) fn mask_n_of_m(values: &[f32], n: usize, m: usize, bits: &mut [u8]) {
    let mut writer = BitWriter::new(bits);
    if m == 4 {
        let (groups, tail) = values.as_chunks::<4>();
        for group in groups {
            writer.push(keep_n_of_group(group, n), 4);
        }
        writer.push(keep_n_of_group(tail, n), tail.len());
    } else {
        for group in values.chunks(m) {
            writer.push(keep_n_of_group(group, n), group.len());
        }
    }
    writer.finish();
}

/// Writes bits into bytes, lowest first.
pub(super) struct BitWriter<'a> {
    bytes: &'a mut [u8],
    next: usize,
    waiting: u64,
    count: usize,
}

impl<'a> BitWriter<'a> {
    #[inline(always)]
    pub(super) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, next: 0, waiting: 0, count: 0 }
    }

    /// Appends the lowest `count` ≤ 16 bits; those above are zero.
    #[inline(always)]
    pub(super) fn push(&mut self, bits: u16, count: usize) {
        self.waiting |= u64::from(bits) << self.count;
        self.count += count;
        if self.count >= 32 {
            self.bytes[self.next..self.next + 4].copy_from_slice(&(self.waiting as u32).to_le_bytes());
            self.next += 4;
            self.waiting >>= 32;
            self.count -= 32;
        }
    }

    #[inline(always)]
    pub(super) fn finish(self) {
        let left = self.count.div_ceil(8);
        self.bytes[self.next..self.next + left].copy_from_slice(&self.waiting.to_le_bytes()[..left]);
    }
}
