/// Bit pattern of infinity: without their sign, finite values lie below and NaN above.
pub(crate) const INFINITY: u32 = 0x7f80_0000;

/// An integer that orders like the value ([`f32::total_cmp`]): extremes of integers do not depend on the order in which
/// they are taken, so that the compiler vectorizes the loop, and NaN and the infinities come out at the ends.
#[inline(always)]
pub(crate) fn key(x: f32) -> i32 {
    unorder(x.to_bits() as i32)
}

/// The value of a [`key`].
#[inline(always)]
pub(crate) fn unkey(key: i32) -> f32 {
    f32::from_bits(unorder(key) as u32)
}

#[inline(always)]
fn unorder(bits: i32) -> i32 {
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

/// Smallest and largest [`key`].
#[inline(always)]
pub(crate) fn extremes(values: &[f32]) -> (i32, i32) {
    values.iter().fold((i32::MAX, i32::MIN), |(low, high), x| (low.min(key(*x)), high.max(key(*x))))
}

/// Whether all values between two keys are finite.
#[inline(always)]
pub(crate) fn all_finite((low, high): (i32, i32)) -> bool {
    low > unorder(f32::NEG_INFINITY.to_bits() as i32) && high < INFINITY as i32
}

/// Largest bit pattern without its sign: the largest magnitude, or what is not below [`INFINITY`].
#[inline(always)]
pub(crate) fn largest(values: &[f32]) -> u32 {
    values.iter().fold(0i32, |largest, x| largest.max((x.to_bits() & 0x7fff_ffff) as i32)) as u32
}

#[inline(always)]
pub(super) fn first_non_finite(values: &[f32]) -> Option<usize> {
    const BLOCK: usize = 256;
    for (block, values) in values.chunks(BLOCK).enumerate() {
        if largest(values) >= INFINITY {
            return values.iter().position(|x| !x.is_finite()).map(|i| block * BLOCK + i);
        }
    }
    None
}
