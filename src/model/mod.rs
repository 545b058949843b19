//! Running a network to see what compression did to it.
//!
//! [`Sequential`] runs multilayer perceptrons and LeNet-style convolutional networks over
//! [`CompressedWeight`](crate::CompressedWeight)s, whatever their form.

mod config;
mod error;
mod sequential;

pub use config::{LayerConfig, SequentialConfig};
pub use error::ModelError;
pub use sequential::Sequential;
