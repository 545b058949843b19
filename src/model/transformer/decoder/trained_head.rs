//! What the last hidden states do to the logits: the backward pass of the normalization and the head.

use std::borrow::Cow;

use ndarray::{Array2, ArrayView2, Axis};

use super::Decoder;
use crate::kernels::normalize::rms_norm_gradient;
use crate::kernels::product::ColumnTiles;
use crate::model::ModelError;

/// The end of a decoder, through which losses come to its blocks; it stays as it is.
#[derive(Debug)]
pub(crate) struct TrainedHead<'a> {
    decoder: &'a Decoder,
    /// For `dy · W`.
    backward: ColumnTiles,
}

impl<'a> TrainedHead<'a> {
    /// Tokens whose logits are there at a time: those of all would be large. However many threads there are, so that nothing depends
    /// on their number.
    pub(crate) const TOKENS: usize = 128;

    /// # Shapes
    /// `weight` is the head's, `[vocab_size, hidden]`.
    ///
    /// # Panics
    /// When it is not.
    pub(super) fn new(decoder: &'a Decoder, weight: &[f32]) -> Self {
        let [rows, cols] = [decoder.vocab_size, decoder.width];
        assert_eq!(weight.len(), rows * cols, "weights of the head");
        Self { decoder, backward: ColumnTiles::new(rows, cols, |row| &weight[row * cols..][..cols]) }
    }

    /// The gradient with respect to the last hidden states of a loss, of which `of_logits` gives the gradient with respect to the
    /// logits of some tokens, from the number of the first of them and the logits.
    ///
    /// # Shapes
    /// `[tokens, hidden]`; `of_logits` takes and gives `[some tokens, vocab_size]`.
    ///
    /// # Errors
    /// When the hidden states have another width, or `of_logits` has one.
    pub(crate) fn gradient<E: From<ModelError>>(
        &self,
        hidden: ArrayView2<'_, f32>,
        mut of_logits: impl FnMut(usize, ArrayView2<'_, f32>) -> Result<Array2<f32>, E>,
    ) -> Result<Vec<f32>, E> {
        let Decoder { norm, epsilon, .. } = self.decoder;
        let mut gradient = Vec::with_capacity(hidden.len());
        for (number, hidden) in hidden.axis_chunks_iter(Axis(0), Self::TOKENS).enumerate() {
            let logits = self.decoder.head(hidden, None)?;
            let of_logits = of_logits(number * Self::TOKENS, logits.view())?;
            drop(logits);
            let mut of_hidden = self.backward.product(&contiguous(of_logits.view()));
            rms_norm_gradient(&mut of_hidden, &contiguous(hidden), norm, *epsilon);
            gradient.extend(of_hidden);
        }
        Ok(gradient)
    }
}

fn contiguous(values: ArrayView2<'_, f32>) -> Cow<'_, [f32]> {
    match values.to_slice() {
        Some(values) => values.into(),
        None => values.iter().copied().collect::<Vec<_>>().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ndarray::Array2;

    use super::super::Decoder;
    use super::TrainedHead;
    use crate::checkpoint::Checkpoint;
    use crate::model::{Execution, ModelError};

    fn values(len: usize, by: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * by % 1009) as f32 / 1009.0 - 0.5) * 2.0).collect()
    }

    /// Of a head of its own, and of one that is the embedding; of more tokens than go through it together.
    #[test]
    fn the_gradient_is_the_slope_of_the_logits() {
        for name in ["llama-bias", "llama", "qwen3"] {
            let folder =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden/transformers").join(name);
            let checkpoint = Checkpoint::open(folder).unwrap();
            let decoder = Decoder::open(&checkpoint, Execution::default()).unwrap();
            let head = decoder.trained_head(&checkpoint).unwrap();
            let tokens = TrainedHead::TOKENS + 5;
            let hidden = values(tokens * decoder.width, 389);
            let of_logits = Array2::from_shape_vec(
                (tokens, decoder.vocab_size),
                values(tokens * decoder.vocab_size, 571),
            )
            .unwrap();
            let states = |values: Vec<f32>| Array2::from_shape_vec((tokens, decoder.width), values).unwrap();
            let gradient = head.gradient(states(hidden.clone()).view(), |first, logits| {
                let rows = first..first + logits.nrows();
                Ok::<_, ModelError>(of_logits.slice(ndarray::s![rows, ..]).to_owned())
            });
            let direction = values(hidden.len(), 733);
            let loss = |by: f32| -> f64 {
                let moved = hidden.iter().zip(&direction).map(|(value, to)| value + by * to).collect();
                let logits = decoder.head(states(moved).view(), None).unwrap();
                logits.iter().zip(&of_logits).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum()
            };
            let step = 1.0 / 1024.0;
            let slope = (loss(step) - loss(-step)) / (2.0 * f64::from(step));
            let along: f64 = gradient.unwrap().iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
            assert!((along - slope).abs() < 1e-2 * slope.abs(), "{name}: {along}, not {slope}");
        }
    }
}
