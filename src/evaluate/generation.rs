use std::time::{Duration, Instant};

use super::statistics::{Estimate, quantile};
use super::{Better, EvaluateError, Score, Task};
use crate::model::{Decoder, LanguageModel, Network, Sampler, Sampling};

const TASK: &str = "generation";

/// How fast a decoder goes on with texts, token by token, from its cache of keys and values for each.
///
/// The prompt is made up, and the likeliest token is taken each time. A round is [`length`](Self::length) tokens of every text
/// after the first, which comes with the prompt; one round before the first that counts is not timed. The scores are
/// `tokens_per_second` and, for the prompts, which are read one after the other, `prefill_tokens_per_second`: medians of the
/// rounds, with the slowest and the fastest as interval. Tokens of all texts count. For several texts open the decoder with
/// [`PlainWeights::Packed`](crate::PlainWeights::Packed), as one would to serve them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// Tokens of the prompt; at least 1.
    pub prompt: usize,
    /// Tokens that are timed in a round; at least 1.
    pub length: usize,
    /// Rounds that are timed.
    pub rounds: usize,
    /// Texts that go on at the same time; at least 1.
    pub batch: usize,
}

impl Default for Generation {
    /// 128 tokens of one text after a prompt of 16, five times.
    fn default() -> Self {
        Self { prompt: 16, length: 128, rounds: 5, batch: 1 }
    }
}

impl Task<Decoder> for Generation {
    /// # Errors
    /// When there is nothing to time, prompt and tokens are more than the model takes, or it gives NaN.
    fn score(&self, model: &Decoder) -> Result<Vec<Score>, EvaluateError> {
        let Self { prompt, length, rounds, batch } = *self;
        let limit = model.max_tokens();
        if prompt == 0 || length == 0 || rounds == 0 || batch == 0 {
            let reason = format!(
                "{rounds} rounds of {length} tokens of {batch} texts after a prompt of {prompt} take no time: give at least 1 \
                 of each"
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
        let mut likeliest = Sampler::new(Sampling::Greedy, 0)?;
        let (mut prefill, mut rates) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
        for round in 0..=rounds {
            let start = Instant::now();
            let (mut caches, mut last) = (Vec::new(), Vec::new());
            for _ in 0..batch {
                let mut cache = model.cache();
                last.push(likeliest.choose(&model.extend(&mut cache, &tokens)?, 0)?);
                caches.push(cache);
            }
            let first = Instant::now();
            for _ in 0..length {
                let logits = model.extend_each(&mut caches, &last)?;
                for (token, logits) in last.iter_mut().zip(logits.rows()) {
                    *token = likeliest.choose(logits.as_slice().unwrap_or_default(), 0)?;
                }
            }
            // a clock that stands still must not make a throughput infinite
            let rate = |tokens: usize, time: Duration| (batch * tokens) as f64 / time.as_secs_f64().max(1e-9);
            if round > 0 {
                prefill.push(rate(prompt, first - start));
                rates.push(rate(length, first.elapsed()));
            }
        }
        let task = match batch {
            1 => format!("{TASK} ({length} tokens after {prompt})"),
            batch => format!("{TASK} ({batch} × {length} tokens after {prompt})"),
        };
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
            (Generation { batch: 0, ..Generation::default() }, "give at least 1 of each"),
            (Generation { prompt: 2, length: limit - 1, rounds: 1, batch: 1 }, "do not fit the network"),
        ] {
            let line = task.score(&model).unwrap_err().to_string();
            assert!(line.starts_with("task `generation`: ") && line.contains(part), "{line}");
        }
        for (batch, task) in
            [(1, "generation (62 tokens after 2)"), (3, "generation (3 × 62 tokens after 2)")]
        {
            let scores = Generation { prompt: 2, length: limit - 2, rounds: 3, batch }.score(&model).unwrap();
            assert_eq!(scores.len(), 2);
            for score in scores {
                assert_eq!((score.task.as_str(), score.samples), (task, 3));
                assert!(score.interval[0] <= score.value && score.value <= score.interval[1]);
            }
        }
    }
}
