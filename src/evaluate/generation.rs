use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::statistics::{Estimate, quantile};
use super::{Better, EvaluateError, Score, Task};
use crate::model::{Decoder, GenerateOptions, LanguageModel, Network};

const TASK: &str = "generation";

/// How fast a decoder goes on with a text, token by token, from its cache of keys and values.
///
/// The prompt is made up, and the likeliest token is taken each time. A round is [`length`](Self::length) tokens after the
/// first, which comes with the prompt; one round before the first that counts is not timed. The scores are `tokens_per_second`
/// and, for the prompt, `prefill_tokens_per_second`: medians of the rounds, with the slowest and the fastest as interval.
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
        let (mut prefill, mut rates) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
        for round in 0..=rounds {
            let (start, mut first) = (Instant::now(), None);
            model.generate(&tokens, &options, &mut |_| {
                first.get_or_insert_with(Instant::now);
                ControlFlow::Continue(())
            })?;
            // a clock that stands still must not make a throughput infinite
            let seconds = |time: Duration| time.as_secs_f64().max(1e-9);
            let first = first.unwrap_or(start);
            if round > 0 {
                prefill.push(prompt as f64 / seconds(first - start));
                rates.push(length as f64 / seconds(first.elapsed()));
            }
        }
        let task = format!("{TASK} ({length} tokens after {prompt})");
        let score = |metric, mut rates: Vec<f64>| {
            rates.sort_by(f64::total_cmp);
            let interval = [rates[0], rates[rates.len() - 1]];
            let median = Estimate { value: quantile(&rates, 0.5).value, interval };
            Score::new((&task, metric), median, "tokens/s", Better::Higher, rounds)
        };
        Ok(vec![score("tokens_per_second", rates), score("prefill_tokens_per_second", prefill)])
    }
}

impl Task<Network> for Generation {
    /// # Errors
    /// When the network is no decoder, and as for that.
    fn score(&self, network: &Network) -> Result<Vec<Score>, EvaluateError> {
        self.score(network.decoder()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::model::Execution;

    #[test]
    fn what_takes_no_time_or_does_not_fit_is_refused() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/golden/transformers/llama");
        let model = Decoder::open(&Checkpoint::open(folder).unwrap(), Execution::default()).unwrap();
        let limit = model.max_tokens();
        for (task, part) in [
            (Generation { prompt: 0, ..Generation::default() }, "give at least 1 of each"),
            (Generation { length: 0, ..Generation::default() }, "give at least 1 of each"),
            (Generation { rounds: 0, ..Generation::default() }, "give at least 1 of each"),
            (Generation { prompt: 2, length: limit - 1, rounds: 1 }, "do not fit the network"),
        ] {
            let line = task.score(&model).unwrap_err().to_string();
            assert!(line.starts_with("task `generation`: ") && line.contains(part), "{line}");
        }
        let scores = Generation { prompt: 2, length: limit - 2, rounds: 3 }.score(&model).unwrap();
        assert_eq!(scores.len(), 2);
        assert!(
            scores.iter().all(|s| s.samples == 3 && s.interval[0] <= s.value && s.value <= s.interval[1])
        );
    }
}
