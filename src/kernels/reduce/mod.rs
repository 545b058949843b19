//! Reductions: extremes, and the first value that is not finite.

mod portable;

use rayon::prelude::*;

use super::level::{Isa, multiversion};
use super::{CHUNK, PARALLEL_MIN};
use crate::error::NonFinite;

/// Smallest and largest value, `(0, 0)` for an empty slice. The values must be finite.
pub(crate) fn min_max(values: &[f32]) -> (f32, f32) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    if values.len() < PARALLEL_MIN {
        return portable::min_max(values);
    }
    values
        .par_chunks(CHUNK)
        .map(portable::min_max)
        .reduce(|| (f32::INFINITY, f32::NEG_INFINITY), |a, b| (a.0.min(b.0), a.1.max(b.1)))
}

multiversion! {
    fn first_non_finite_in(values: &[f32]) -> Option<usize> = portable::first_non_finite
}

/// The first NaN or infinity, if there is one.
pub(crate) fn first_non_finite(values: &[f32]) -> Option<NonFinite> {
    let isa = Isa::current();
    values.par_chunks(CHUNK).enumerate().find_map_first(|(chunk, values)| {
        first_non_finite_in(isa, values).map(|i| NonFinite { index: chunk * CHUNK + i, value: values[i] })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_non_finite_is_the_lowest_index() {
        let mut values = vec![1.0f32; PARALLEL_MIN * 3];
        assert_eq!(first_non_finite(&values), None);
        values[PARALLEL_MIN * 2 + 5] = f32::NAN;
        values[PARALLEL_MIN + 3] = f32::INFINITY;
        let found = first_non_finite(&values).unwrap();
        assert_eq!((found.index, found.value), (PARALLEL_MIN + 3, f32::INFINITY));
    }

    #[test]
    fn min_max_sees_every_position() {
        for n in [1, 7, 100, PARALLEL_MIN, PARALLEL_MIN * 2 + 3] {
            for i in [0, n / 2, n - 1] {
                let mut values = vec![0.5f32; n];
                values[i] = -3.0;
                assert_eq!(min_max(&values), (-3.0, if n == 1 { -3.0 } else { 0.5 }));
            }
        }
    }
}
