//! Running a network to see what compression did to it.
//!
//! [`Sequential`] runs multilayer perceptrons and LeNet-style convolutional networks over
//! [`CompressedWeight`](crate::CompressedWeight)s, whatever their form.

mod error;
mod network;
mod sequential;
#[cfg(feature = "text")]
mod tokenizer;

pub use error::ModelError;
pub use network::{Classifier, Execution, LanguageModel, Network, SentenceEncoder};
pub use sequential::{LayerConfig, Sequential, SequentialConfig};
#[cfg(feature = "text")]
pub use tokenizer::{Tokenizer, TokenizerError};
