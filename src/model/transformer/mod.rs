//! Transformers: encoders like BERT and decoders like LLaMA, from Hugging Face's names and `config.json`.

mod cache;
mod decoder;
mod decoder_config;
mod embedding;
mod encoder;
mod generate;
mod keys;
mod pooling;
mod rope;
mod tensors;
mod wiring;

pub use cache::Cache;
pub use decoder::Decoder;
pub(crate) use decoder::{GradientSums, TrainedBlock, TrainedHead};
pub(in crate::model) use decoder_config::DECODERS;
pub use encoder::Encoder;
pub(crate) use generate::Sampler;
pub use generate::{GenerateOptions, Sampling};
pub(crate) use wiring::{DecoderWiring, EncoderWiring, Heads, LayerNames, Wiring};
