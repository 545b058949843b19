//! Training with [candle](https://docs.rs/candle-core): what compression needs of it, as parts of a usual training loop (feature
//! `candle`).
//!
//! | to do | take |
//! |---|---|
//! | distil | `forward` of every [loss](#losses) |
//! | fine-tune what was pruned | [`Masked`] around the optimizer, [`MaskedVar`] |
//! | train weights for integers | [`FakeQuantize`], [`LearnedScale`] (LSQ) |
//! | fine-tune the values of codebooks | [`LearnedCodebook`] |
//! | train activations for integers | [`FakeQuantizeInput`] |
//! | put a compressed layer into a network | [`CompressedLinear`] |
//! | load and save | [`variables_of`], [`set_variables`], [`save_variables`], [`weights_of`], [`tensors_of`] |
//! | compress a tensor | [`compress()`], [`weight_of`], [`tensor_of`] |
//!
//! What computes here computes on the CPU, in f32 (tensors of other devices and of f16, bf16 and f64 are converted on the way, and so are
//! their gradients), with tersor's own kernels: results depend neither on the number of threads nor on the machine's
//! instructions. Errors are candle's, with tersor's inside.
//!
//! # Losses
//!
//! `forward` of every loss in [`distill`](crate::distill) takes tensors where `evaluate` takes arrays, and gives a tensor: a
//! scalar, or one value a row with [`Reduction::None`](crate::distill::Reduction::None). Its backward pass is the analytic
//! gradient that `evaluate` returns, for the student alone (and the projection of
//! [`MeanSquaredError::forward_projected`](crate::distill::MeanSquaredError::forward_projected)); the teacher counts as
//! constant. Value and gradient come from one evaluation: beside its inputs the operation holds the gradient, and nothing else. Labels are
//! `[rows]` of u8, u32 or i64, where −100 marks rows that do not count.
//!
//! # A training loop
//!
//! This is a usual loop of candle's, which learns a pruned, quantized student from a teacher; lines that are not candle's are marked.
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{AdamW, Init, Linear, Module, Optimizer, VarMap};
//! use tersor::candle::{LearnedScale, Masked, MaskedVar, weights_of}; // *
//! use tersor::distill::KnowledgeDistillation; // *
//! use tersor::{Bits, Checkpoint, Granularity, Mask, save_weights}; // *
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::Cpu;
//! let images = Tensor::rand(0f32, 1.0, (64, 20), &device)?;
//! let labels = Tensor::from_vec((0..64).map(|row| row % 4).collect::<Vec<u32>>(), 64, &device)?;
//! let teacher = Linear::new(Tensor::randn(0f32, 1.0, (4, 20), &device)?, None);
//!
//! let variables = VarMap::new();
//! variables.get((4, 20), "fc.weight", Init::Uniform { lo: -0.2, up: 0.2 }, DType::F32, &device)?;
//! let masks = BTreeMap::from([("fc.weight".to_owned(), Mask::from_fn(4, 20, |row, col| (row + col) % 2 == 0))]); // *
//! let masked = MaskedVar::of_map(&variables, &masks)?; // *
//! let fc = masked[0].clone(); // *
//! let int4 = LearnedScale::new(Bits::new(4).unwrap(), Granularity::Channel, fc.var())?; // *
//!
//! let mut trained = variables.all_vars();
//! trained.push(int4.scale().clone()); // *
//! let mut optimizer = Masked::new(AdamW::new_lr(trained, 0.01)?, masked); // * `Masked::new(…)`
//! let loss = KnowledgeDistillation::new(0.9, 4.0); // *
//! for _ in 0..3 {
//!     let student = Linear::new(int4.forward(&fc.weight()?)?, None); // * `int4.forward`
//!     let loss = loss.forward(&student.forward(&images)?, &teacher.forward(&images)?, &labels)?; // *
//!     optimizer.backward_step(&loss)?;
//! }
//!
//! // What was trained is what is stored, to the last bit. // *
//! let mut weights = weights_of(&variables)?; // *
//! weights.insert("fc.weight".into(), int4.compress(fc.var())?); // *
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("student.safetensors");
//! save_weights(&path, &weights)?; // *
//! let stored = Checkpoint::open(&path)?.dense("fc.weight")?;
//! assert_eq!(stored, int4.forward(&fc.weight()?)?.flatten_all()?.to_vec1::<f32>()?);
//! assert_eq!(stored.iter().filter(|weight| **weight == 0.0).count() >= 40, true);
//! # Ok(())
//! # }
//! ```

mod bridge;
mod codebook;
mod error;
mod fake_quantize;
mod learned;
mod linear;
mod loss;
mod masked;
mod tensors;

pub use codebook::LearnedCodebook;
pub use error::TrainingError;
pub use fake_quantize::{FakeQuantize, FakeQuantizeInput};
pub use learned::LearnedScale;
pub use linear::CompressedLinear;
pub use masked::{Masked, MaskedVar};
pub use tensors::{
    compress, save_variables, set_variables, tensor_of, tensors_of, variables_of, weight_of, weights_of,
};
