use super::{EvaluateError, Score};

/// Something that a model can be scored on.
///
/// `M` is what the task needs of the model: [`dyn LanguageModel`](crate::model::LanguageModel) for perplexity,
/// [`dyn SentenceEncoder`](crate::model::SentenceEncoder) for similarity, or a type of your own.
pub trait Task<M: ?Sized> {
    /// Scores the model.
    ///
    /// # Errors
    /// When the model cannot be run on the task's data, or gives NaN.
    fn score(&self, model: &M) -> Result<Vec<Score>, EvaluateError>;
}
