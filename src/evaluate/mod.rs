//! Scores: how well a network does, how far a compressed weight is from the original, how long it takes.
//!
//! A [`Task`] scores a model. Most tasks ask for a trait alone, so that any executor can be scored; all take a
//! [`Network`](crate::Network) too, and refuse one of the wrong kind.
//!
//! | task | of | scores |
//! |---|---|---|
//! | [`Perplexity`] | [`LanguageModel`](crate::LanguageModel) | `perplexity`, `nats_per_token` |
//! | [`Agreement`] | [`LanguageModel`](crate::LanguageModel) | `kl`, `kl_p999`, `top1_agreement` with a reference |
//! | [`Similarity`] | [`SentenceEncoder`](crate::SentenceEncoder) | `spearman`, `pearson` |
//! | [`Classification`] | [`Classifier`](crate::Classifier) | `accuracy` |
//! | [`Generation`] | [`Decoder`](crate::Decoder) | `tokens_per_second`, `prefill_tokens_per_second` |
//! | [`Latency`] | any of them | `latency_p50`, `latency_p95`, throughput, `peak_memory` |

mod agreement;
mod classification;
mod error;
mod generation;
mod images;
mod latency;
mod memory;
mod perplexity;
mod score;
mod similarity;
mod statistics;
mod task;
#[cfg(test)]
mod testing;
mod text;
mod weight_error;
mod windows;

pub use agreement::Agreement;
pub use classification::Classification;
pub use error::EvaluateError;
pub use generation::Generation;
pub use images::{DataError, ImageSet};
pub use latency::Latency;
pub use perplexity::Perplexity;
pub use score::{Better, Score};
pub use similarity::{SentencePair, Similarity};
pub use task::Task;
pub use text::{StsPair, read_sts, read_text};
pub use weight_error::WeightErrors;
pub(crate) use weight_error::piece_rows;
pub use windows::Windows;
