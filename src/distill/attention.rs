//! Attention transfer.

use ndarray::{Array3, ArrayView2, ArrayView3, Axis, Ix3};
use rayon::prelude::*;

use super::rows::{STUDENT, TEACHER, check_finite, check_not_empty, check_shapes, to_f32};
use super::{DistillError, LossGrad, LossValue, Reduction};

/// Attention transfer (Zagoruyko & Komodakis 2017, "Paying More Attention to Attention", Eq. 2 with
/// activation maps).
///
/// The attention map of a sample is the sum over channels of its squared activations, one number per
/// position, divided by its Euclidean norm over the positions. A sample's loss is the mean over positions of
/// the squared difference between the student's map and the teacher's, which is how the authors' code
/// measures it (their Eq. 2 has the norm of the difference, and a factor β/2 that is left to the caller).
///
/// Student and teacher may have different numbers of channels. A map whose norm, taken of the mean over
/// channels instead of the sum, is below [`AttentionTransfer::MIN_NORM`] is taken as all zero, and the
/// gradient of that sample as 0.
///
/// ```
/// use ndarray::Array3;
/// use tersor::distill::AttentionTransfer;
///
/// let student = Array3::from_shape_fn((1, 2, 3), |(_, c, x)| (c + x) as f32);
/// let teacher = student.mapv(|v| -5.0 * v); // the same places attended to
/// let out = AttentionTransfer::new().evaluate(student.view(), teacher.view())?;
/// assert!(out.value.total() < 1e-30);
/// assert_eq!(out.grad.dim(), (1, 2, 3));
/// # Ok::<(), tersor::distill::DistillError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttentionTransfer {
    reduction: Reduction,
}

impl AttentionTransfer {
    /// The norm below which a map counts as all zero.
    pub const MIN_NORM: f64 = 1e-12;

    /// Averaged over samples.
    pub fn new() -> Self {
        Self::default()
    }

    /// How samples are put together.
    #[must_use]
    pub fn reduction(self, reduction: Reduction) -> Self {
        Self { reduction }
    }

    /// The loss of a batch and its gradient with respect to the student's activations.
    ///
    /// # Shapes
    ///
    /// `student`: `[samples, student_channels, positions]`; `teacher`: `[samples, teacher_channels,
    /// positions]`, where the positions are height times width.
    ///
    /// # Errors
    ///
    /// Samples or positions that clash, an empty input, NaN or infinity.
    pub fn evaluate(
        &self,
        student: ArrayView3<'_, f32>,
        teacher: ArrayView3<'_, f32>,
    ) -> Result<LossGrad<Ix3>, DistillError> {
        check_not_empty(STUDENT, &student)?;
        check_not_empty(TEACHER, &teacher)?;
        let rule = "samples (axis 0) and positions (axis 2) must agree";
        check_shapes(STUDENT, student.shape(), TEACHER, teacher.shape(), rule, |axis| axis != 1)?;
        check_finite(STUDENT, &student)?;
        check_finite(TEACHER, &teacher)?;

        let (samples, _, positions) = student.dim();
        let scale = self.reduction.scale(samples as f64);
        let mut grad = Array3::<f32>::zeros(student.dim());
        let work: Vec<_> =
            grad.outer_iter_mut().zip(student.outer_iter()).zip(teacher.outer_iter()).collect();
        let shares: Vec<f64> = work
            .into_par_iter()
            .map(|((mut grad, student), teacher)| {
                let (map, norm) = attention_map(student);
                let (target, _) = attention_map(teacher);
                let difference: Vec<f64> =
                    map.iter().zip(&target).map(|(map, target)| map - target).collect();
                if norm >= Self::MIN_NORM {
                    // The map is a/‖a‖, a = mean over channels of x²: ∂loss/∂a = 2(d − (d·map) map)/(‖a‖
                    // positions).
                    let along: f64 = difference.iter().zip(&map).map(|(d, map)| d * map).sum();
                    let factor = 4.0 * scale / (norm * positions as f64 * student.nrows() as f64);
                    for (mut grad, student) in grad.rows_mut().into_iter().zip(student.rows()) {
                        let slopes = difference.iter().zip(&map).map(|(d, map)| d - along * map);
                        for ((grad, &x), slope) in grad.iter_mut().zip(student).zip(slopes) {
                            *grad = to_f32(factor * slope * f64::from(x));
                        }
                    }
                }
                scale * difference.iter().map(|d| d * d).sum::<f64>() / positions as f64
            })
            .collect();
        let value = match self.reduction {
            Reduction::Mean | Reduction::Sum => LossValue::Scalar(shares.iter().sum()),
            Reduction::None => LossValue::PerRow(shares),
        };
        Ok(LossGrad { value, grad, counted: samples })
    }
}

/// Mean over channels of the squared activations `[channels, positions]`, divided by its norm; and that norm.
fn attention_map(activations: ArrayView2<f32>) -> (Vec<f64>, f64) {
    let channels = activations.len_of(Axis(0)) as f64;
    let mut map = vec![0.0; activations.ncols()];
    for channel in activations.rows() {
        for (map, &x) in map.iter_mut().zip(channel) {
            *map += f64::from(x) * f64::from(x) / channels;
        }
    }
    let norm = map.iter().map(|a| a * a).sum::<f64>().sqrt();
    let inverse = if norm < AttentionTransfer::MIN_NORM { 0.0 } else { 1.0 / norm };
    for a in &mut map {
        *a *= inverse;
    }
    (map, norm)
}
