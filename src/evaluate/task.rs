use super::{Agreement, Classification, EvaluateError, Perplexity, Score, Similarity};
use crate::model::Network;

/// Something that a model can be scored on.
///
/// `M` is what the task needs of the model: a [`LanguageModel`](crate::model::LanguageModel) for perplexity, a
/// [`SentenceEncoder`](crate::model::SentenceEncoder) for similarity, or a type of your own. The tasks of tersor also
/// take a [`Network`], so that `Box<dyn Task<Network>>` is any of them.
pub trait Task<M: ?Sized> {
    /// Scores the model.
    ///
    /// # Errors
    /// When the model cannot be run on the task's data, or gives NaN.
    fn score(&self, model: &M) -> Result<Vec<Score>, EvaluateError>;
}

/// Lets a task take any network that is of the kind it needs.
macro_rules! score_networks {
    ($($task:ty, $kind:ident;)*) => {$(
        impl Task<Network> for $task {
            fn score(&self, network: &Network) -> Result<Vec<Score>, EvaluateError> {
                self.score(network.$kind()?)
            }
        }
    )*};
}

score_networks! {
    Perplexity, language_model;
    Agreement<'_>, language_model;
    Similarity, sentence_encoder;
    Classification, classifier;
}
