//! Networks whose answers follow by hand.

use std::f32::consts::PI;
use std::sync::Mutex;

use ndarray::{Array2, ArrayView2};

use super::{EvaluateError, Score};
use crate::model::{Classifier, LanguageModel, ModelError, SentenceEncoder};

/// The one line with which a task was refused.
pub(super) fn refusal(result: Result<Vec<Score>, EvaluateError>) -> String {
    match result {
        Ok(scores) => panic!("was not refused: {scores:?}"),
        Err(error) => crate::one_line(&error),
    }
}

/// A language model that looks at the last token alone.
pub(super) struct Bigram {
    logits: Array2<f32>,
    max_tokens: usize,
    columns: usize,
}

impl Bigram {
    /// With these logits of the token (second) that follows another (first).
    pub(super) fn new(vocab_size: usize, logit: impl Fn(u32, u32) -> f32) -> Self {
        // a few tokens of a large vocabulary are enough
        let rows = vocab_size.min(400);
        let logits =
            Array2::from_shape_fn((rows, vocab_size), |(after, next)| logit(after as u32, next as u32));
        Self { logits, max_tokens: 1024, columns: vocab_size }
    }

    pub(super) fn uniform(vocab_size: usize) -> Self {
        Self::new(vocab_size, |_, _| 0.0)
    }

    pub(super) fn max_tokens(self, max_tokens: usize) -> Self {
        Self { max_tokens, ..self }
    }

    /// The same, which forgets the last column of its logits.
    pub(super) fn misshapen(self) -> Self {
        Self { columns: self.logits.ncols() - 1, ..self }
    }
}

impl LanguageModel for Bigram {
    fn vocab_size(&self) -> usize {
        self.logits.ncols()
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn logits(&self, tokens: &[u32]) -> Result<Array2<f32>, ModelError> {
        assert!(!tokens.is_empty() && tokens.len() <= self.max_tokens);
        let rows = self.logits.nrows();
        Ok(Array2::from_shape_fn((tokens.len(), self.columns), |(i, next)| {
            self.logits[[tokens[i] as usize % rows, next]]
        }))
    }
}

/// An encoder that turns a sentence into the direction at as many degrees as its last token says.
#[derive(Default)]
pub(super) struct Angles {
    /// Lengths of the sentences of every batch that was embedded.
    pub(super) lengths: Mutex<Vec<Vec<usize>>>,
}

impl Angles {
    /// A token whose embedding is zero.
    pub(super) const NOTHING: u32 = 1000;
    /// A token whose embedding is not finite.
    pub(super) const BROKEN: u32 = 1001;
}

impl SentenceEncoder for Angles {
    fn max_tokens(&self) -> usize {
        64
    }

    fn embed(&self, sentences: &[&[u32]]) -> Result<Array2<f32>, ModelError> {
        self.lengths.lock().unwrap().push(sentences.iter().map(|s| s.len()).collect());
        Ok(Array2::from_shape_fn((sentences.len(), 2), |(sentence, axis)| match sentences[sentence].last() {
            Some(&Self::NOTHING) => 0.0,
            Some(&Self::BROKEN) => [1.0, f32::NAN][axis],
            Some(degrees) => {
                let angle = *degrees as f32 * PI / 180.0;
                [angle.cos(), angle.sin()][axis]
            }
            None => panic!("an empty sentence"),
        }))
    }
}

/// A classifier that finds the brightest of its inputs.
pub(super) struct Brightest(pub(super) usize);

impl Classifier for Brightest {
    fn input_features(&self) -> usize {
        self.0
    }

    fn pixel_scale(&self) -> f32 {
        1.0
    }

    fn class_logits(&self, inputs: ArrayView2<'_, f32>) -> Result<Array2<f32>, ModelError> {
        Ok(inputs.to_owned())
    }
}
