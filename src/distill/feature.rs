//! Row by row comparison of logits or hidden states: squared error, also through a projection, and cosine.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Zip};
use rayon::prelude::*;

use super::rows::{
    Batch, STUDENT, TEACHER, check_finite, check_finite_row, check_not_empty, check_pair, check_shapes,
    to_f32,
};
use super::{DistillError, Labels, LossGrad, LossValue, Reduction};

const PROJECTION: &str = "projection";

/// Rows that [`MeanSquaredError::evaluate_projected`] multiplies at once. Part of the definition of the sums'
/// order, so it must not depend on the number of threads.
const BLOCK: usize = 64;

/// Mean squared error between logits (Ba & Caruana 2014, "Do Deep Nets Really Need to be Deep?", Eq. 1, up to
/// a factor) or hidden states.
///
/// A row's loss is the mean over its columns of (student − teacher)². So [`Reduction::Mean`] is PyTorch's
/// `mse_loss`, and [`Reduction::Sum`] is the sum over rows of these means, that is PyTorch's sum divided by
/// the number of columns.
///
/// ```
/// use ndarray::array;
/// use tersor::distill::MeanSquaredError;
///
/// let student = array![[1.0_f32, 2.0]];
/// let teacher = array![[1.0_f32, 5.0]];
/// let out = MeanSquaredError::new().evaluate(student.view(), teacher.view(), None)?;
/// assert_eq!(out.value.scalar(), Some(4.5));
/// assert_eq!(out.grad, array![[0.0, -3.0]]);
/// # Ok::<(), tersor::distill::DistillError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MeanSquaredError {
    reduction: Reduction,
}

/// A loss, its gradient with respect to the student's features, and with respect to their projection.
#[derive(Debug, Clone, PartialEq)]
pub struct ProjectedLossGrad {
    /// Value, gradient with respect to the student's features, and number of counted rows.
    pub loss: LossGrad,
    /// Derivative of the loss with respect to the projection, of the projection's shape. With
    /// [`Reduction::None`] it is that of the sum of the rows' losses, because all rows share the projection.
    pub projection_grad: Array2<f32>,
}

impl MeanSquaredError {
    /// Averaged over rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// How rows are put together.
    #[must_use]
    pub fn reduction(self, reduction: Reduction) -> Self {
        Self { reduction }
    }

    /// The loss of a batch and its gradient with respect to the student.
    ///
    /// # Shapes
    ///
    /// `student` and `teacher`: `[rows, columns]`. `labels`, if given, one per row; only which rows are
    /// ignored matters.
    ///
    /// # Errors
    ///
    /// Shapes or label counts that clash, an empty batch, NaN or infinity in a counted row.
    pub fn evaluate(
        &self,
        student: ArrayView2<'_, f32>,
        teacher: ArrayView2<'_, f32>,
        labels: Option<Labels<'_>>,
    ) -> Result<LossGrad, DistillError> {
        check_pair(student, teacher)?;
        let (rows, columns) = student.dim();
        let batch = Batch::new(rows, labels, None)?;
        let factor = self.reduction.scale(batch.counted as f64) / columns as f64;
        batch.reduce(
            columns,
            self.reduction,
            || (),
            |row, (), grad| {
                let (student, teacher) = (student.row(row), teacher.row(row));
                check_finite_row(STUDENT, row, student)?;
                check_finite_row(TEACHER, row, teacher)?;
                let mut squares = 0.0;
                for (grad, (&s, &t)) in grad.iter_mut().zip(student.iter().zip(teacher)) {
                    let difference = f64::from(s) - f64::from(t);
                    squares += difference * difference;
                    *grad = 2.0 * factor * difference;
                }
                Ok(factor * squares)
            },
        )
    }

    /// The loss between the teacher's features and a linear projection of the student's, for a student that
    /// is narrower or wider than its teacher (Romero et al. 2015, "FitNets", Eq. 3, with a linear regressor).
    ///
    /// A row's loss is the mean over the teacher's columns of (W s − t)².
    ///
    /// # Shapes
    ///
    /// `student`: `[rows, student_features]`; `projection` W: `[teacher_features, student_features]`;
    /// `teacher`: `[rows, teacher_features]`. `labels`, if given, one per row; only which rows are ignored
    /// matters.
    ///
    /// # Errors
    ///
    /// Shapes or label counts that clash, an empty input, NaN or infinity in a counted row or in the
    /// projection.
    ///
    /// ```
    /// use ndarray::array;
    /// use tersor::distill::MeanSquaredError;
    ///
    /// let student = array![[1.0_f32, 2.0]];
    /// let projection = array![[1.0_f32, 1.0]];
    /// let teacher = array![[5.0_f32]];
    /// let loss = MeanSquaredError::new();
    /// let out = loss.evaluate_projected(student.view(), projection.view(), teacher.view(), None)?;
    /// assert_eq!(out.loss.value.scalar(), Some(4.0));
    /// assert_eq!(out.loss.grad, array![[-4.0, -4.0]]);
    /// assert_eq!(out.projection_grad, array![[-4.0, -8.0]]);
    /// # Ok::<(), tersor::distill::DistillError>(())
    /// ```
    pub fn evaluate_projected(
        &self,
        student: ArrayView2<'_, f32>,
        projection: ArrayView2<'_, f32>,
        teacher: ArrayView2<'_, f32>,
        labels: Option<Labels<'_>>,
    ) -> Result<ProjectedLossGrad, DistillError> {
        check_not_empty(STUDENT, &student)?;
        check_not_empty(PROJECTION, &projection)?;
        let (shapes, rule) = ([student.shape(), projection.shape(), teacher.shape()], "rows must agree");
        check_shapes(STUDENT, shapes[0], TEACHER, shapes[2], rule, |axis| axis == 0)?;
        let rule = "the projection must be [teacher_features, student_features]";
        check_shapes(STUDENT, shapes[0], PROJECTION, shapes[1], rule, |axis| axis == 1)?;
        if projection.nrows() != teacher.ncols() {
            let (left_shape, right_shape) = (shapes[2].to_vec(), shapes[1].to_vec());
            return Err(DistillError::ShapeMismatch {
                left: TEACHER,
                left_shape,
                right: PROJECTION,
                right_shape,
                rule,
            });
        }
        let (rows, outputs) = teacher.dim();
        let batch = Batch::new(rows, labels, None)?;
        for row in (0..rows).filter(|&row| batch.counts(row)) {
            check_finite_row(STUDENT, row, student.row(row))?;
            check_finite_row(TEACHER, row, teacher.row(row))?;
        }
        check_finite(PROJECTION, &projection)?;

        let factor = self.reduction.scale(batch.counted as f64) / outputs as f64;
        let weight = projection.mapv(f64::from);
        let mut input = Array2::<f64>::zeros(student.dim());
        for (row, (mut wide, narrow)) in input.rows_mut().into_iter().zip(student.rows()).enumerate() {
            if batch.counts(row) {
                wide.zip_mut_with(&narrow, |wide, &narrow| *wide = f64::from(narrow));
            }
        }

        // By blocks of rows: residual = 2 (W s − t) · factor, and through it the student's gradient.
        let mut residual = Array2::<f64>::zeros((rows, outputs));
        let mut grad = Array2::<f32>::zeros(student.dim());
        let blocks: Vec<_> = residual
            .axis_chunks_iter_mut(Axis(0), BLOCK)
            .zip(grad.axis_chunks_iter_mut(Axis(0), BLOCK))
            .zip(input.axis_chunks_iter(Axis(0), BLOCK))
            .enumerate()
            .collect();
        let shares: Vec<Vec<f64>> = blocks
            .into_par_iter()
            .map(|(block, ((mut residual, grad), input))| {
                residual.assign(&input.dot(&weight.t()));
                let mut shares = vec![0.0; residual.nrows()];
                for (offset, (mut residual, share)) in
                    residual.rows_mut().into_iter().zip(&mut shares).enumerate()
                {
                    let row = block * BLOCK + offset;
                    if !batch.counts(row) {
                        residual.fill(0.0);
                        continue;
                    }
                    residual.zip_mut_with(&teacher.row(row), |residual, &teacher| {
                        let difference = *residual - f64::from(teacher);
                        *share += factor * difference * difference;
                        *residual = 2.0 * factor * difference;
                    });
                }
                assign_f32(grad, &residual.dot(&weight));
                shares
            })
            .collect();
        let shares = shares.into_iter().flatten().collect::<Vec<f64>>();

        // By blocks of the projection's rows: its gradient, residualᵀ · input.
        let mut projection_grad = Array2::<f32>::zeros(projection.dim());
        let blocks: Vec<_> = projection_grad
            .axis_chunks_iter_mut(Axis(0), BLOCK)
            .zip(residual.axis_chunks_iter(Axis(1), BLOCK))
            .collect();
        blocks.into_par_iter().for_each(|(grad, residual)| assign_f32(grad, &residual.t().dot(&input)));

        let value = match self.reduction {
            Reduction::Mean | Reduction::Sum => LossValue::Scalar(shares.iter().sum()),
            Reduction::None => LossValue::PerRow(shares),
        };
        Ok(ProjectedLossGrad { loss: LossGrad { value, grad, counted: batch.counted }, projection_grad })
    }
}

fn assign_f32(into: ArrayViewMut2<f32>, from: &Array2<f64>) {
    Zip::from(into).and(from).for_each(|into, &from| *into = to_f32(from));
}

/// Distance of directions: 1 − cos(student, teacher), row by row, of hidden states or logits (the cosine term
/// of Sanh et al. 2019, "DistilBERT", section 2).
///
/// The gradient of a row is −(t̂ − cos · ŝ)/‖s‖ with ŝ and t̂ the vectors divided by their norms. A row in
/// which either norm is below [`CosineDistance::MIN_NORM`] has no direction: its loss is 1 and its gradient
/// 0. (PyTorch divides by the same bound there, which makes the gradient huge.)
///
/// ```
/// use ndarray::array;
/// use tersor::distill::CosineDistance;
///
/// let (student, teacher) = (array![[2.0_f32, 0.0]], array![[0.0_f32, 7.0]]);
/// let out = CosineDistance::new().evaluate(student.view(), teacher.view(), None)?;
/// assert_eq!(out.value.scalar(), Some(1.0)); // at right angles
/// assert_eq!(out.grad, array![[0.0, -0.5]]); // turn towards the teacher
/// # Ok::<(), tersor::distill::DistillError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CosineDistance {
    reduction: Reduction,
}

impl CosineDistance {
    /// The norm below which a row counts as having no direction.
    pub const MIN_NORM: f64 = 1e-8;

    /// Averaged over rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// How rows are put together.
    #[must_use]
    pub fn reduction(self, reduction: Reduction) -> Self {
        Self { reduction }
    }

    /// The loss of a batch and its gradient with respect to the student.
    ///
    /// # Shapes
    ///
    /// `student` and `teacher`: `[rows, columns]`. `labels`, if given, one per row; only which rows are
    /// ignored matters.
    ///
    /// # Errors
    ///
    /// Shapes or label counts that clash, an empty batch, NaN or infinity in a counted row.
    pub fn evaluate(
        &self,
        student: ArrayView2<'_, f32>,
        teacher: ArrayView2<'_, f32>,
        labels: Option<Labels<'_>>,
    ) -> Result<LossGrad, DistillError> {
        check_pair(student, teacher)?;
        let (rows, columns) = student.dim();
        let batch = Batch::new(rows, labels, None)?;
        let scale = self.reduction.scale(batch.counted as f64);
        batch.reduce(
            columns,
            self.reduction,
            || (),
            |row, (), grad| {
                let (student, teacher) = (student.row(row), teacher.row(row));
                check_finite_row(STUDENT, row, student)?;
                check_finite_row(TEACHER, row, teacher)?;
                let (mut ss, mut st, mut tt) = (0.0, 0.0, 0.0);
                for (&s, &t) in student.iter().zip(teacher) {
                    let (s, t) = (f64::from(s), f64::from(t));
                    ss += s * s;
                    st += s * t;
                    tt += t * t;
                }
                let (s_norm, t_norm) = (ss.sqrt(), tt.sqrt());
                if s_norm < Self::MIN_NORM || t_norm < Self::MIN_NORM {
                    return Ok(scale);
                }
                let cosine = (st / (s_norm * t_norm)).clamp(-1.0, 1.0);
                for (grad, (&s, &t)) in grad.iter_mut().zip(student.iter().zip(teacher)) {
                    *grad = scale * (cosine * f64::from(s) / s_norm - f64::from(t) / t_norm) / s_norm;
                }
                Ok(scale * (1.0 - cosine))
            },
        )
    }
}
