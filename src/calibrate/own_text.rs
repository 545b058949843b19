use std::ops::ControlFlow;

use ndarray::Array1;
use rayon::prelude::*;

use super::{CalibrateError, Samples};
use crate::kernels::in_pool;
use crate::model::{Cache, Decoder, LanguageModel, Sampler, Sampling};

/// Samples that a decoder draws from what it has learned: calibration where no text is at hand that is like what it will see.
///
/// Liu et al., "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models" (2023), train with such text, and find
/// it better than a part of what the model was trained with.
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use tersor::{Checkpoint, Decoder, Execution, OwnText, PlainWeights};
///
/// let execution = Execution { plain_weights: PlainWeights::Packed, ..Execution::default() };
/// let model = Decoder::open(&Checkpoint::open("SmolLM2-135M")?, execution)?;
/// // the token that begins and ends texts of this model
/// let text = OwnText { start: vec![0], ends: vec![0], ..OwnText::default() };
/// let samples = text.draw(&model, &mut |_| ControlFlow::Continue(()))?;
/// assert!(samples.is_some_and(|samples| samples.token_count() == 128 * 512));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct OwnText {
    /// Number of samples; at least 1.
    pub samples: usize,
    /// Tokens of each; at least 1.
    pub context: usize,
    /// What the model is given to begin with, which is not part of the sample: the token that begins texts.
    pub start: Vec<u32>,
    /// Tokens that end a text. The sample then goes on with [`start`](Self::start), unless that is how the text has ended, and
    /// another text.
    pub ends: Vec<u32>,
    /// What logits are divided by; above 0.
    pub temperature: f64,
    /// Tokens are drawn from the likeliest that together have this probability, in (0, 1].
    pub top_p: f64,
    /// The same seed gives the same samples, as long as there are as many and as many at once: each has random numbers of its own,
    /// but the last bits of a product can depend on its rows.
    pub seed: u64,
    /// Samples that are drawn at the same time, at least 1: every token then reads all weights once for all of them. Each takes
    /// memory for its keys and values.
    pub at_once: usize,
}

impl Default for OwnText {
    /// 128 samples of 512 tokens as likely as the model says, 16 at a time.
    fn default() -> Self {
        Self {
            samples: 128,
            context: 512,
            start: Vec::new(),
            ends: Vec::new(),
            temperature: 1.0,
            top_p: 1.0,
            seed: 0,
            at_once: 16,
        }
    }
}

impl OwnText {
    /// Draws the samples. `progress` is told after each step how many tokens there are, and may end it: then there is nothing.
    ///
    /// # Errors
    /// When there is nothing to draw or to begin with, start and sample together are longer than the model takes, or a token is
    /// beyond its vocabulary; when temperature or probability make no sense, or the network gives NaN or an infinity.
    pub fn draw(
        &self,
        model: &Decoder,
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Samples>, CalibrateError> {
        self.check(model)?;
        let mut start = model.cache();
        let after_start = Array1::from(model.extend(&mut start, &self.start)?);
        let mut all = Vec::new();
        for first in (0..self.samples).step_by(self.at_once) {
            let numbers = first as u64..(first + self.at_once.min(self.samples - first)) as u64;
            let mut writers =
                numbers.map(|number| Writer::new(self, number)).collect::<Result<Vec<_>, _>>()?;
            let mut caches: Vec<Cache> = vec![start.clone(); writers.len()];
            for step in 0..self.context {
                let last: Vec<u32> =
                    writers.iter().filter_map(|writer| writer.text.last().copied()).collect();
                let found = if step > 0 { Some(model.extend_each(&mut caches, &last)?) } else { None };
                let logits = |row| found.as_ref().map_or(after_start.view(), |found| found.row(row));
                let each = writers.par_iter_mut().enumerate();
                in_pool(|| {
                    each.try_for_each(|(row, writer)| {
                        writer.go_on(logits(row).to_slice().unwrap_or_default())
                    })
                })?;
                if progress((all.len() * self.context) + (step + 1) * writers.len()).is_break() {
                    return Ok(None);
                }
            }
            all.extend(writers.into_iter().map(|writer| writer.text));
        }
        Samples::tokens(all).map(Some)
    }

    fn check(&self, model: &Decoder) -> Result<(), CalibrateError> {
        let refuse = |reason: String| Err(CalibrateError::Samples { path: None, reason });
        let Self { samples, context, at_once, .. } = *self;
        if samples == 0 || context == 0 || at_once == 0 {
            return refuse(format!(
                "{samples} samples of {context} tokens, {at_once} at once, are no text: give at least 1 of each"
            ));
        }
        if self.start.is_empty() {
            return refuse("a model needs a token to begin with: give the one that begins its texts".into());
        }
        let (tokens, limit) = (self.start.len().saturating_add(context), model.max_tokens());
        if tokens > limit {
            return refuse(format!(
                "samples of {context} tokens after {} to begin with are longer than the {limit} that the model takes: \
                 draw shorter ones",
                self.start.len()
            ));
        }
        Ok(())
    }
}

/// One sample on its way.
struct Writer<'a> {
    number: u64,
    options: &'a OwnText,
    text: Vec<u32>,
    /// Tokens of the start that are still to come after a text has ended.
    pending: &'a [u32],
    sampler: Sampler,
}

impl<'a> Writer<'a> {
    fn new(options: &'a OwnText, number: u64) -> Result<Self, CalibrateError> {
        let OwnText { temperature, top_p, seed, .. } = *options;
        let sampler = Sampler::new(Sampling::Nucleus { temperature, top_p, seed }, number)?;
        Ok(Self { number, options, text: Vec::with_capacity(options.context), pending: &[], sampler })
    }

    fn go_on(&mut self, logits: &[f32]) -> Result<(), CalibrateError> {
        if let Some((next, later)) = self.pending.split_first() {
            self.pending = later;
            self.text.push(*next);
            return Ok(());
        }
        let token = self.sampler.choose(logits, self.number as usize)?;
        self.text.push(token);
        let OwnText { start, ends, .. } = self.options;
        if ends.contains(&token) && !self.text.ends_with(start) {
            self.pending = start;
        }
        Ok(())
    }
}
