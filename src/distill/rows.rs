//! Checks of a batch, and the parallel walk over its rows.

use ndarray::{Array2, ArrayView, ArrayView1, ArrayView2, Dimension};
use rayon::prelude::*;

use super::{DistillError, Labels, LossGrad, LossValue, Reduction};
use crate::kernels::softmax;

pub(super) const STUDENT: &str = "student";
pub(super) const TEACHER: &str = "teacher";

/// The rows of one batch: which of them count, and their classes.
pub(super) struct Batch<'a> {
    rows: usize,
    labels: Option<Labels<'a>>,
    pub(super) counted: usize,
}

impl<'a> Batch<'a> {
    /// Checks that there is one label per row and, where `classes` is given, that each is a class or ignored.
    pub(super) fn new(
        rows: usize,
        labels: Option<Labels<'a>>,
        classes: Option<usize>,
    ) -> Result<Self, DistillError> {
        let Some(given) = labels else { return Ok(Self { rows, labels: None, counted: rows }) };
        let (values, ignore_index) = (given.values(), given.ignore_index());
        if values.len() != rows {
            return Err(DistillError::LabelCount { labels: values.len(), rows });
        }
        let mut counted = 0;
        for (row, &label) in values.iter().enumerate().filter(|&(_, &label)| label != ignore_index) {
            if let Some(classes) = classes
                && usize::try_from(label).map_or(true, |label| label >= classes)
            {
                return Err(DistillError::LabelOutOfRange { row, label, classes, ignore_index });
            }
            counted += 1;
        }
        Ok(Self { rows, labels, counted })
    }

    /// Whether the row takes part.
    pub(super) fn counts(&self, row: usize) -> bool {
        self.labels.is_none_or(|labels| labels.values()[row] != labels.ignore_index())
    }

    /// The class of every counted row; nothing where the batch has no labels.
    pub(super) fn counted_classes(&self) -> impl Iterator<Item = usize> {
        let labels = self.labels;
        let ignored = labels.map(|labels| labels.ignore_index());
        labels
            .into_iter()
            .flat_map(|labels| labels.values())
            .filter(move |&&label| Some(label) != ignored)
            .map(|&label| label as usize)
    }

    /// Runs `row_loss` on every counted row, in parallel, and reduces.
    ///
    /// `row_loss(row, scratch, grad)` returns the row's share of the loss and writes the gradient of that
    /// share into `grad`, which comes zeroed and `width` long. Both must already be scaled for `reduction`.
    /// `scratch` is made once for each run of rows, not for each row. An error is that of the first failing
    /// row.
    pub(super) fn reduce<S>(
        &self,
        width: usize,
        reduction: Reduction,
        scratch: impl Fn() -> S + Sync + Send,
        row_loss: impl Fn(usize, &mut S, &mut [f64]) -> Result<f64, DistillError> + Sync + Send,
    ) -> Result<LossGrad, DistillError> {
        let mut grad = Array2::<f32>::zeros((self.rows, width));
        let flat = grad.as_slice_mut().expect("a new array is contiguous");
        let shares: Vec<Result<f64, DistillError>> = flat
            .par_chunks_mut(width)
            .enumerate()
            .map_init(
                || (scratch(), vec![0.0; width]),
                |(scratch, wide), (row, narrow)| {
                    if !self.counts(row) {
                        return Ok(0.0);
                    }
                    wide.fill(0.0);
                    let share = row_loss(row, scratch, wide)?;
                    softmax::narrow(wide, narrow);
                    Ok(share)
                },
            )
            .collect();
        let shares = shares.into_iter().collect::<Result<Vec<f64>, _>>()?;
        let value = match reduction {
            Reduction::Mean | Reduction::Sum => LossValue::Scalar(shares.iter().sum()),
            Reduction::None => LossValue::PerRow(shares),
        };
        Ok(LossGrad { value, grad, counted: self.counted })
    }
}

/// Rounds to `f32`, saturating at its largest finite numbers.
pub(super) fn to_f32(value: f64) -> f32 {
    value.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32
}

/// Checks that student and teacher have the same shape and at least one element.
pub(super) fn check_pair(student: ArrayView2<f32>, teacher: ArrayView2<f32>) -> Result<(), DistillError> {
    check_not_empty(STUDENT, &student)?;
    check_shapes(STUDENT, student.shape(), TEACHER, teacher.shape(), "both shapes must be equal", |_| true)
}

/// Checks that two shapes have the same length and agree along every axis for which `compared` holds.
pub(super) fn check_shapes(
    left: &'static str,
    left_shape: &[usize],
    right: &'static str,
    right_shape: &[usize],
    rule: &'static str,
    compared: impl Fn(usize) -> bool,
) -> Result<(), DistillError> {
    let mut axes = left_shape.iter().zip(right_shape).enumerate();
    if left_shape.len() == right_shape.len() && axes.all(|(axis, (a, b))| a == b || !compared(axis)) {
        return Ok(());
    }
    let (left_shape, right_shape) = (left_shape.to_vec(), right_shape.to_vec());
    Err(DistillError::ShapeMismatch { left, left_shape, right, right_shape, rule })
}

/// Checks that an input has at least one element.
pub(super) fn check_not_empty<D: Dimension>(
    input: &'static str,
    values: &ArrayView<f32, D>,
) -> Result<(), DistillError> {
    if values.is_empty() {
        return Err(DistillError::Empty { input, shape: values.shape().to_vec() });
    }
    Ok(())
}

/// Checks that every value of an input is finite.
pub(super) fn check_finite<D: Dimension>(
    input: &'static str,
    values: &ArrayView<f32, D>,
) -> Result<(), DistillError> {
    let Some((mut offset, &value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) else {
        return Ok(());
    };
    let mut index = vec![0; values.ndim()];
    for (place, &length) in index.iter_mut().zip(values.shape()).rev() {
        *place = offset % length;
        offset /= length;
    }
    Err(DistillError::NonFinite { input, index, value })
}

/// Checks that every value of one row of an input is finite.
pub(super) fn check_finite_row(
    input: &'static str,
    row: usize,
    values: ArrayView1<f32>,
) -> Result<(), DistillError> {
    if values.as_slice().is_some_and(softmax::is_finite) {
        return Ok(());
    }
    match values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        Some((column, &value)) => Err(DistillError::NonFinite { input, index: vec![row, column], value }),
        None => Ok(()),
    }
}

/// Checks an option against its range; NaN is outside every range.
pub(super) fn check_range(
    name: &'static str,
    value: f32,
    range: &'static str,
    inside: impl Fn(f32) -> bool,
) -> Result<f64, DistillError> {
    if inside(value) { Ok(f64::from(value)) } else { Err(DistillError::OutOfRange { name, value, range }) }
}

/// Checks an option that weights a part of a loss.
pub(super) fn check_factor(name: &'static str, value: f32) -> Result<f64, DistillError> {
    check_range(name, value, "the finite numbers from 0", |v| v.is_finite() && v >= 0.0)
}

/// Checks a temperature.
pub(super) fn check_temperature(value: f32) -> Result<f64, DistillError> {
    if value.is_finite() && value > 0.0 {
        Ok(f64::from(value))
    } else {
        Err(DistillError::Temperature { value })
    }
}
