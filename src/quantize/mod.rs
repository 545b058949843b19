//! Post-training quantization: fewer bits per weight.
//!
//! [`RoundToNearest`] writes integer or e4m3 codes under scales, and so does [`Gptq`], which knows the layer's inputs; [`FloatCast`] converts to f16 or bf16. An
//! [`Observer`] decides which range of values the codes span; [`ActivationObserver`] does the same for activations
//! that stream by, in constant memory.
//!
//! Scales, zero points and codes are, to the last bit, those that the `compressed-tensors` package computes from the
//! same numbers on the CPU: every operation is rounded to the model's own precision.

mod activation;
mod affine;
mod calibrated;
mod cast;
mod gptq;
mod histogram;
mod observer;
mod round;

pub use activation::ActivationObserver;
pub use affine::Affine;
pub use cast::{FloatCast, Overflow};
pub use gptq::Gptq;
pub use histogram::Histogram;
pub use observer::{Observer, Range};
pub use round::{CodeType, RoundToNearest};
