//! Running a network to see what compression did to it.
//!
//! [`Network`] is any network that tersor runs: [`Sequential`] perceptrons and LeNet-style convolutional networks,
//! [`Encoder`]s like BERT, [`Decoder`]s like LLaMA. They are built from a [`Checkpoint`](crate::Checkpoint), dense or
//! compressed, and every linear layer multiplies with the form that its weight has.
//!
//! What a network must do to be scored are traits, [`LanguageModel`], [`SentenceEncoder`] and [`Classifier`], so that a
//! network of another library can be scored too. A [`Tap`] sees what goes into the linear layers.

pub(crate) mod blockwise;
mod error;
mod linear;
mod network;
pub(crate) mod overlay;
mod sequential;
pub(crate) mod structure;
mod tap;
#[cfg(feature = "text")]
mod tokenizer;
mod transformer;

pub use error::ModelError;
pub use network::{Classifier, Execution, LanguageModel, Network, PlainWeights, SentenceEncoder};
pub use sequential::{LayerConfig, Sequential, SequentialConfig};
pub use structure::UnitKind;
pub use tap::Tap;
#[cfg(feature = "text")]
pub use tokenizer::{Tokenizer, TokenizerError};
pub use transformer::{Cache, Decoder, Encoder, GenerateOptions, Sampling};
pub(crate) use transformer::{
    DecoderWiring, GradientSums, Heads, LayerNames, Sampler, TrainedBlock, TrainedHead, Wiring,
};
