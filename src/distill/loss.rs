//! What every loss is given besides tensors, and what it gives back.

use ndarray::{Array, Dimension, Ix2};

/// How the losses of the rows become the loss of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reduction {
    /// Sum over the rows divided by the number of counted rows (PyTorch's `batchmean`). Where a loss weights
    /// its rows by class, as [`CrossEntropy`](super::CrossEntropy) does, the divisor is the sum of those
    /// weights.
    #[default]
    Mean,
    /// Sum over the rows.
    Sum,
    /// One value per row; row `i` of the gradient is the gradient of row `i`'s own loss.
    None,
}

impl Reduction {
    /// The factor of each row's loss when the rows' weights add up to `total`; 0 where nothing is counted.
    pub(super) fn scale(self, total: f64) -> f64 {
        match self {
            Self::Mean if total > 0.0 => 1.0 / total,
            Self::Mean => 0.0,
            Self::Sum | Self::None => 1.0,
        }
    }
}

/// The value of a loss.
#[derive(Debug, Clone, PartialEq)]
pub enum LossValue {
    /// One number for the batch, from [`Reduction::Mean`] or [`Reduction::Sum`].
    Scalar(f64),
    /// One number per row, from [`Reduction::None`]; 0 for ignored rows.
    PerRow(Vec<f64>),
}

impl LossValue {
    /// The scalar, or the sum of the rows' values.
    pub fn total(&self) -> f64 {
        match self {
            Self::Scalar(value) => *value,
            Self::PerRow(values) => values.iter().sum(),
        }
    }

    /// The scalar, if the loss was reduced to one.
    pub fn scalar(&self) -> Option<f64> {
        match self {
            Self::Scalar(value) => Some(*value),
            Self::PerRow(_) => None,
        }
    }

    /// The rows' values, if the loss was not reduced.
    pub fn per_row(&self) -> Option<&[f64]> {
        match self {
            Self::Scalar(_) => None,
            Self::PerRow(values) => Some(values),
        }
    }
}

/// A loss and its gradient.
///
/// # Shapes
///
/// `grad` has the shape of the student tensor that the loss was given.
#[derive(Debug, Clone, PartialEq)]
pub struct LossGrad<D: Dimension = Ix2> {
    /// The value of the loss, in double precision.
    pub value: LossValue,
    /// Derivative of the loss with respect to the student: of [`LossValue::Scalar`], or, in each row, of that
    /// row's entry of [`LossValue::PerRow`].
    pub grad: Array<f32, D>,
    /// How many rows took part: all but the ignored ones.
    pub counted: usize,
}

/// The true class of every row of a batch, with one label that means "ignore this row".
///
/// Losses that compare features have no classes; they only look at which rows are ignored.
///
/// # Shapes
///
/// One label per row: a class in `0..classes`, or the ignored label.
///
/// ```
/// use tersor::distill::Labels;
///
/// let labels = Labels::new(&[3, -100, 0]); // -100 marks ignored rows, as in PyTorch
/// assert_eq!(labels.ignore_index(), -100);
/// let padded = Labels::new(&[3, 0, 0]).ignoring(0);
/// assert_eq!(padded.ignore_index(), 0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Labels<'a> {
    values: &'a [i64],
    ignore_index: i64,
}

impl<'a> Labels<'a> {
    /// Labels where −100 marks ignored rows.
    pub fn new(values: &'a [i64]) -> Self {
        Self { values, ignore_index: -100 }
    }

    /// The same labels with another mark for ignored rows, which may also be one of the classes.
    #[must_use]
    pub fn ignoring(self, ignore_index: i64) -> Self {
        Self { ignore_index, ..self }
    }

    /// The label that marks ignored rows.
    pub fn ignore_index(&self) -> i64 {
        self.ignore_index
    }

    /// The labels.
    pub fn values(&self) -> &'a [i64] {
        self.values
    }
}

impl<'a> From<&'a [i64]> for Labels<'a> {
    fn from(values: &'a [i64]) -> Self {
        Self::new(values)
    }
}
