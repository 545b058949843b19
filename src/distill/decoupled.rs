//! Decoupled knowledge distillation.

use ndarray::ArrayView2;

use super::rows::{Batch, STUDENT, TEACHER, check_factor, check_pair, check_temperature};
use super::softmax::{Softmax, softplus};
use super::{DistillError, Labels, LossGrad, Reduction};

/// Decoupled knowledge distillation (Zhao et al. 2022, "Decoupled Knowledge Distillation", Eq. 7).
///
/// The KL between teacher and student splits into two parts that can then be weighted apart. With all
/// probabilities taken at temperature T and y the label of a row:
///
/// - TCKD, on the target class: KL(b‖b′) of the two-way distributions `b = (p_y, 1 − p_y)` and `b′ = (q_y, 1
///   − q_y)`;
/// - NCKD, on the others: KL(p̂‖q̂), where p̂ and q̂ are the softmax over all classes but y.
///
/// A row's loss is `T² (α · TCKD + β · NCKD)`. With `α = 1` and `β = 1 − p_y` it would be the forward KL.
///
/// The target class is really taken out of p̂ and q̂, and `1 − p_y` is the sum of the other classes. The
/// usual code lowers the target's logit by 1000 instead, and so gives the same numbers as this only while
/// logits stay far below that.
///
/// ```
/// use ndarray::array;
/// use tersor::distill::{DecoupledDistillation, Labels};
///
/// // Student and teacher agree on how probable class 0 is, and differ on the rest: only NCKD is left.
/// let student = array![[2.0_f32, 1.0, 0.0]];
/// let teacher = array![[2.0_f32, 0.0, 1.0]];
/// let loss = DecoupledDistillation::new(1.0).alpha(1.0).beta(8.0);
/// let out = loss.evaluate(student.view(), teacher.view(), Labels::new(&[0]))?;
/// assert!((out.value.total() - 8.0 * 0.5_f64.tanh()).abs() < 1e-12);
/// assert_eq!(out.grad[[0, 0]], 0.0);
/// # Ok::<(), tersor::distill::DistillError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecoupledDistillation {
    temperature: f32,
    alpha: f32,
    beta: f32,
    reduction: Reduction,
}

impl DecoupledDistillation {
    /// At a temperature T > 0 with α = 1 and β = 8 (the defaults of the authors' code), averaged over rows.
    pub fn new(temperature: f32) -> Self {
        Self { temperature, alpha: 1.0, beta: 8.0, reduction: Reduction::Mean }
    }

    /// Weight of the target class's part, at least 0.
    #[must_use]
    pub fn alpha(self, alpha: f32) -> Self {
        Self { alpha, ..self }
    }

    /// Weight of the other classes' part, at least 0.
    #[must_use]
    pub fn beta(self, beta: f32) -> Self {
        Self { beta, ..self }
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
    /// `student` and `teacher`: logits `[rows, classes]` with at least two classes; `labels`: one per row, in
    /// `0..classes` or ignored.
    ///
    /// # Errors
    ///
    /// Shapes or label counts that clash, an empty batch, a single class, a label that is no class, NaN or
    /// infinity in a counted row, a temperature that is not a positive finite number, a negative or
    /// non-finite α or β.
    pub fn evaluate(
        &self,
        student: ArrayView2<'_, f32>,
        teacher: ArrayView2<'_, f32>,
        labels: Labels<'_>,
    ) -> Result<LossGrad, DistillError> {
        let t = check_temperature(self.temperature)?;
        let alpha = check_factor("alpha", self.alpha)?;
        let beta = check_factor("beta", self.beta)?;
        check_pair(student, teacher)?;
        let (rows, classes) = student.dim();
        if classes < 2 {
            return Err(DistillError::TooFew { input: STUDENT, axis: "classes", found: classes, needed: 2 });
        }
        let batch = Batch::new(rows, Some(labels), Some(classes))?;
        let scale = self.reduction.scale(batch.counted as f64);
        let scratch = || (Softmax::new(classes), Softmax::new(classes));
        batch.reduce(classes, self.reduction, scratch, |row, (q, p), grad| {
            let target = labels.values()[row] as usize;
            q.fill_without((STUDENT, row), student.row(row), t, Some(target))?;
            p.fill_without((TEACHER, row), teacher.row(row), t, Some(target))?;
            let (target_value, target_slope) = binary_kl(q.log_prob(target), p.log_prob(target));
            let (target_slope, other_slope) = (scale * t * alpha * target_slope, scale * t * beta);
            let mut other_value = 0.0;
            for (grad, ((q, log_q), (p, log_p))) in grad.iter_mut().zip(q.iter().zip(p.iter())) {
                other_value += p * (log_p - log_q);
                *grad = other_slope * (q - p) - target_slope * q;
            }
            grad[target] = target_slope;
            Ok(scale * t * t * (alpha * target_value + beta * other_value.max(0.0)))
        })
    }
}

/// KL between two-way distributions given by their log-odds, and its derivative by the student's, σ(s) −
/// σ(t).
fn binary_kl(student: f64, teacher: f64) -> (f64, f64) {
    let (yes, no) = ((-softplus(-teacher)).exp(), (-softplus(teacher)).exp());
    let value =
        yes * (softplus(-student) - softplus(-teacher)) + no * (softplus(student) - softplus(teacher));
    // Subtract whichever of the two probabilities is small: near 1 the difference would be rounded away.
    let slope =
        if student > 0.0 { no - (-softplus(student)).exp() } else { (-softplus(-student)).exp() - yes };
    (value.max(0.0), slope)
}
