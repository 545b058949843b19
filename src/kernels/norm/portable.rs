/// Sums that run beside each other.
pub(super) const LANES: usize = 16;

/// The sum of squares: element `i` goes to sum `i mod 16`, and these are added in order. A square of an `f32` is exact.
#[inline(always)]
pub(super) fn row(values: &[f32]) -> f64 {
    let mut sums = [0f64; LANES];
    let (blocks, tail) = values.as_chunks::<LANES>();
    for block in blocks {
        for (sum, x) in sums.iter_mut().zip(block) {
            *sum += f64::from(*x) * f64::from(*x);
        }
    }
    for (sum, x) in sums.iter_mut().zip(tail) {
        *sum += f64::from(*x) * f64::from(*x);
    }
    sums.into_iter().fold(0.0, |total, sum| total + sum)
}

/// Adds the squares of a row to the sums of its columns.
#[inline(always)]
pub(super) fn add_to_columns(values: &[f32], sums: &mut [f64]) {
    for (sum, x) in sums.iter_mut().zip(values) {
        *sum += f64::from(*x) * f64::from(*x);
    }
}
