//! Post-training quantization: fewer bits per weight.
//!
//! [`RoundToNearest`] writes integer or e4m3 codes under scales, and so does [`Gptq`], which knows the layer's inputs; [`FloatCast`] converts to f16 or bf16. An
//! [`Observer`] decides which range of values the codes span; [`ActivationObserver`] does the same for activations
//! that stream by, in constant memory.
//!
//! What calibration saw at a layer's input improves on rounding: [`AutoRound`] learns where each weight goes, [`ClippedRounding`]
//! narrows ranges, [`bias_correction`] restores mean outputs; [`awq_scales`] and [`smooth_scales`] find factors of input channels,
//! which are folded into the operation before. [`Hqq`] fits scales and zero points to the weights alone. [`KMeans`] writes codes that
//! name the values of codebooks. How far what was seen is trusted says [`Damping`].
//!
//! Scales, zero points and codes are, to the last bit, those that the `compressed-tensors` package computes from the
//! same numbers on the CPU when rounding to nearest: every operation is rounded to the model's own precision.

mod activation;
mod affine;
mod autoround;
mod awq;
mod bias;
pub(crate) mod calibrated;
mod cast;
mod damping;
pub(crate) mod factor;
mod gptq;
mod histogram;
mod hqq;
mod kmeans;
pub(crate) mod learned;
mod observer;
mod round;
pub(crate) mod scales;
mod smooth;
pub(crate) mod sweep;
mod tiles;

pub use activation::ActivationObserver;
pub use affine::Affine;
pub use autoround::AutoRound;
pub use awq::{AwqOptions, AwqScales, ClippedRounding, awq_scales};
pub use bias::bias_correction;
pub use cast::{FloatCast, Overflow};
pub use damping::Damping;
pub use gptq::Gptq;
pub use histogram::Histogram;
pub use hqq::{Hqq, HqqOptions, hqq_zero_point};
pub use kmeans::{KMeans, ValueImportance};
pub use observer::{Observer, Range};
pub use round::{CodeType, RoundToNearest};
pub use smooth::{SmoothScales, Smoothing, smooth_scales};
