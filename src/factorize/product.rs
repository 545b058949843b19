//! Factors of a matrix, as they are stored.

use rayon::prelude::*;

use super::svd::{Matrix, left_vectors};
use crate::dtype::Precision;
use crate::kernels::product::ColumnTiles;
use crate::kernels::reduce;
use crate::layer::{Compressed, Layer, Method, MethodError};
use crate::quantize::factor::Factor;
use crate::quantize::{Damping, FloatCast, RoundToNearest, ValueImportance};
use crate::weight::{Bits, Coding, LowRank};

/// How the values of factors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FactorType {
    /// As floats of the model's precision.
    #[default]
    Model,
    /// As floats of this precision.
    Float(Precision),
    /// As symmetric integers with a scale for every row of each factor.
    Int(Bits),
}

/// What the name of a method says of the importance of its weights.
pub(super) fn weighted(importance: ValueImportance) -> &'static str {
    match importance {
        ValueImportance::Equal => "",
        ValueImportance::Inputs => "weighted ",
    }
}

impl FactorType {
    pub(super) fn coding(self, before: Coding) -> Coding {
        match self {
            Self::Model => before,
            Self::Float(precision) => FloatCast::to(precision).coding(before),
            Self::Int(bits) => RoundToNearest::int(bits).coding(before),
        }
    }

    fn store(
        self,
        shape: [usize; 2],
        values: &[f32],
        precision: Precision,
    ) -> Result<Compressed, MethodError> {
        let layer = Layer::new(&shape, values, precision);
        match self {
            Self::Model => FloatCast::to(precision).compress(&layer),
            Self::Float(precision) => FloatCast::to(precision).compress(&layer),
            Self::Int(bits) => RoundToNearest::int(bits).compress(&layer),
        }
    }
}

/// What the error of a factorization is weighted by: the triangular factor of a Hessian.
pub(super) struct Weighting {
    /// `[size, size]`, zero below the diagonal, and where the input was always zero.
    upper: Vec<f32>,
    pub(super) damping: f64,
    pub(super) notes: Vec<String>,
}

impl Weighting {
    pub(super) fn new(hessian: &[f32], size: usize) -> Result<Self, MethodError> {
        let mut factor = Factor::new(hessian, size, false, Damping::default())?;
        let (damping, notes) = (factor.damping, factor.note().into_iter().collect());
        let diagonal: Vec<f32> = (0..size).map(|at| factor.cost(at)).collect();
        let mut upper = std::mem::take(&mut factor.upper);
        for ((at, row), own) in upper.chunks_exact_mut(size.max(1)).enumerate().zip(diagonal) {
            row[..at].fill(0.0);
            row[at] = own;
        }
        Ok(Self { upper, damping, notes })
    }
}

/// Bytes that [`factors`] takes.
pub(super) fn scratch_bytes(rows: usize, cols: usize, weighted: bool) -> u64 {
    let (values, least) = (rows * cols, rows.min(cols));
    let triangle = if weighted { 2 * cols * cols } else { 0 };
    // the product with the triangle, arranged both ways; products of all pairs, and vectors and rotations made of them
    (size_of::<f32>() * (4 * values + triangle) + 6 * size_of::<f64>() * least * least) as u64
}

/// The best factors of a rank: of the error `‖(W − U·V)·L‖`, where `L·Lᵀ` is the Hessian of the layer's output, or of
/// `‖W − U·V‖`.
///
/// With `U` the leading left singular vectors of `W·L`, the best `U·V` is `U·(Uᵀ·W)`: `L` need not be inverted (its inverse in Wang
/// et al., "SVD-LLM", 2024, cancels). Every row of `V` and the column of `U` that it is multiplied with are of the same length.
///
/// # Shapes
/// `values` is `[rows, cols]`, finite, and `rank` is at most the smaller of both.
pub(super) fn factors(
    values: &[f32],
    [rows, cols]: [usize; 2],
    rank: usize,
    how: FactorType,
    precision: Precision,
    weighting: Option<&Weighting>,
) -> Result<LowRank, MethodError> {
    let weighted;
    let seen = match weighting {
        None => values,
        Some(Weighting { upper, .. }) => {
            weighted = ColumnTiles::new(cols, cols, |row| &upper[row * cols..][..cols]).product(values);
            // what overflows is no weight that a network could have
            reduce::first_non_finite(&weighted).map_or(Ok(()), |found| Err(MethodError::NonFinite(found)))?;
            &weighted
        }
    };
    let mut left = left_vectors(Matrix { values: seen, rows, cols }, rank);
    let mut right = ColumnTiles::new(rows, cols, |row| &values[row * cols..][..cols]).product(&left);
    let pairs = left.par_chunks_exact_mut(rows.max(1)).zip(right.par_chunks_exact_mut(cols.max(1)));
    pairs.for_each(|(left, right)| {
        let length = right.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
        let root = length.sqrt() as f32;
        if root > 0.0 {
            for x in left {
                *x *= root;
            }
            for x in right {
                *x /= root;
            }
        }
    });
    let mut u = vec![0.0; rows * rank];
    for (row, u) in u.chunks_exact_mut(rank.max(1)).enumerate() {
        u.iter_mut().zip(left[row..].iter().step_by(rows)).for_each(|(to, x)| *to = *x);
    }
    let u = how.store([rows, rank], &u, precision)?.weight;
    let v = how.store([rank, cols], &right, precision)?.weight;
    Ok(LowRank::new(u, v)?)
}
