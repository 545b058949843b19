//! The values of a vector are an array with one index per factor of the Kronecker product; `inner` is how far apart
//! neighbours along a factor's index stand.

use super::{LANES, Lane};

/// Along an index of a factor `[[1, 1], [1, −1]]`.
#[inline(always)]
pub(super) fn double(x: &mut [Lane], inner: usize) {
    for pair in x.chunks_exact_mut(2 * inner) {
        let (a, b) = pair.split_at_mut(inner);
        for (a, b) in a.as_flattened_mut().iter_mut().zip(b.as_flattened_mut()) {
            (*a, *b) = (*a + *b, *a - *b);
        }
    }
}

/// Along two such indices in one pass, with the sums of one pass after the other.
#[inline(always)]
pub(super) fn double_twice(x: &mut [Lane], inner: usize) {
    for four in x.chunks_exact_mut(4 * inner) {
        let (ab, cd) = four.split_at_mut(2 * inner);
        let (a, b) = ab.split_at_mut(inner);
        let (c, d) = cd.split_at_mut(inner);
        let ab = a.as_flattened_mut().iter_mut().zip(b.as_flattened_mut());
        let cd = c.as_flattened_mut().iter_mut().zip(d.as_flattened_mut());
        for ((a, b), (c, d)) in ab.zip(cd) {
            let (ab, cd) = ([*a + *b, *a - *b], [*c + *d, *c - *d]);
            (*a, *b, *c, *d) = (ab[0] + cd[0], ab[1] + cd[1], ab[0] - cd[0], ab[1] - cd[1]);
        }
    }
}

/// Along an index of a factor `[size, size]`: `y[j] = Σ_k x[k]·signs[k, j]`, summed in the order of `k`.
#[inline(always)]
pub(super) fn dense(x: &mut [Lane], signs: &[f64], size: usize, inner: usize, old: &mut Vec<Lane>) {
    for outer in x.chunks_exact_mut(size * inner) {
        for first in 0..inner {
            old.clear();
            old.extend(outer.iter().skip(first).step_by(inner).copied());
            for (j, out) in outer.iter_mut().skip(first).step_by(inner).enumerate() {
                let mut sum = [0.0; LANES];
                for (k, x) in old.iter().enumerate() {
                    let sign = signs[k * size + j];
                    for (sum, x) in sum.iter_mut().zip(x) {
                        *sum += sign * x;
                    }
                }
                *out = sum;
            }
        }
    }
}
