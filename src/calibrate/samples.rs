use std::path::PathBuf;

use ndarray::Array2;
use sha2::{Digest, Sha256};

use super::CalibrateError;
use crate::file::hex;

/// Inputs that a network runs on to be calibrated.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    pub(super) kind: Kind,
    /// The file that they come from.
    pub(super) path: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Tokens(Vec<Vec<u32>>),
    Features(Array2<f32>),
}

impl Samples {
    /// Sequences of tokens, for a model that takes tokens.
    ///
    /// # Errors
    /// When there are none, or one is empty.
    pub fn tokens(sequences: Vec<Vec<u32>>) -> Result<Self, CalibrateError> {
        if let Some(empty) = sequences.iter().position(Vec::is_empty) {
            let reason = format!("sample {empty} (counted from 0) has no tokens");
            return Err(CalibrateError::Samples { path: None, reason });
        }
        Self { kind: Kind::Tokens(sequences), path: None }.checked()
    }

    /// Inputs of a network that takes numbers, such as pixels times [`Classifier::pixel_scale`](crate::Classifier::pixel_scale).
    ///
    /// # Shapes
    /// `[samples, input_features]`.
    ///
    /// # Errors
    /// When there are none, or a value is not finite.
    pub fn features(inputs: Array2<f32>) -> Result<Self, CalibrateError> {
        if let Some(((sample, feature), value)) = inputs.indexed_iter().find(|(_, x)| !x.is_finite()) {
            let reason = format!("sample {sample} (counted from 0) is {value} at feature {feature}");
            return Err(CalibrateError::Samples { path: None, reason });
        }
        Self { kind: Kind::Features(inputs), path: None }.checked()
    }

    fn checked(self) -> Result<Self, CalibrateError> {
        if self.is_empty() {
            return Err(CalibrateError::Samples { path: None, reason: "there are no samples".into() });
        }
        Ok(self)
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        match &self.kind {
            Kind::Tokens(sequences) => sequences.len(),
            Kind::Features(inputs) => inputs.nrows(),
        }
    }

    /// Whether there are none; never so.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens of every sample; nothing, where they are no sequences.
    pub fn sequences(&self) -> &[Vec<u32>] {
        match &self.kind {
            Kind::Tokens(sequences) => sequences,
            Kind::Features(_) => &[],
        }
    }

    /// Tokens of all samples; samples, where they are no sequences.
    pub fn token_count(&self) -> usize {
        match &self.kind {
            Kind::Tokens(sequences) => sequences.iter().map(Vec::len).sum(),
            Kind::Features(inputs) => inputs.nrows(),
        }
    }

    /// Tokens of the longest sequence; 1, where they are no sequences.
    pub(crate) fn longest(&self) -> usize {
        match &self.kind {
            Kind::Tokens(sequences) => sequences.iter().map(Vec::len).max().unwrap_or(0),
            Kind::Features(_) => 1,
        }
    }

    /// A hash of everything in them.
    pub(crate) fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        match &self.kind {
            Kind::Tokens(sequences) => {
                for tokens in sequences {
                    hash.update((tokens.len() as u64).to_le_bytes());
                    for token in tokens {
                        hash.update(token.to_le_bytes());
                    }
                }
            }
            Kind::Features(inputs) => {
                hash.update((inputs.ncols() as u64).to_le_bytes());
                for x in inputs {
                    hash.update(x.to_bits().to_le_bytes());
                }
            }
        }
        hex(hash)
    }
}
