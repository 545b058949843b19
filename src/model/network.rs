use ndarray::{Array2, ArrayView2};

use super::overlay::Overlay;
use super::transformer::DECODERS;
use super::{Decoder, Encoder, ModelError, Sequential};
use crate::checkpoint::Checkpoint;
use crate::weight::{Activations, Coding, CompressedWeight, PackedWeight, WeightError};

/// A network that says, after every token, how likely each token is to follow.
///
/// Implemented by tersor's own decoders; implement it to evaluate or calibrate with another executor.
pub trait LanguageModel: Send + Sync {
    /// Number of different tokens.
    fn vocab_size(&self) -> usize;

    /// Most tokens that one sequence may have.
    fn max_tokens(&self) -> usize;

    /// Unnormalized log-probabilities of the token after each of these.
    ///
    /// # Shapes
    /// `[tokens, vocab_size]`: row `i` has seen tokens `0..=i`.
    ///
    /// # Errors
    /// When there are no tokens or too many, or one is beyond the vocabulary.
    fn logits(&self, tokens: &[u32]) -> Result<Array2<f32>, ModelError>;
}

/// A network that turns a sentence into one vector.
pub trait SentenceEncoder: Send + Sync {
    /// Most tokens that one sentence may have, those that mark its beginning and end included.
    fn max_tokens(&self) -> usize;

    /// A vector for every sentence, pooled and normalized as the model asks for.
    ///
    /// # Shapes
    /// `[sentences, embedding_size]`.
    ///
    /// # Errors
    /// When a sentence has no tokens or too many, or one is beyond the vocabulary.
    fn embed(&self, sentences: &[&[u32]]) -> Result<Array2<f32>, ModelError>;
}

/// A network that sorts inputs into classes.
pub trait Classifier: Send + Sync {
    /// Number of values in one input.
    fn input_features(&self) -> usize;

    /// What an 8-bit pixel is multiplied by.
    fn pixel_scale(&self) -> f32;

    /// Unnormalized log-probabilities of every class.
    ///
    /// # Shapes
    /// `[batch, input_features]` → `[batch, classes]`.
    ///
    /// # Errors
    /// When the input has another number of features.
    fn class_logits(&self, inputs: ArrayView2<'_, f32>) -> Result<Array2<f32>, ModelError>;
}

/// How a network is run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Execution {
    /// How activations enter the products with integer weights; `None`: as each layer's checkpoint says, and as they are
    /// where it says nothing. Other weights always take floats.
    pub activations: Option<Activations>,
    /// Where plain weights of a transformer are when it runs.
    pub plain_weights: PlainWeights,
}

/// Where plain weights are when they are multiplied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PlainWeights {
    /// In the mapped file, from where every product arranges them anew. Nothing is copied.
    #[default]
    Mapped,
    /// Copied into memory, arranged once: faster when many products of a few rows each follow. Takes as many bytes as `f32`, `f16`
    /// or `bf16` have in the file.
    Packed,
}

impl From<Activations> for Execution {
    fn from(activations: Activations) -> Self {
        Self { activations: Some(activations), ..Self::default() }
    }
}

impl Execution {
    /// A weight as its products want it: integer codes meet activations as asked for or as stored, all else meets floats.
    pub(super) fn packed(self, weight: &CompressedWeight) -> Result<PackedWeight, WeightError> {
        let activations = match weight.form().coding() {
            Coding::Int { .. } => self.activations.unwrap_or_else(|| {
                weight.input().map_or(Activations::Float, |input| Activations::Int8(input.codes()))
            }),
            _ => Activations::Float,
        };
        PackedWeight::new(weight, activations)
    }
}

/// Any network that tersor runs itself.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Network {
    /// A list of layers.
    Sequential(Sequential),
    /// A transformer that embeds sentences.
    Encoder(Box<Encoder>),
    /// A transformer that predicts tokens.
    Decoder(Box<Decoder>),
}

impl Network {
    /// Builds the network that a checkpoint holds, with every weight in the form in which it is stored.
    ///
    /// # Errors
    /// When `config.json` names a network that tersor does not run, or tensors are missing or misshapen.
    pub fn open(checkpoint: &Checkpoint, execution: Execution) -> Result<Self, ModelError> {
        Self::open_over(checkpoint, &Overlay::default(), execution)
    }

    /// As [`open`](Self::open), with other tensors in the place of some.
    pub(super) fn open_over(
        checkpoint: &Checkpoint,
        overlay: &Overlay,
        execution: Execution,
    ) -> Result<Self, ModelError> {
        let model_type = checkpoint.config().and_then(|config| config.get("model_type"));
        if let Some(value) = model_type.filter(|value| !value.is_string() && !value.is_null()) {
            return Err(ModelError::Architecture {
                path: checkpoint.path().to_path_buf(),
                reason: format!("config.json: `model_type` is {value}, not a string"),
            });
        }
        match model_type.and_then(|value| value.as_str()) {
            // without a description, the tensors may still say what network it is
            None | Some("sequential") => {
                Sequential::open_over(checkpoint, overlay, execution).map(Self::Sequential)
            }
            // what comes before its blocks is never replaced
            Some("bert") => Encoder::open(checkpoint, execution).map(Box::new).map(Self::Encoder),
            Some(name) if DECODERS.contains(&name) => {
                Decoder::open_over(checkpoint, overlay, execution).map(Box::new).map(Self::Decoder)
            }
            Some(other) => Err(ModelError::Architecture {
                path: checkpoint.path().to_path_buf(),
                reason: format!(
                    "config.json says model_type `{other}`; tersor runs sequential, bert, {} (the tensors of others can \
                     still be inspected and compressed)",
                    DECODERS.join(", ")
                ),
            }),
        }
    }

    /// What kind of network it is, in the words of `config.json`.
    pub fn model_type(&self) -> &str {
        match self {
            Self::Sequential(_) => "sequential",
            Self::Encoder(_) => "bert",
            Self::Decoder(model) => model.model_type(),
        }
    }

    /// The layers whose weights are arranged for products, by name: what each looked like, the bytes it takes, and
    /// [whether zeros are left out](PackedWeight::sparse_batch). Plain weights are among them
    /// where [`PlainWeights::Packed`] was asked for.
    pub fn packed_layers(&self) -> Vec<(&str, &PackedWeight)> {
        match self {
            Self::Sequential(model) => model.packed_layers(),
            Self::Encoder(model) => model.packed_layers(),
            Self::Decoder(model) => model.packed_layers(),
        }
    }

    /// As a model that predicts tokens.
    ///
    /// # Errors
    /// When it is none.
    pub fn language_model(&self) -> Result<&dyn LanguageModel, ModelError> {
        match self {
            Self::Decoder(model) => Ok(model.as_ref()),
            _ => Err(self.is_no("language model")),
        }
    }

    /// As a decoder, which can also go on with a text.
    ///
    /// # Errors
    /// When it is none.
    pub fn decoder(&self) -> Result<&Decoder, ModelError> {
        match self {
            Self::Decoder(model) => Ok(model.as_ref()),
            _ => Err(self.is_no("decoder")),
        }
    }

    /// As a model that embeds sentences.
    ///
    /// # Errors
    /// When it is none.
    pub fn sentence_encoder(&self) -> Result<&dyn SentenceEncoder, ModelError> {
        match self {
            Self::Encoder(model) => Ok(model.as_ref()),
            _ => Err(self.is_no("sentence encoder")),
        }
    }

    /// As a model that classifies.
    ///
    /// # Errors
    /// When it is none.
    pub fn classifier(&self) -> Result<&dyn Classifier, ModelError> {
        match self {
            Self::Sequential(model) => Ok(model),
            _ => Err(self.is_no("classifier")),
        }
    }

    fn is_no(&self, kind: &'static str) -> ModelError {
        ModelError::Kind { model_type: self.model_type().to_owned(), kind }
    }
}
