//! Relational knowledge distillation.

use ndarray::{Array2, ArrayView2, Axis, Zip};
use rayon::prelude::*;

use super::rows::{STUDENT, TEACHER, check_factor, check_finite, check_not_empty, check_shapes, to_f32};
use super::{DistillError, LossGrad, LossValue};

/// How many anchors' gradients are held at once. Part of the definition of the sums' order, so it must not
/// depend on the number of threads.
const ANCHORS: usize = 16;

/// Relational knowledge distillation (Park et al. 2019, "Relational Knowledge Distillation", sections 3.2.1
/// and 3.2.2).
///
/// It compares how the samples of a batch lie to each other, so the student's embeddings may have another
/// width than the teacher's. With h the Huber loss of width 1 (u²/2 up to |u| = 1, |u| − ½ beyond):
///
/// - distances: the mean over all pairs (i, j) of `h(ψ_S − ψ_T)`, where `ψ = ‖e_i − e_j‖ / μ` and μ is the
///   mean of the nonzero distances in the batch;
/// - angles: the mean over all triplets (i, j, k) of `h(ψ_S − ψ_T)`, where ψ is the cosine of the angle at
///   `e_i` between `e_j` and `e_k`.
///
/// The loss is `λ_D` times the first plus `λ_A` times the second. The means run over all n² pairs and n³
/// triplets, those with equal indices included (they add 0), as in the authors' code. Samples that coincide
/// are at distance 0, take no part in μ, span no angle (cosine 0) and exert no force on each other.
///
/// There is one value for the batch: a sample has no loss of its own here, so there is no
/// [`Reduction`](super::Reduction) to choose. The angles cost n³ times the width; set their weight to 0 for
/// large batches.
///
/// ```
/// use ndarray::array;
/// use tersor::distill::RelationalDistillation;
///
/// let teacher = array![[0.0_f32, 0.0], [1.0, 0.0], [0.0, 1.0]];
/// let student = teacher.mapv(|v| 3.0 * v + 1.0); // the same figure, larger and elsewhere
/// let out = RelationalDistillation::new().evaluate(student.view(), teacher.view())?;
/// assert!(out.value.total() < 1e-30);
/// # Ok::<(), tersor::distill::DistillError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RelationalDistillation {
    distance_weight: f32,
    angle_weight: f32,
}

impl Default for RelationalDistillation {
    fn default() -> Self {
        Self { distance_weight: 1.0, angle_weight: 2.0 }
    }
}

impl RelationalDistillation {
    /// `λ_D = 1` and `λ_A = 2`.
    pub fn new() -> Self {
        Self::default()
    }

    /// `λ_D`, the weight of the distances, at least 0; at 0 they are not computed.
    #[must_use]
    pub fn distance_weight(self, distance_weight: f32) -> Self {
        Self { distance_weight, ..self }
    }

    /// `λ_A`, the weight of the angles, at least 0; at 0 they are not computed.
    #[must_use]
    pub fn angle_weight(self, angle_weight: f32) -> Self {
        Self { angle_weight, ..self }
    }

    /// The loss of a batch and its gradient with respect to the student's embeddings.
    ///
    /// # Shapes
    ///
    /// `student`: `[samples, student_features]`; `teacher`: `[samples, teacher_features]`; at least two
    /// samples.
    ///
    /// # Errors
    ///
    /// Numbers of samples that clash, an empty input, a single sample, NaN or infinity, a negative or
    /// non-finite weight.
    pub fn evaluate(
        &self,
        student: ArrayView2<'_, f32>,
        teacher: ArrayView2<'_, f32>,
    ) -> Result<LossGrad, DistillError> {
        let distance_weight = check_factor("distance_weight", self.distance_weight)?;
        let angle_weight = check_factor("angle_weight", self.angle_weight)?;
        check_not_empty(STUDENT, &student)?;
        check_not_empty(TEACHER, &teacher)?;
        let rule = "samples (axis 0) must agree";
        check_shapes(STUDENT, student.shape(), TEACHER, teacher.shape(), rule, |axis| axis == 0)?;
        let samples = student.nrows();
        if samples < 2 {
            return Err(DistillError::TooFew { input: STUDENT, axis: "rows", found: samples, needed: 2 });
        }
        check_finite(STUDENT, &student)?;
        check_finite(TEACHER, &teacher)?;

        let (student, teacher) = (student.mapv(f64::from), teacher.mapv(f64::from));
        let mut value = 0.0;
        let mut grad = Array2::<f64>::zeros(student.dim());
        if distance_weight > 0.0 {
            value += distances(&student, &teacher, distance_weight, &mut grad);
        }
        if angle_weight > 0.0 {
            value += angles(&student, &teacher, angle_weight, &mut grad);
        }
        Ok(LossGrad { value: LossValue::Scalar(value), grad: grad.mapv(to_f32), counted: samples })
    }
}

/// The Huber loss of width 1 and its derivative.
fn huber(u: f64) -> (f64, f64) {
    if u.abs() < 1.0 { (0.5 * u * u, u) } else { (u.abs() - 0.5, u.signum()) }
}

/// Returns `weight` times the distance loss, and adds its gradient to `grad`.
fn distances(student: &Array2<f64>, teacher: &Array2<f64>, weight: f64, grad: &mut Array2<f64>) -> f64 {
    let ((s, s_mean, s_pairs), (t, t_mean, _)) = (pairwise_distances(student), pairwise_distances(teacher));
    let scale = weight / (student.nrows() as f64).powi(2);
    let over = |distance: f64, mean: f64| if mean > 0.0 { distance / mean } else { 0.0 };

    // Per row: the loss, and Σ h′ψ, which is how the loss depends on the mean distance.
    let mut slopes = Array2::<f64>::zeros(s.dim());
    let rows: Vec<_> = slopes.outer_iter_mut().zip(s.outer_iter()).zip(t.outer_iter()).collect();
    let sums: Vec<(f64, f64)> = rows
        .into_par_iter()
        .map(|((mut slopes, s), t)| {
            let mut sums = (0.0, 0.0);
            Zip::from(&mut slopes).and(&s).and(&t).for_each(|slope, &s, &t| {
                let ratio = over(s, s_mean);
                let (loss, derivative) = huber(ratio - over(t, t_mean));
                sums = (sums.0 + loss, sums.1 + derivative * ratio);
                *slope = derivative;
            });
            sums
        })
        .collect();
    let value = scale * sums.iter().map(|sums| sums.0).sum::<f64>();
    if s_pairs == 0 {
        return value;
    }

    // ∂loss/∂distance_ij = (h′_ij − Σ h′ψ / pairs) / μ; each distance appears twice, as (i, j) and (j, i).
    let through_mean = sums.iter().map(|sums| sums.1).sum::<f64>() / s_pairs as f64;
    let rows: Vec<_> = grad.outer_iter_mut().enumerate().collect();
    rows.into_par_iter().for_each(|(i, mut grad)| {
        let here = student.row(i);
        for (j, there) in student.outer_iter().enumerate() {
            if s[[i, j]] > 0.0 {
                let pull = 2.0 * scale * (slopes[[i, j]] - through_mean) / (s_mean * s[[i, j]]);
                Zip::from(&mut grad).and(&here).and(&there).for_each(|g, &a, &b| *g += pull * (a - b));
            }
        }
    });
    value
}

/// All distances `[samples, samples]`, the mean of the nonzero ones (0 if there are none), and their number.
fn pairwise_distances(points: &Array2<f64>) -> (Array2<f64>, f64, usize) {
    let mut distances = Array2::<f64>::zeros((points.nrows(), points.nrows()));
    let rows: Vec<_> = distances.outer_iter_mut().zip(points.outer_iter()).collect();
    let sums: Vec<(f64, usize)> = rows
        .into_par_iter()
        .map(|(mut row, here)| {
            for (distance, there) in row.iter_mut().zip(points.outer_iter()) {
                *distance = here.iter().zip(there).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
            }
            (row.sum(), row.iter().filter(|&&distance| distance > 0.0).count())
        })
        .collect();
    let (sum, pairs) = sums.iter().fold((0.0, 0), |total, sums| (total.0 + sums.0, total.1 + sums.1));
    (distances, if pairs > 0 { sum / pairs as f64 } else { 0.0 }, pairs)
}

/// Returns `weight` times the angle loss, and adds its gradient to `grad`.
fn angles(student: &Array2<f64>, teacher: &Array2<f64>, weight: f64, grad: &mut Array2<f64>) -> f64 {
    let samples = student.nrows();
    let scale = weight / (samples as f64).powi(3);
    let mut value = 0.0;
    for first in (0..samples).step_by(ANCHORS) {
        let anchors = first..samples.min(first + ANCHORS);
        let parts: Vec<(f64, Array2<f64>)> =
            anchors.into_par_iter().map(|anchor| angles_at(student, teacher, anchor)).collect();
        for (loss, part) in parts {
            value += scale * loss;
            grad.scaled_add(scale, &part);
        }
    }
    value
}

/// Sum over j and k of the Huber loss of the angles at one anchor, and its gradient.
fn angles_at(student: &Array2<f64>, teacher: &Array2<f64>, anchor: usize) -> (f64, Array2<f64>) {
    let (directions, lengths) = directions_from(student, anchor);
    let (targets, _) = directions_from(teacher, anchor);
    let mut cosines = directions.dot(&directions.t());
    let mut loss = 0.0;
    cosines.zip_mut_with(&targets.dot(&targets.t()), |cosine, target| {
        let (value, derivative) = huber(*cosine - target);
        loss += value;
        *cosine = derivative;
    });
    // By symmetry ∂loss/∂u_j = 2 Σ_k h′_jk u_k, and only its part across u_j moves the point j; the anchor
    // moves against all of them.
    let mut grad = 2.0 * cosines.dot(&directions);
    for ((mut grad, direction), &length) in grad.outer_iter_mut().zip(directions.outer_iter()).zip(&lengths) {
        if length > 0.0 {
            let along = grad.dot(&direction);
            Zip::from(&mut grad).and(&direction).for_each(|g, &u| *g = (*g - along * u) / length);
        } else {
            grad.fill(0.0);
        }
    }
    let against = grad.sum_axis(Axis(0));
    grad.row_mut(anchor).scaled_add(-1.0, &against);
    (loss, grad)
}

/// Unit vectors from the anchor to every point (0 where the two coincide), and the distances.
fn directions_from(points: &Array2<f64>, anchor: usize) -> (Array2<f64>, Vec<f64>) {
    let mut directions = points - &points.row(anchor);
    let lengths = directions
        .outer_iter_mut()
        .map(|mut row| {
            let length = row.dot(&row).sqrt();
            if length > 0.0 {
                row /= length;
            }
            length
        })
        .collect();
    (directions, lengths)
}
