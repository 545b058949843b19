//! Cross-entropy under true labels and under the teacher's probabilities.

use ndarray::ArrayView2;

use super::rows::{Batch, STUDENT, TEACHER, check_not_empty, check_pair, check_temperature};
use super::softmax::Softmax;
use super::{DistillError, Labels, LossGrad, Reduction};
use crate::kernels::softmax;

/// One weight per class; without any, every class weighs 1.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct ClassWeights(Option<Vec<f32>>);

impl ClassWeights {
    pub(super) fn new(weights: impl Into<Vec<f32>>) -> Self {
        Self(Some(weights.into()))
    }

    pub(super) fn check(&self, classes: usize) -> Result<(), DistillError> {
        let Some(weights) = &self.0 else { return Ok(()) };
        if weights.len() != classes {
            return Err(DistillError::ClassWeightCount { weights: weights.len(), classes });
        }
        match weights.iter().enumerate().find(|(_, weight)| !(weight.is_finite() && **weight >= 0.0)) {
            Some((class, &value)) => Err(DistillError::ClassWeight { class, value }),
            None => Ok(()),
        }
    }

    /// The weight of a class. The weights must have been checked.
    pub(super) fn of(&self, class: usize) -> f64 {
        self.0.as_ref().map_or(1.0, |weights| f64::from(weights[class]))
    }

    /// The sum of the weights of the counted rows' labels.
    pub(super) fn total(&self, batch: &Batch) -> f64 {
        batch.counted_classes().map(|class| self.of(class)).sum()
    }
}

/// Returns `factor` times the cross-entropy of a row, and adds `factor` times its gradient, q − onehot, to
/// `grad`.
pub(super) fn cross_entropy_row(student: &Softmax, class: usize, factor: f64, grad: &mut [f64]) -> f64 {
    softmax::add_scaled(factor, &student.probs, grad);
    grad[class] -= factor;
    -factor * student.log_prob(class)
}

/// Cross-entropy of true labels.
///
/// With `q = softmax(student)`, a row's loss is `−w_y ln q_y` for the label y and its class weight `w_y` (1
/// if none are given). [`Reduction::Mean`] divides by the sum of `w_y` over the counted rows, as PyTorch's
/// `cross_entropy` does; if that sum is 0, the value and the gradient are 0.
///
/// ```
/// use ndarray::array;
/// use tersor::distill::{CrossEntropy, Labels};
///
/// let logits = array![[0.0_f32, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]];
/// let out = CrossEntropy::new().evaluate(logits.view(), Labels::new(&[2, -100]))?;
/// assert!((out.value.total() - 4.0_f64.ln()).abs() < 1e-12);
/// assert_eq!(out.grad.row(0).to_vec(), [0.25, 0.25, -0.75, 0.25]);
/// assert_eq!(out.grad.row(1).to_vec(), [0.0; 4]); // ignored
/// assert_eq!(out.counted, 1);
/// # Ok::<(), tersor::distill::DistillError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CrossEntropy {
    class_weights: ClassWeights,
    reduction: Reduction,
}

impl CrossEntropy {
    /// No class weights, averaged over rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// One weight of at least 0 per class.
    #[must_use]
    pub fn class_weights(self, weights: impl Into<Vec<f32>>) -> Self {
        Self { class_weights: ClassWeights::new(weights), ..self }
    }

    /// How rows are put together.
    #[must_use]
    pub fn reduction(self, reduction: Reduction) -> Self {
        Self { reduction, ..self }
    }

    /// The loss of a batch and its gradient with respect to the logits.
    ///
    /// # Shapes
    ///
    /// `student`: logits `[rows, classes]`; `labels`: one per row, in `0..classes` or ignored.
    ///
    /// # Errors
    ///
    /// Label or weight counts that clash with the logits, an empty batch, a label that is no class, NaN or
    /// infinity in a counted row, a negative or non-finite weight.
    pub fn evaluate(
        &self,
        student: ArrayView2<'_, f32>,
        labels: Labels<'_>,
    ) -> Result<LossGrad, DistillError> {
        check_not_empty(STUDENT, &student)?;
        let (rows, classes) = student.dim();
        self.class_weights.check(classes)?;
        let batch = Batch::new(rows, Some(labels), Some(classes))?;
        let scale = self.reduction.scale(self.class_weights.total(&batch));
        batch.reduce(
            classes,
            self.reduction,
            || Softmax::new(classes),
            |row, q, grad| {
                q.fill((STUDENT, row), student.row(row), 1.0)?;
                let class = labels.values()[row] as usize;
                Ok(cross_entropy_row(q, class, scale * self.class_weights.of(class), grad))
            },
        )
    }
}

/// Cross-entropy of the student under the teacher's softened probabilities.
///
/// With `p = softmax(teacher / T)` and `q = softmax(student / T)`, a row's loss is `−T² Σ_c w_c p_c ln q_c`,
/// with optional class weights w (Hinton, Vinyals & Dean 2015, section 2). Without weights it is T² KL(p ‖ q)
/// plus T² times the teacher's entropy, which the student cannot change, so its gradient is that of the
/// forward KL. [`Reduction::Mean`] divides by the number of counted rows, whatever the weights, as PyTorch's
/// `cross_entropy` does when its targets are probabilities.
///
/// ```
/// use ndarray::array;
/// use tersor::distill::SoftCrossEntropy;
///
/// let (student, teacher) = (array![[0.0_f32, 0.0]], array![[5.0_f32, -5.0]]);
/// let out = SoftCrossEntropy::new(1.0).evaluate(student.view(), teacher.view(), None)?;
/// assert!((out.value.total() - 2.0_f64.ln()).abs() < 1e-12); // q is uniform: any p gives ln 2
/// # Ok::<(), tersor::distill::DistillError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SoftCrossEntropy {
    temperature: f32,
    class_weights: ClassWeights,
    reduction: Reduction,
}

impl SoftCrossEntropy {
    /// At a temperature T > 0, no class weights, averaged over rows.
    pub fn new(temperature: f32) -> Self {
        Self { temperature, class_weights: ClassWeights::default(), reduction: Reduction::Mean }
    }

    /// One weight of at least 0 per class.
    #[must_use]
    pub fn class_weights(self, weights: impl Into<Vec<f32>>) -> Self {
        Self { class_weights: ClassWeights::new(weights), ..self }
    }

    /// How rows are put together.
    #[must_use]
    pub fn reduction(self, reduction: Reduction) -> Self {
        Self { reduction, ..self }
    }

    /// The loss of a batch and its gradient with respect to the student's logits.
    ///
    /// # Shapes
    ///
    /// `student` and `teacher`: logits `[rows, classes]`. `labels`, if given, one per row; only which rows
    /// are ignored matters.
    ///
    /// # Errors
    ///
    /// Shapes, label or weight counts that clash, an empty batch, a label that is no class, NaN or infinity
    /// in a counted row, a negative or non-finite weight, a temperature that is not a positive finite number.
    pub fn evaluate(
        &self,
        student: ArrayView2<'_, f32>,
        teacher: ArrayView2<'_, f32>,
        labels: Option<Labels<'_>>,
    ) -> Result<LossGrad, DistillError> {
        let t = check_temperature(self.temperature)?;
        check_pair(student, teacher)?;
        let (rows, classes) = student.dim();
        self.class_weights.check(classes)?;
        let batch = Batch::new(rows, labels, Some(classes))?;
        let scale = self.reduction.scale(batch.counted as f64);
        let scratch = || (Softmax::new(classes), Softmax::new(classes));
        batch.reduce(classes, self.reduction, scratch, |row, (q, p), grad| {
            q.fill((STUDENT, row), student.row(row), t)?;
            p.fill((TEACHER, row), teacher.row(row), t)?;
            // The weighted targets v = w p need not sum to 1: the gradient is T (q Σv − v).
            let (mut value, mut mass) = (0.0, 0.0);
            for (class, (p, (_, log_q))) in p.probs.iter().zip(q.iter()).enumerate() {
                let target = self.class_weights.of(class) * p;
                value -= target * log_q;
                mass += target;
                grad[class] = -target;
            }
            let factor = scale * t;
            grad.iter_mut().zip(&q.probs).for_each(|(grad, q)| *grad = factor * (q * mass + *grad));
            Ok(factor * t * value)
        })
    }
}
