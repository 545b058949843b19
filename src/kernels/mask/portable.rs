use std::mem::MaybeUninit;

/// Zeroes the values whose bit is not set.
#[inline(always)]
pub(super) fn apply(values: &mut [f32], bits: &[u8]) {
    let (blocks, tail) = values.as_chunks_mut::<8>();
    let (bits, last) = bits.split_at(blocks.len());
    for (block, byte) in blocks.iter_mut().zip(bits) {
        for (bit, x) in block.iter_mut().enumerate() {
            let kept = 0u32.wrapping_sub(u32::from(*byte) >> bit & 1);
            *x = f32::from_bits(x.to_bits() & kept);
        }
    }
    for (bit, x) in tail.iter_mut().enumerate() {
        if last[0] >> bit & 1 == 0 {
            *x = 0.0;
        }
    }
}

/// Number of bits that are set.
#[inline(always)]
pub(super) fn count(bits: &[u8]) -> usize {
    let (words, tail) = bits.as_chunks::<8>();
    let words: u64 = words.iter().map(|w| u64::from(u64::from_le_bytes(*w).count_ones())).sum();
    words as usize + tail.iter().map(|b| b.count_ones() as usize).sum::<usize>()
}

/// Calls `f` with the index of every bit that is set, ascending.
#[inline(always)]
pub(super) fn for_each_set(bits: &[u8], mut f: impl FnMut(usize)) {
    let (words, tail) = bits.as_chunks::<8>();
    let mut each = |mut word: u64, first: usize| {
        while word != 0 {
            f(first + word.trailing_zeros() as usize);
            word &= word - 1;
        }
    };
    for (i, word) in words.iter().enumerate() {
        each(u64::from_le_bytes(*word), i * 64);
    }
    for (i, byte) in tail.iter().enumerate() {
        each(u64::from(*byte), words.len() * 64 + i * 8);
    }
}

/// Writes the values whose bit is set, one after the other, and gives their number. `out` has room for them.
#[inline(always)]
pub(super) fn compress<T: Copy>(values: &[T], bits: &[u8], out: &mut [MaybeUninit<T>]) -> usize {
    let mut next = 0;
    for_each_set(bits, |i| {
        out[next].write(values[i]);
        next += 1;
    });
    next
}

/// Puts the next value where a bit is set and zero elsewhere, and gives the number of values used.
#[inline(always)]
pub(super) fn expand<T: Copy + Default>(values: &[T], bits: &[u8], out: &mut [T]) -> usize {
    out.fill(T::default());
    let mut next = 0;
    for_each_set(bits, |i| {
        out[i] = values[next];
        next += 1;
    });
    next
}
