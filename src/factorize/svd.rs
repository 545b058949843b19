//! The leading singular vectors of a matrix.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::kernels::eigen;
use crate::kernels::gram::gram_of_rows;
use crate::kernels::orthonormal::orthonormalize;
use crate::kernels::product::ColumnTiles;

/// Times that the vectors are filtered, and the highest degree of a filter.
const ROUNDS: usize = 3;
const DEGREE: usize = 4;

/// How much more the largest singular value may gain by a filter than the smallest one of interest, so that `f32` tells the latter
/// from rounding errors.
const GAIN: f64 = 3e3;

/// A share of the largest eigenvalue that is a rounding error.
const NOTHING: f64 = 1e-13;

/// `[rows, cols]`, row-major.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) values: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Matrix<'_> {
    fn transposed(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.values.len()];
        for (col, out) in out.chunks_exact_mut(self.rows.max(1)).enumerate() {
            let column = self.values[col..].iter().step_by(self.cols);
            out.iter_mut().zip(column).for_each(|(to, x)| *to = *x);
        }
        out
    }

    /// Products of all pairs of rows or of all pairs of columns, whichever are fewer.
    fn smaller_gram(&self) -> (Vec<f64>, usize) {
        if self.rows <= self.cols {
            (gram_of_rows(self.values, self.rows), self.rows)
        } else {
            (gram_of_rows(&self.transposed(), self.cols), self.cols)
        }
    }

    /// The squares of all singular values, largest first.
    pub(super) fn squared_singular_values(&self) -> Vec<f64> {
        let (gram, size) = self.smaller_gram();
        let mut values = eigen::eigenvalues(gram, size);
        for value in &mut values {
            *value = value.max(0.0);
        }
        values
    }
}

/// The `count` leading left singular vectors, each of length 1, or zero where the matrix has a lower rank.
///
/// They are eigenvectors of the products of all rows, in `f64`. If few of many are asked for, these are first found in what a block of
/// random vectors becomes (Halko, Martinsson & Tropp, "Finding Structure with Randomness", 2011, algorithm 4.4), with Chebyshev
/// polynomials in place of powers (Zhou & Saad, 2006), which find the edge of a flat spectrum in fewer products. The error of the
/// best approximation is met within a thousandth.
///
/// The result depends on neither the number of threads nor the instruction level.
///
/// # Shapes
/// The matrix is finite; the result is `[count, rows]`.
pub(super) fn left_vectors(matrix: Matrix<'_>, count: usize) -> Vec<f32> {
    let Matrix { values, rows, cols } = matrix;
    let least = rows.min(cols);
    assert!(count <= least, "{count} singular vectors of {rows} × {cols}");
    let largest = values.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    if largest == 0.0 {
        return vec![0.0; count * rows];
    }
    // neither squares nor what the filters make of them leave the range
    let scale = 1.0 / largest.max(f32::MIN_POSITIVE);
    let scaled: Vec<f32> = values.iter().map(|x| x * scale).collect();
    let matrix = Matrix { values: &scaled, rows, cols };
    let some_more = count + count / 8 + 8;
    let mut vectors = if 2 * some_more < least {
        let basis = range(matrix, some_more);
        let of_basis = by_rows(matrix).product(&basis);
        let found = eigenvectors(gram_of_rows(&of_basis, some_more), some_more, count);
        ColumnTiles::new(some_more, rows, |row| &basis[row * rows..][..rows]).product(&found)
    } else if rows <= cols {
        eigenvectors(gram_of_rows(&scaled, rows), rows, count)
    } else {
        let right = eigenvectors(gram_of_rows(&matrix.transposed(), cols), cols, count);
        by_cols(matrix).product(&right)
    };
    orthonormalize(&mut vectors, count);
    vectors
}

fn by_rows(matrix: Matrix<'_>) -> ColumnTiles {
    let Matrix { values, rows, cols } = matrix;
    ColumnTiles::new(rows, cols, |row| &values[row * cols..][..cols])
}

fn by_cols(matrix: Matrix<'_>) -> ColumnTiles {
    ColumnTiles::transposed(matrix.values, matrix.cols, matrix.rows)
}

/// The leading eigenvectors; zeros for those of eigenvalues that are nothing.
fn eigenvectors(gram: Vec<f64>, size: usize, count: usize) -> Vec<f32> {
    let (values, vectors) = eigen::largest(gram, size, count);
    let first = values.first().copied().unwrap_or(0.0);
    let all = vectors.chunks_exact(size.max(1)).zip(values);
    all.flat_map(|(vector, value)| {
        let keep = f64::from(u8::from(value > NOTHING * first));
        vector.iter().map(move |x| (keep * x) as f32)
    })
    .collect()
}

/// Orthonormal vectors, `[count, rows]`, whose span is nearly that of the leading left singular vectors.
fn range(matrix: Matrix<'_>, count: usize) -> Vec<f32> {
    let (by_rows, by_cols) = (by_rows(matrix), by_cols(matrix));
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let start: Vec<f32> = (0..count * matrix.cols).map(|_| random.random_range(-1.0..1.0)).collect();
    let mut basis = by_cols.product(&start);
    orthonormalize(&mut basis, count);
    for _ in 0..ROUNDS {
        let of_basis = by_rows.product(&basis);
        let values = eigen::eigenvalues(gram_of_rows(&of_basis, count), count);
        let (first, last) = (values[0], values[count - 1]);
        if last <= NOTHING * first {
            // the basis has all there is
            break;
        }
        // eigenvalues from 0 to the last become −1 to 1, and larger ones grow
        let (scale, end) = ((2.0 / last) as f32, 2.0 * first / last - 1.0);
        let next = |product: &[f32], now: &[f32], factor: f32, before: Option<&[f32]>| -> Vec<f32> {
            let mut next = by_cols.product(product);
            next.iter_mut().zip(now).for_each(|(to, x)| *to = factor * (scale * *to - x));
            if let Some(before) = before {
                next.iter_mut().zip(before).for_each(|(to, x)| *to -= x);
            }
            next
        };
        let mut filtered = next(&of_basis, &basis, 1.0, None);
        let (mut before, mut gain) = (1.0, end);
        for _ in 1..DEGREE {
            (before, gain) = (gain, 2.0 * end * gain - before);
            if gain > GAIN {
                break;
            }
            let further = next(&by_rows.product(&filtered), &filtered, 2.0, Some(&basis));
            (basis, filtered) = (filtered, further);
        }
        basis = filtered;
        orthonormalize(&mut basis, count);
    }
    basis
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuLevel;

    fn random(seed: u64, len: usize) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..len).map(|_| random.random_range(-1.0..1.0f32)).collect()
    }

    /// `‖A − P·A‖²` of the projection on the span of orthonormal rows.
    fn error(matrix: Matrix<'_>, vectors: &[f32]) -> f64 {
        let Matrix { values, rows, cols } = matrix;
        let all: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
        let kept: f64 = vectors
            .chunks_exact(rows)
            .flat_map(|v| {
                (0..cols).map(|col| {
                    let column = values[col..].iter().step_by(cols);
                    v.iter().zip(column).map(|(v, x)| f64::from(*v) * f64::from(*x)).sum::<f64>().powi(2)
                })
            })
            .sum();
        all - kept
    }

    #[test]
    fn errors_are_those_of_the_best_approximation() {
        // flat, falling and very uneven spectra; by all products, and by random vectors
        for (rows, cols, count, decay) in [
            (40, 70, 30, 0.0),
            (70, 40, 11, 1.0),
            (150, 260, 20, 0.0),
            (260, 150, 20, 0.5),
            (150, 150, 9, 1.5),
        ] {
            let rank = rows.min(cols);
            let left: Vec<f32> = random(1, rows * rank);
            let right: Vec<f32> = (0..rank)
                .flat_map(|k| {
                    let factor = ((k + 1) as f32).powf(-decay);
                    random(2 + k as u64, cols).into_iter().map(move |x| factor * x)
                })
                .collect();
            let values = ColumnTiles::new(rank, cols, |row| &right[row * cols..][..cols]).product(&left);
            let matrix = Matrix { values: &values, rows, cols };
            let squares = matrix.squared_singular_values();
            let best: f64 = squares[count..].iter().sum();
            let found = error(matrix, &left_vectors(matrix, count));
            assert!(found <= best * 1.002, "{rows} × {cols}, {decay}: {found} instead of {best}");
            assert!(found >= best * (1.0 - 1e-4), "{rows} × {cols}, {decay}: {found} below {best}");
        }
    }

    #[test]
    fn a_lower_rank_is_all_there_is() {
        for (rows, cols, count) in [(6, 8, 5), (8, 6, 5), (200, 130, 7), (130, 200, 7)] {
            let (left, right) = (random(1, rows * 2), random(2, 2 * cols));
            let values = ColumnTiles::new(2, cols, |row| &right[row * cols..][..cols]).product(&left);
            let matrix = Matrix { values: &values, rows, cols };
            let vectors = left_vectors(matrix, count);
            let all: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
            assert!(error(matrix, &vectors).abs() < 1e-6 * all, "{rows} × {cols}");
            assert!(vectors[2 * rows..].iter().all(|x| *x == 0.0), "{rows} × {cols}");
            let nothing = vec![0.0; rows * cols];
            let matrix = Matrix { values: &nothing, ..matrix };
            assert!(left_vectors(matrix, count).iter().all(|x| *x == 0.0));
        }
        // the smallest and the largest numbers there are
        for value in [1e-44, f32::MIN_POSITIVE, f32::MAX] {
            let vectors =
                left_vectors(Matrix { values: &[value, 0.0, 0.0, -value / 2.0], rows: 2, cols: 2 }, 1);
            assert!((vectors[0].abs() - 1.0).abs() < 1e-6 && vectors[1].abs() < 1e-6, "{vectors:?}");
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let (rows, cols) = (150, 120);
        let values = random(5, rows * cols);
        let matrix = Matrix { values: &values, rows, cols };
        for count in [10, 70] {
            let expected = left_vectors(matrix, count);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert!(pool.install(|| left_vectors(matrix, count)) == expected, "{:?}", CpuLevel::current());
        }
    }
}
