//! The original network, and how far another one's predictions are from its own.

use std::path::Path;

use ndarray::{Array2, ArrayView2, s};

use super::Sample;
use crate::checkpoint::Checkpoint;
use crate::distill::{Divergence, DivergenceLoss, LossGrad, Reduction};
use crate::kernels::reduce::first_non_finite;
use crate::model::{Decoder, ModelError, TrainedHead};
use crate::pipeline::PipelineError;

/// The network whose predictions are learned.
pub(super) struct Teacher<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) decoder: &'a Decoder,
}

impl Teacher<'_> {
    /// The divergence of a network's predictions on some samples, in nats a token. `look` is called before each, and may end it.
    ///
    /// # Errors
    /// When a sample does not fit, or one of both networks gives what is no number.
    pub(super) fn divergence(
        &self,
        student: &Decoder,
        path: &Path,
        samples: &[Sample<'_>],
        look: &mut dyn FnMut() -> Result<(), PipelineError>,
    ) -> Result<f64, PipelineError> {
        let (mut total, mut count) = (0.0, 0);
        for sample in samples {
            look()?;
            let tokens = sample.tokens;
            let (found, wanted) = (student.states(tokens)?, self.decoder.states(tokens)?);
            for first in (0..tokens.len()).step_by(TrainedHead::TOKENS) {
                let rows = first..(first + TrainedHead::TOKENS).min(tokens.len());
                let head = |decoder: &Decoder, states: &Array2<f32>| -> Result<_, ModelError> {
                    decoder.head(states.slice(s![rows.clone(), ..]), None)
                };
                let (found, wanted) = (head(student, &found)?, head(self.decoder, &wanted)?);
                total += self.compare(wanted.view(), found.view(), path, *sample, first)?.value.total();
                count += rows.len();
            }
        }
        Ok(total / (count as f64).max(1.0))
    }

    /// The divergence of every row from its own, which are summed in their order however many threads there are, and its slopes.
    /// The rows are those of a sample's tokens from number `first` on, `path` is where the other network lies.
    ///
    /// # Errors
    /// When one of both is no number.
    pub(super) fn compare(
        &self,
        wanted: ArrayView2<'_, f32>,
        found: ArrayView2<'_, f32>,
        path: &Path,
        sample: Sample<'_>,
        first: usize,
    ) -> Result<LossGrad, PipelineError> {
        let advice = "leave this sample out";
        let learning = "if that came with learning, give a lower rate; else leave this sample out";
        for (logits, path, advice) in [(wanted, self.checkpoint.path(), advice), (found, path, learning)] {
            if let Some(bad) = logits.to_slice().and_then(first_non_finite) {
                let token = first + bad.index / logits.ncols().max(1);
                let reason = format!(
                    "predicts {} after token {token} of sample {}, counted from 0: {advice}",
                    bad.value, sample.number
                );
                return Err(PipelineError::Distill { path: path.to_path_buf(), reason });
            }
        }
        let loss = DivergenceLoss::new(Divergence::ForwardKl, 1.0).reduction(Reduction::None);
        loss.evaluate(found, wanted, None).map_err(|error| PipelineError::Distill {
            path: path.to_path_buf(),
            reason: format!("sample {}: {error}", sample.number),
        })
    }
}
