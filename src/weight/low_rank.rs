//! A product of two factors, which stands for a weight or is added to one.

use std::fmt;

use super::form::matrix_shape;
use super::{Coding, CompressedWeight, Form, LayoutKind, WeightError};
use crate::kernels::level::Isa;
use crate::kernels::product::ColumnTiles;

/// What two factors look like: their inner dimension, and how their values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LowRankForm {
    /// Columns of the left factor and rows of the right one.
    pub rank: usize,
    /// How one value of a factor is written.
    pub coding: Coding,
}

impl LowRankForm {
    /// The forms of the factors of a matrix: `[rows, rank]` and `[rank, cols]`, both dense.
    ///
    /// # Errors
    /// When the rank is 0 or larger than the matrix has.
    pub fn factors(self, rows: usize, cols: usize) -> Result<[Form; 2], WeightError> {
        let Self { rank, coding } = self;
        if rank == 0 || rank > rows.min(cols) {
            return Err(WeightError::Rank { rank, rows, cols });
        }
        let form =
            |rows: usize, cols: usize| Form::new(&[rows, cols], LayoutKind::Dense, coding, rows * cols);
        Ok([form(rows, rank)?, form(rank, cols)?])
    }

    /// Exact bytes of both factors of a matrix, whatever its rank.
    pub fn bytes(self, rows: usize, cols: usize) -> u64 {
        let bytes = |rows: usize, cols: usize| {
            let form = Form::new(&[rows, cols], LayoutKind::Dense, self.coding, rows * cols);
            form.map_or(u64::MAX, |form| form.bytes().total())
        };
        bytes(rows, self.rank).saturating_add(bytes(self.rank, cols))
    }
}

impl fmt::Display for LowRankForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} × {}", self.rank, self.coding)
    }
}

/// Two factors `U`, `[rows, rank]`, and `V`, `[rank, cols]`, whose product `U·V` is a weight or is added to one.
///
/// ```
/// use tersor::{CompressedWeight, LowRank, Precision};
///
/// let u = CompressedWeight::from_f32(&[3, 1], Precision::F16, &[1.0, 2.0, 3.0])?;
/// let v = CompressedWeight::from_f32(&[1, 2], Precision::F16, &[1.0, -1.0])?;
/// let weight = CompressedWeight::low_rank(&[3, 2], LowRank::new(u, v)?)?;
/// assert_eq!(weight.dequantize(), ndarray::array![[1.0f32, -1.0], [2.0, -2.0], [3.0, -3.0]]);
/// assert_eq!(weight.form().bytes().total(), 2 * (3 + 2));
/// assert_eq!(weight.matmul(ndarray::array![[1.0f32, 0.0]].view())?, ndarray::array![[1.0, 2.0, 3.0]]);
/// # Ok::<(), tersor::WeightError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    u: Box<CompressedWeight>,
    v: Box<CompressedWeight>,
}

impl LowRank {
    /// Takes two dense matrices of one coding.
    ///
    /// # Errors
    /// When they are none, their inner dimensions differ, or the rank is 0 or larger than that of a `[rows, cols]` matrix can be.
    pub fn new(u: CompressedWeight, v: CompressedWeight) -> Result<Self, WeightError> {
        for factor in [&u, &v] {
            let form = factor.form();
            let is_plain_matrix = form.shape().len() == 2 && form.layout() == LayoutKind::Dense;
            if !is_plain_matrix || form.input().is_some() || form.low_rank().is_some() {
                let reason = format!("a factor is a dense matrix, not {form} of shape {:?}", form.shape());
                return Err(WeightError::Unsupported { reason });
            }
        }
        WeightError::check_len("rows of the right factor", u.cols(), v.rows())?;
        let (form, other) = (u.form().coding(), v.form().coding());
        if form != other {
            let reason = format!("factors are coded alike, not as {form} and {other}");
            return Err(WeightError::Unsupported { reason });
        }
        let factors = Self { u: Box::new(u), v: Box::new(v) };
        factors.form().factors(factors.rows(), factors.cols())?;
        Ok(factors)
    }

    /// The same without the values.
    pub fn form(&self) -> LowRankForm {
        LowRankForm { rank: self.u.cols(), coding: self.u.form().coding() }
    }

    /// The left factor, `[rows, rank]`.
    pub fn u(&self) -> &CompressedWeight {
        &self.u
    }

    /// The right factor, `[rank, cols]`.
    pub fn v(&self) -> &CompressedWeight {
        &self.v
    }

    /// Rows of the product.
    pub fn rows(&self) -> usize {
        self.u.rows()
    }

    /// Columns of the product.
    pub fn cols(&self) -> usize {
        self.v.cols()
    }

    /// Checks that the product has the shape of a weight.
    pub(super) fn check(&self, shape: &[usize]) -> Result<(), WeightError> {
        let [rows, cols] = matrix_shape(shape)?;
        WeightError::check_len("rows of the left factor", rows, self.rows())?;
        WeightError::check_len("columns of the right factor", cols, self.cols())
    }

    /// The right factor, ready to be multiplied with rows of the left one.
    pub(super) fn prepared(&self) -> Prepared<'_> {
        let v = self.v.dequantize();
        let values = v.as_slice().unwrap_or_default();
        let cols = self.cols();
        Prepared { u: &self.u, v: ColumnTiles::new(self.v.rows(), cols, |row| &values[row * cols..][..cols]) }
    }
}

/// See [`LowRank::prepared`].
pub(super) struct Prepared<'a> {
    u: &'a CompressedWeight,
    v: ColumnTiles,
}

impl Prepared<'_> {
    /// Adds some rows of the product, from row `first` on; the same bits at all instruction levels.
    ///
    /// # Shapes
    /// `to` is `[rows, cols]`.
    pub(super) fn add_rows(&self, first: usize, rows: usize, to: &mut [f32]) {
        let mut u = vec![0.0; rows * self.u.cols()];
        self.u.decode_rows(first..first + rows, &mut u);
        let mut product = vec![0.0; to.len()];
        self.v.product_into(Isa::current(), &u, &mut product);
        to.iter_mut().zip(product).for_each(|(to, x)| *to += x);
    }
}
