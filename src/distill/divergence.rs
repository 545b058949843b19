//! Divergences between the softened probabilities of student and teacher, alone or mixed with true labels.

use ndarray::ArrayView2;

use super::cross_entropy::{ClassWeights, cross_entropy_row};
use super::rows::{Batch, STUDENT, TEACHER, check_pair, check_range, check_temperature};
use super::softmax::{Softmax, log_add_exp};
use super::{DistillError, Labels, LossGrad, Reduction};
use crate::kernels::softmax;

/// How the probabilities of the student, q, are compared with those of the teacher, p.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum Divergence {
    /// KL(p ‖ q) = Σ p ln(p/q): the student has to cover everything that the teacher deems possible.
    #[default]
    ForwardKl,
    /// KL(q ‖ p) = Σ q ln(q/p): the student may settle on some of the teacher's modes.
    ReverseKl,
    /// ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q)/2: symmetric, and at most ln 2.
    JensenShannon,
    /// β KL(p ‖ m) + (1 − β) KL(q ‖ m) with m = βp + (1 − β)q and 0 < β < 1 (Agarwal et al. 2024, "On-Policy
    /// Distillation of Language Models", Eq. 1). Divided by β it tends to the forward KL as β → 0; divided by
    /// 1 − β, to the reverse KL as β → 1.
    GeneralizedJensenShannon {
        /// Weight of the teacher in the mixture, strictly between 0 and 1.
        beta: f32,
    },
}

impl Divergence {
    fn check(self) -> Result<(), DistillError> {
        match self {
            Self::GeneralizedJensenShannon { beta } => {
                check_range("beta", beta, "the open interval (0, 1)", |beta| beta > 0.0 && beta < 1.0)
                    .map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Returns the divergence, and overwrites `grad` with `factor` times its gradient with respect to the
    /// student's scaled logits (x/T).
    fn row(self, student: &Softmax, teacher: &Softmax, factor: f64, grad: &mut [f64]) -> f64 {
        let pairs = || student.iter().zip(teacher.iter());
        match self {
            Self::ForwardKl => softmax::forward_kl(student.row(), teacher.row(), factor, grad).max(0.0),
            Self::ReverseKl => {
                // ∂/∂q = ln(q/p) up to a constant, which the softmax cancels.
                let mut value = 0.0;
                for (grad, ((q, log_q), (_, log_p))) in grad.iter_mut().zip(pairs()) {
                    *grad = log_q - log_p;
                    value += q * *grad;
                }
                softmax_backward(student, value, factor, grad);
                value.max(0.0)
            }
            Self::JensenShannon => jensen_shannon(0.5, student, teacher, factor, grad),
            Self::GeneralizedJensenShannon { beta } => {
                jensen_shannon(f64::from(beta), student, teacher, factor, grad)
            }
        }
    }
}

/// The generalized Jensen–Shannon divergence, whose derivative by q is (1 − β) ln(q/m) up to a constant.
fn jensen_shannon(beta: f64, student: &Softmax, teacher: &Softmax, factor: f64, grad: &mut [f64]) -> f64 {
    let (log_beta, log_rest) = (beta.ln(), (-beta).ln_1p());
    let (mut from_teacher, mut from_student) = (0.0, 0.0);
    for (grad, ((q, log_q), (p, log_p))) in grad.iter_mut().zip(student.iter().zip(teacher.iter())) {
        let log_m = log_add_exp(log_p + log_beta, log_q + log_rest);
        *grad = log_q - log_m;
        from_teacher += p * (log_p - log_m);
        from_student += q * *grad;
    }
    softmax_backward(student, from_student, factor * (1.0 - beta), grad);
    (beta * from_teacher + (1.0 - beta) * from_student).max(0.0)
}

/// Turns derivatives by the probabilities, whose mean under q is `mean`, into `factor` times those by the
/// logits.
fn softmax_backward(student: &Softmax, mean: f64, factor: f64, grad: &mut [f64]) {
    grad.iter_mut().zip(&student.probs).for_each(|(grad, q)| *grad = factor * q * (*grad - mean));
}

/// A divergence between the softened class probabilities of teacher and student.
///
/// With `p = softmax(teacher / T)` and `q = softmax(student / T)`, a row's loss is `T² · D(p, q)`. The factor
/// T² keeps the size of the gradient while T changes (Hinton, Vinyals & Dean 2015, "Distilling the Knowledge
/// in a Neural Network", Eq. 1 and the end of section 2). For the forward KL, the gradient of a row is T (q −
/// p).
///
/// There are no class weights here: a weighted KL is not a divergence (it can be negative, and is not
/// smallest where student and teacher agree). [`SoftCrossEntropy`](super::SoftCrossEntropy) has them.
///
/// ```
/// use ndarray::array;
/// use tersor::distill::{Divergence, DivergenceLoss};
///
/// let student = array![[0.0_f32, 0.0]];
/// let teacher = array![[1.0_f32, -1.0]];
/// let out = DivergenceLoss::new(Divergence::ForwardKl, 2.0).evaluate(student.view(), teacher.view(), None)?;
/// // p = σ(1) = 0.73106, q = 1/2: KL = 0.11095, times T² = 4; gradient T (q − p).
/// assert!((out.value.total() - 0.44378).abs() < 1e-5);
/// assert!((out.grad[[0, 0]] + 0.46212).abs() < 1e-5);
/// # Ok::<(), tersor::distill::DistillError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DivergenceLoss {
    divergence: Divergence,
    temperature: f32,
    reduction: Reduction,
}

impl DivergenceLoss {
    /// A divergence at a temperature T > 0, averaged over rows.
    pub fn new(divergence: Divergence, temperature: f32) -> Self {
        Self { divergence, temperature, reduction: Reduction::Mean }
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
    /// Shapes or label counts that clash, an empty batch, a label that is no class, NaN or infinity in a
    /// counted row, a temperature that is not a positive finite number, β outside (0, 1).
    pub fn evaluate(
        &self,
        student: ArrayView2<'_, f32>,
        teacher: ArrayView2<'_, f32>,
        labels: Option<Labels<'_>>,
    ) -> Result<LossGrad, DistillError> {
        let t = check_temperature(self.temperature)?;
        self.divergence.check()?;
        check_pair(student, teacher)?;
        let (rows, classes) = student.dim();
        let batch = Batch::new(rows, labels, Some(classes))?;
        let scale = self.reduction.scale(batch.counted as f64);
        let scratch = || (Softmax::new(classes), Softmax::new(classes));
        batch.reduce(classes, self.reduction, scratch, |row, (q, p), grad| {
            q.fill((STUDENT, row), student.row(row), t)?;
            p.fill((TEACHER, row), teacher.row(row), t)?;
            Ok(scale * t * t * self.divergence.row(q, p, scale * t, grad))
        })
    }
}

/// Knowledge distillation as Hinton et al. (2015, section 2) put it: soft targets from the teacher, mixed
/// with the true labels.
///
/// A row's loss is `α · T² · D(p, q) + (1 − α) · CE`, where D is a [`Divergence`] at temperature T (the
/// forward KL unless set otherwise) and `CE = −w_y ln softmax(student)_y`, at temperature 1, is the
/// cross-entropy of the label y with optional class weights w.
///
/// With [`Reduction::Mean`] each part is averaged on its own: the divergence over the counted rows, the
/// cross-entropy over the sum of their labels' weights, as PyTorch averages a weighted cross-entropy. A row
/// whose label is ignored is left out of both parts. Class weights act on the cross-entropy only.
///
/// See the [module's example](super#example).
#[derive(Debug, Clone, PartialEq)]
pub struct KnowledgeDistillation {
    alpha: f32,
    temperature: f32,
    divergence: Divergence,
    class_weights: ClassWeights,
    reduction: Reduction,
}

impl KnowledgeDistillation {
    /// A share `alpha`, from 0 to 1, of soft targets at a temperature T > 0, the rest of true labels; forward
    /// KL, no class weights, averaged over rows.
    pub fn new(alpha: f32, temperature: f32) -> Self {
        Self {
            alpha,
            temperature,
            divergence: Divergence::ForwardKl,
            class_weights: ClassWeights::default(),
            reduction: Reduction::Mean,
        }
    }

    /// How the softened probabilities are compared.
    #[must_use]
    pub fn divergence(self, divergence: Divergence) -> Self {
        Self { divergence, ..self }
    }

    /// One weight of at least 0 per class, for the cross-entropy part.
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
    /// `student` and `teacher`: logits `[rows, classes]`; `labels`: one per row, in `0..classes` or ignored.
    ///
    /// # Errors
    ///
    /// Shapes, label or weight counts that clash, an empty batch, a label that is no class, NaN or infinity
    /// in a counted row, α outside `[0, 1]`, a negative or non-finite weight, a temperature that is not a
    /// positive finite number, β outside (0, 1).
    pub fn evaluate(
        &self,
        student: ArrayView2<'_, f32>,
        teacher: ArrayView2<'_, f32>,
        labels: Labels<'_>,
    ) -> Result<LossGrad, DistillError> {
        let t = check_temperature(self.temperature)?;
        let alpha = check_range("alpha", self.alpha, "the interval [0, 1]", |a| (0.0..=1.0).contains(&a))?;
        self.divergence.check()?;
        check_pair(student, teacher)?;
        let (rows, classes) = student.dim();
        self.class_weights.check(classes)?;
        let batch = Batch::new(rows, Some(labels), Some(classes))?;
        let soft_scale = alpha * self.reduction.scale(batch.counted as f64);
        let hard_scale = (1.0 - alpha) * self.reduction.scale(self.class_weights.total(&batch));
        let scratch = || (Softmax::new(classes), Softmax::new(classes));
        batch.reduce(classes, self.reduction, scratch, |row, (q, p), grad| {
            q.fill((STUDENT, row), student.row(row), t)?;
            p.fill((TEACHER, row), teacher.row(row), t)?;
            let soft = soft_scale * t * t * self.divergence.row(q, p, soft_scale * t, grad);
            if t != 1.0 {
                q.fill((STUDENT, row), student.row(row), 1.0)?;
            }
            let class = labels.values()[row] as usize;
            Ok(soft + cross_entropy_row(q, class, hard_scale * self.class_weights.of(class), grad))
        })
    }
}
