//! Distillation losses: how far a student is from its teacher, and which way to move it.
//!
//! Every loss is a small options struct with an `evaluate` method that returns the value of the loss **and**
//! its analytic gradient with respect to the student ([`LossGrad`]), so that any training framework can use
//! it as one custom operation, with no automatic differentiation on this side.
//!
//! | loss | compares | paper |
//! |---|---|---|
//! | [`DivergenceLoss`] | softened class probabilities: forward KL, reverse KL, Jensen–Shannon | Hinton et al. 2015; Agarwal et al. 2024 |
//! | [`KnowledgeDistillation`] | a divergence mixed with the cross-entropy of true labels | Hinton et al. 2015 |
//! | [`SoftCrossEntropy`] | cross-entropy under the teacher's probabilities, with class weights | Hinton et al. 2015 |
//! | [`CrossEntropy`] | true labels, with class weights | – |
//! | [`DecoupledDistillation`] | target and non-target probabilities apart | Zhao et al. 2022 |
//! | [`MeanSquaredError`] | logits or hidden states, these also through a projection | Ba & Caruana 2014; Romero et al. 2015 |
//! | [`CosineDistance`] | directions of hidden states or logits | Sanh et al. 2019 |
//! | [`AttentionTransfer`] | spatial attention maps of convolutional features | Zagoruyko & Komodakis 2017 |
//! | [`RelationalDistillation`] | distances and angles between the samples of a batch | Park et al. 2019 |
//!
//! # Rules that all losses share
//!
//! - **Rows.** One row is one sample (or one token). The loss of a batch is put together from the losses of
//!   its rows as [`Reduction`] says.
//! - **Ignored rows.** A row whose label equals [`Labels::ignore_index`] adds nothing to the value, gets a
//!   zero gradient, is not counted by [`Reduction::Mean`], and is not read (it may hold padding, even NaN).
//!   If every row is ignored, the value and the gradient are zero and [`LossGrad::counted`] is 0; a batch
//!   without rows or without columns is an error.
//! - **Numbers.** Inputs and gradients are `f32`; everything between, and the value, is `f64`. Results agree
//!   with PyTorch run in float64 to 10⁻⁶ of the largest entry, and hold for logits of ±10⁴. A gradient is
//!   finite for every finite input: one that does not fit `f32` saturates at its largest number.
//! - **Threads.** Rows are computed in parallel on rayon's current pool. Sums are taken in an order that does
//!   not depend on the number of threads, so results are identical to the last bit on any pool.
//!
//! # Example
//!
//! ```
//! use ndarray::array;
//! use tersor::distill::{KnowledgeDistillation, Labels};
//!
//! let student = array![[0.5_f32, 1.0, -1.0], [2.0, 0.0, 0.0]];
//! let teacher = array![[0.0_f32, 3.0, -2.0], [1.0, 1.0, 0.0]];
//! let labels = [1, 0];
//!
//! let loss = KnowledgeDistillation::new(0.9, 4.0);
//! let out = loss.evaluate(student.view(), teacher.view(), Labels::new(&labels))?;
//! assert!(out.value.total() > 0.0);
//! assert_eq!(out.grad.dim(), (2, 3));
//! // A softmax does not see a shift of its logits, so each row's gradient sums to zero.
//! assert!(out.grad.row(0).sum().abs() < 1e-6);
//! # Ok::<(), tersor::distill::DistillError>(())
//! ```

// A view is a pointer with a shape: ndarray passes it by value.
#![allow(clippy::needless_pass_by_value)]

mod attention;
mod cross_entropy;
mod decoupled;
mod divergence;
mod error;
mod feature;
mod loss;
mod relational;
mod rows;
mod softmax;

pub use attention::AttentionTransfer;
pub use cross_entropy::{CrossEntropy, SoftCrossEntropy};
pub use decoupled::DecoupledDistillation;
pub use divergence::{Divergence, DivergenceLoss, KnowledgeDistillation};
pub use error::DistillError;
pub use feature::{CosineDistance, MeanSquaredError, ProjectedLossGrad};
pub use loss::{Labels, LossGrad, LossValue, Reduction};
pub use relational::RelationalDistillation;
pub(crate) use softmax::Softmax;
