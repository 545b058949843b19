//! tersor
pub mod checkpoint;
mod dtype;
mod error;
mod kernels;
mod layer;
pub mod prune;
pub mod quantize;
pub mod weight;

pub use dtype::{DType, FloatType, Precision};
pub use error::{NonFinite, one_line};
pub use layer::{Compressed, Layer, Method, MethodError};
pub use prune::*;
pub use quantize::*;
pub use weight::{Bits, Coding, CompressedWeight, DenseValues, Form, Granularity, LayoutKind, Mask, NofM, ScaleGrid, Scales, WeightBytes, WeightError};
pub use checkpoint::*;
