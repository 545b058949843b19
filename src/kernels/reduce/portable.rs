/// `values` is not empty.
pub(super) fn min_max(values: &[f32]) -> (f32, f32) {
    // Independent lanes let the compiler use vector registers; min and max do not depend on the order.
    const LANES: usize = 16;
    let mut low = [f32::INFINITY; LANES];
    let mut high = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            low[lane] = low[lane].min(chunk[lane]);
            high[lane] = high[lane].max(chunk[lane]);
        }
    }
    let fold = |seed: f32, lanes: &[f32], f: fn(f32, f32) -> f32| {
        lanes.iter().chain(tail).fold(seed, |a, x| f(a, *x))
    };
    (fold(f32::INFINITY, &low, f32::min), fold(f32::NEG_INFINITY, &high, f32::max))
}

#[inline(always)]
pub(super) fn first_non_finite(values: &[f32]) -> Option<usize> {
    // The sum of the magnitudes' exponents would overflow; a plain "any" over a block vectorizes well.
    const BLOCK: usize = 256;
    for (block, values) in values.chunks(BLOCK).enumerate() {
        let any = values.iter().fold(false, |any, x| any | !x.is_finite());
        if any {
            return values.iter().position(|x| !x.is_finite()).map(|i| block * BLOCK + i);
        }
    }
    None
}
