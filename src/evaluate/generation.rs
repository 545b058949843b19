use std::ops::ControlFlow;
use std::time::Instant;

use super::statistics::{Estimate, quantile};
use super::{Better, EvaluateError, Score, Task};
use crate::model::{Decoder, GenerateOptions, LanguageModel, Network};

const TASK: &str = "generation";

/// How fast a decoder goes on with a text, token by token, from its cache of keys and values.
///
/// The prompt is made up, and the likeliest token is taken each time. A round is [`length`](Self::length) tokens after the
/// first, which comes with the prompt; one round before the first that counts is not timed. The score is `tokens_per_second`: the
/// median of the rounds, and the slowest and fastest round as its interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// Tokens of the prompt; at least 1.
    pub prompt: usize,
    /// Tokens that are timed in a round; at least 1.
    pub length: usize,
    /// Rounds that are timed.
    pub rounds: usize,
}

impl Default for Generation {
    /// 128 tokens after a prompt of 16, five times.
    fn default() -> Self {
        Self { prompt: 16, length: 128, rounds: 5 }
    }
}

impl Task<Decoder> for Generation {
    /// # Errors
    /// When there is nothing to time, prompt and tokens are more than the model takes, or it gives NaN.
    fn score(&self, model: &Decoder) -> Result<Vec<Score>, EvaluateError> {
        let Self { prompt, length, rounds } = *self;
        let limit = model.max_tokens();
        if prompt == 0 || length == 0 || rounds == 0 {
            let reason = format!(
                "{rounds} rounds of {length} tokens after a prompt of {prompt} take no time: give at least 1 of each"
            );
            return Err(EvaluateError::task(TASK, reason));
        }
        if prompt.saturating_add(length) > limit {
            let reason = format!(
                "a prompt of {prompt} tokens and {length} more do not fit the network, which takes {limit}"
            );
            return Err(EvaluateError::task(TASK, reason));
        }
        let vocab_size = model.vocab_size();
        let tokens: Vec<u32> = (0..prompt).map(|i| (i * 7919 % vocab_size) as u32).collect();
        let options = GenerateOptions { max_new_tokens: length + 1, ..GenerateOptions::default() };
        let mut rates = Vec::with_capacity(rounds);
        for round in 0..=rounds {
            let mut first = None;
            model.generate(&tokens, &options, &mut |_| {
                first.get_or_insert_with(Instant::now);
                ControlFlow::Continue(())
            })?;
            // a clock that stands still must not make a throughput infinite
            let seconds = first.map_or(0.0, |start| start.elapsed().as_secs_f64()).max(1e-9);
            if round > 0 {
                rates.push(length as f64 / seconds);
            }
        }
        rates.sort_by(f64::total_cmp);
        let median = quantile(&rates, 0.5).value;
        let interval = [rates[0], rates[rates.len() - 1]];
        let estimate = Estimate { value: median, interval };
        let task = format!("{TASK} ({length} tokens after {prompt})");
        Ok(vec![Score::new((&task, "tokens_per_second"), estimate, "tokens/s", Better::Higher, rounds)])
    }
}

impl Task<Network> for Generation {
    /// # Errors
    /// When the network is no decoder, and as for that.
    fn score(&self, network: &Network) -> Result<Vec<Score>, EvaluateError> {
        self.score(network.decoder()?)
    }
}
