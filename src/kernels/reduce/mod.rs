//! Reductions: extremes, and the first value that is not finite.

mod portable;

use rayon::prelude::*;

use super::level::{Isa, multiversion};
use super::{CHUNK, PARALLEL_MIN};
use crate::error::NonFinite;

#[cfg(test)]
use portable::key;
pub(crate) use portable::{INFINITY, all_finite, extremes, largest, unkey};

multiversion! {
    fn first_non_finite_in(values: &[f32]) -> Option<usize> = portable::first_non_finite
}

multiversion! {
    /// Extremes of the [`key`]s.
    pub(crate) fn extremes_in(values: &[f32]) -> (i32, i32) = extremes
}

multiversion! {
    /// Largest bit pattern without its sign.
    pub(crate) fn largest_in(values: &[f32]) -> u32 = largest
}

/// Smallest and largest value in the order of [`f32::total_cmp`] (−0 is below 0), `(0, 0)` for an empty slice. In one
/// pass; split over the threads of the pool where that pays.
///
/// ```
/// use tersor::kernels::reduce::min_max;
///
/// assert_eq!(min_max(&[2.0, -1.0, 3.0]).unwrap(), (-1.0, 3.0));
/// assert_eq!(min_max(&[2.0, f32::NAN, f32::INFINITY]).unwrap_err().index, 1);
/// ```
///
/// # Errors
/// When a value is NaN or infinite: the first of them.
pub fn min_max(values: &[f32]) -> Result<(f32, f32), NonFinite> {
    if values.is_empty() {
        return Ok((0.0, 0.0));
    }
    let isa = Isa::current();
    let (low, high) = if values.len() < PARALLEL_MIN {
        extremes_in(isa, values)
    } else {
        values
            .par_chunks(CHUNK)
            .map(|values| extremes_in(isa, values))
            .reduce(|| (i32::MAX, i32::MIN), |a, b| (a.0.min(b.0), a.1.max(b.1)))
    };
    if all_finite((low, high)) {
        return Ok((unkey(low), unkey(high)));
    }
    first_non_finite(values).map_or(Ok((unkey(low), unkey(high))), Err)
}

/// Largest magnitude, 0 for an empty slice. In one pass; split over the threads of the pool where that pays.
///
/// # Errors
/// When a value is NaN or infinite: the first of them.
pub fn abs_max(values: &[f32]) -> Result<f32, NonFinite> {
    let isa = Isa::current();
    let largest = if values.len() < PARALLEL_MIN {
        largest_in(isa, values)
    } else {
        values.par_chunks(CHUNK).map(|values| largest_in(isa, values)).max().unwrap_or(0)
    };
    if largest < INFINITY {
        return Ok(f32::from_bits(largest));
    }
    first_non_finite(values).map_or(Ok(f32::from_bits(largest)), Err)
}

/// The first NaN or infinity, if there is one.
pub fn first_non_finite(values: &[f32]) -> Option<NonFinite> {
    let isa = Isa::current();
    let found = |at: usize, values: &[f32]| {
        first_non_finite_in(isa, values).map(|i| NonFinite { index: at + i, value: values[i] })
    };
    if values.len() < PARALLEL_MIN {
        return found(0, values);
    }
    values.par_chunks(CHUNK).enumerate().find_map_first(|(chunk, values)| found(chunk * CHUNK, values))
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
        assert_eq!(min_max(&values), Err(found));
        assert_eq!(abs_max(&values), Err(found));
    }

    #[test]
    fn extremes_see_every_position() {
        for n in [1, 7, 100, PARALLEL_MIN, PARALLEL_MIN * 2 + 3] {
            for i in [0, n / 2, n - 1] {
                let mut values = vec![0.5f32; n];
                values[i] = -3.0;
                assert_eq!(min_max(&values), Ok((-3.0, if n == 1 { -3.0 } else { 0.5 })));
                assert_eq!(abs_max(&values), Ok(3.0));
                for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    values[i] = bad;
                    assert_eq!(min_max(&values).unwrap_err().index, i, "{bad} of {n}");
                    assert_eq!(abs_max(&values).unwrap_err().index, i, "{bad} of {n}");
                }
            }
        }
        assert_eq!((min_max(&[]), abs_max(&[])), (Ok((0.0, 0.0)), Ok(0.0)));
    }

    #[test]
    fn keys_order_like_total_cmp_and_turn_back() {
        let values = [
            f32::NEG_INFINITY,
            f32::MIN,
            -1.0,
            -1e-45,
            -0.0,
            0.0,
            1e-45,
            f32::MIN_POSITIVE,
            2.5,
            f32::MAX,
            f32::INFINITY,
        ];
        assert!(values.windows(2).all(|w| key(w[0]) < key(w[1])));
        assert!(values.iter().all(|x| unkey(key(*x)).to_bits() == x.to_bits()));
    }
}
