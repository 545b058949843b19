use std::hint::black_box;
use std::time::Instant;

use ndarray::Array2;

use super::memory::PeakMemory;
use super::statistics::{Estimate, quantile};
use super::{Better, EvaluateError, Score, Task};
use crate::model::{Classifier, LanguageModel, Network, SentenceEncoder};

const TASK: &str = "latency";

/// How long a network takes for one pass, and how much memory.
///
/// The input is made up, always the same, and of the size that is asked for. After [`warmup`](Self::warmup) passes that
/// are not counted, [`rounds`](Self::rounds) are timed one by one, on the rayon pool of the calling thread. The scores:
///
/// - `latency_p50` and `latency_p95`: milliseconds of a pass, their median and 95th percentile. Their 95 % intervals end
///   at two of the times, found by the binomial distribution (order statistics); too few rounds for that, as 30 are for
///   the upper end of p95, end at the slowest.
/// - `tokens_per_second` of a language model that reads `length` tokens (prefill), `samples_per_second` of an encoder and
///   of a classifier: what goes through in a pass / `latency_p50`.
/// - `peak_memory`: the most bytes of the whole process that were in memory meanwhile, weights and mapped files included.
///   Only where Linux tells (`VmHWM`, reset through `/proc/self/clear_refs`); elsewhere there is no such score. A single
///   reading: its interval is the value itself.
///
/// The batch and length stand in the score's task: `latency (batch 8 × 128 tokens)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Inputs that go through at once; 1 for a language model, which takes one sequence at a time.
    pub batch: usize,
    /// Tokens of a sequence; a classifier has none.
    pub length: usize,
    /// Passes before the first that counts.
    pub warmup: usize,
    /// Passes that are timed.
    pub rounds: usize,
}

impl Default for Latency {
    /// One input of 128 tokens, thirty times after three that are not counted.
    fn default() -> Self {
        Self { batch: 1, length: 128, warmup: 3, rounds: 30 }
    }
}

impl Task<dyn LanguageModel + '_> for Latency {
    /// # Errors
    /// When the batch is not 1, the sequence is longer than the model takes, or it gives NaN or an infinity.
    fn score(&self, model: &(dyn LanguageModel + '_)) -> Result<Vec<Score>, EvaluateError> {
        if self.batch > 1 {
            let reason =
                format!("a language model takes one sequence at a time, not a batch of {}", self.batch);
            return Err(EvaluateError::task(TASK, reason));
        }
        self.check(Some(model.max_tokens()))?;
        // neighbours differ, and the whole vocabulary is used
        let vocab_size = model.vocab_size().max(1);
        let tokens: Vec<u32> = (0..self.length).map(|i| (i * 7919 % vocab_size) as u32).collect();
        let place = format!("{TASK} (batch 1 × {} tokens)", self.length);
        self.measure(&place, ("tokens_per_second", self.length), || Ok(model.logits(&tokens)?))
    }
}

impl Task<dyn SentenceEncoder + '_> for Latency {
    /// # Errors
    /// When the batch is 0, the sentences are longer than the encoder takes, or it gives NaN or an infinity.
    fn score(&self, encoder: &(dyn SentenceEncoder + '_)) -> Result<Vec<Score>, EvaluateError> {
        self.check(Some(encoder.max_tokens()))?;
        // the one token that every vocabulary has
        let sentence = vec![0; self.length];
        let sentences = vec![sentence.as_slice(); self.batch];
        let place = format!("{TASK} (batch {} × {} tokens)", self.batch, self.length);
        self.measure(&place, ("samples_per_second", self.batch), || Ok(encoder.embed(&sentences)?))
    }
}

impl Task<dyn Classifier + '_> for Latency {
    /// # Errors
    /// When the batch is 0, or the network gives NaN or an infinity.
    fn score(&self, model: &(dyn Classifier + '_)) -> Result<Vec<Score>, EvaluateError> {
        self.check(None)?;
        let (scale, features) = (model.pixel_scale(), model.input_features());
        let pixel = |(row, column)| (row * 31 + column * 7) % 256;
        let inputs = Array2::from_shape_fn((self.batch, features), |at| pixel(at) as f32 * scale);
        let place = format!("{TASK} (batch {})", self.batch);
        self.measure(&place, ("samples_per_second", self.batch), || Ok(model.class_logits(inputs.view())?))
    }
}

impl Task<Network> for Latency {
    /// # Errors
    /// As for the kind of network that it is.
    fn score(&self, network: &Network) -> Result<Vec<Score>, EvaluateError> {
        if let Ok(model) = network.language_model() {
            self.score(model)
        } else if let Ok(encoder) = network.sentence_encoder() {
            self.score(encoder)
        } else {
            self.score(network.classifier()?)
        }
    }
}

impl Latency {
    fn check(&self, max_tokens: Option<usize>) -> Result<(), EvaluateError> {
        let Self { batch, length, rounds, .. } = *self;
        let refuse = |reason: String| Err(EvaluateError::task(TASK, reason));
        if batch == 0 || rounds == 0 {
            return refuse(format!(
                "{rounds} rounds of a batch of {batch} take no time: give at least 1 of each"
            ));
        }
        match max_tokens {
            Some(limit) if length == 0 || length > limit => refuse(format!(
                "a sequence of {length} tokens does not fit the network, which takes 1 to {limit}"
            )),
            _ => Ok(()),
        }
    }

    /// Times a pass, through which so many of what the throughput counts go.
    fn measure(
        &self,
        task: &str,
        (throughput, items): (&str, usize),
        pass: impl Fn() -> Result<Array2<f32>, EvaluateError>,
    ) -> Result<Vec<Score>, EvaluateError> {
        let memory = PeakMemory::reset();
        let output = pass()?;
        if let Some(((row, column), value)) = output.indexed_iter().find(|(_, value)| !value.is_finite()) {
            let place =
                format!("row {row}, column {column} (counted from 0) of its output for a made-up input");
            return Err(EvaluateError::NonFinite { network: "the network", place, value: *value });
        }
        for _ in 1..self.warmup {
            black_box(pass()?);
        }
        let mut seconds = Vec::with_capacity(self.rounds);
        for _ in 0..self.rounds {
            let start = Instant::now();
            black_box(pass()?);
            // a clock that stands still must not make a throughput infinite
            seconds.push(start.elapsed().as_secs_f64().max(1e-9));
        }
        let peak = memory.and_then(|memory| memory.peak());
        seconds.sort_by(f64::total_cmp);
        let [p50, p95] = [0.5, 0.95].map(|share| quantile(&seconds, share));
        let milliseconds = |time: Estimate| time.map(|seconds| 1e3 * seconds);
        let rate = p50.map_down(|seconds| items as f64 / seconds);
        let unit = throughput.replace("_per_second", "/s");
        let mut scores = vec![
            Score::new((task, "latency_p50"), milliseconds(p50), "ms", Better::Lower, self.rounds),
            Score::new((task, "latency_p95"), milliseconds(p95), "ms", Better::Lower, self.rounds),
            Score::new((task, throughput), rate, &unit, Better::Higher, self.rounds),
        ];
        if let Some(bytes) = peak {
            let value = bytes as f64;
            let reading = Estimate { value, interval: [value; 2] };
            scores.push(Score::new((task, "peak_memory"), reading, "bytes", Better::Lower, 1));
        }
        Ok(scores)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;
    use crate::evaluate::testing::{Angles, Bigram, Brightest, refusal};
    use crate::model::ModelError;

    /// Takes 5 ms at least, and every tenth pass 20 ms; fills some memory once.
    #[derive(Default)]
    struct Slow(AtomicUsize);

    impl LanguageModel for Slow {
        fn vocab_size(&self) -> usize {
            3
        }

        fn max_tokens(&self) -> usize {
            64
        }

        fn logits(&self, tokens: &[u32]) -> Result<Array2<f32>, ModelError> {
            assert_eq!((tokens.len(), &tokens[..3]), (40, &[0, 2, 1][..]));
            let pass = self.0.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(if pass % 10 == 9 { 20 } else { 5 }));
            Ok(Array2::zeros((tokens.len(), 3)))
        }
    }

    fn value(scores: &[Score], metric: &str) -> f64 {
        scores.iter().find(|s| s.metric == metric).unwrap_or_else(|| panic!("no {metric}: {scores:?}")).value
    }

    #[test]
    fn passes_are_counted_and_timed() {
        let model = Slow::default();
        let scores = Latency { length: 40, warmup: 3, rounds: 20, ..Latency::default() }
            .score(&model as &dyn LanguageModel)
            .unwrap();
        assert_eq!(model.0.into_inner(), 23);
        let [p50, p95] = ["latency_p50", "latency_p95"].map(|metric| value(&scores, metric));
        // a busy machine can be slower, but not faster; the 95th percentile lies between the slow rounds
        assert!(p50 >= 5.0 && p95 >= 20.0, "{scores:?}");
        let rate = value(&scores, "tokens_per_second");
        assert!((rate - 40.0 / (p50 / 1e3)).abs() < 1e-6 * rate, "{scores:?}");
        for score in &scores {
            assert_eq!(score.task, "latency (batch 1 × 40 tokens)");
            assert!(score.interval[0] <= score.value && score.value <= score.interval[1], "{score:?}");
        }
        assert_eq!((scores[2].unit.as_str(), scores[2].better), ("tokens/s", Better::Higher));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_most_memory_is_that_of_the_passes() {
        /// Holds 200 MB during a pass, and nothing afterwards.
        struct Large;
        impl Classifier for Large {
            fn input_features(&self) -> usize {
                1
            }
            fn pixel_scale(&self) -> f32 {
                1.0
            }
            fn class_logits(&self, x: ndarray::ArrayView2<'_, f32>) -> Result<Array2<f32>, ModelError> {
                black_box(vec![1u8; 200_000_000]);
                Ok(x.to_owned())
            }
        }
        let Some(memory) = PeakMemory::reset() else { return };
        let before = memory.peak().unwrap() as f64;
        let latency = Latency { rounds: 2, ..Latency::default() };
        let large = value(&latency.score(&Large as &dyn Classifier).unwrap(), "peak_memory");
        assert!(large > before.max(200e6) && large < before + 2e9, "{before} {large}");
    }

    #[test]
    fn encoders_and_classifiers_take_batches() {
        let latency = Latency { batch: 6, length: 9, warmup: 1, rounds: 2 };
        let encoder = Angles::default();
        let scores = latency.score(&encoder as &dyn SentenceEncoder).unwrap();
        assert_eq!(encoder.lengths.into_inner().unwrap(), [[9; 6], [9; 6], [9; 6]]);
        assert_eq!(scores[2].task, "latency (batch 6 × 9 tokens)");
        let rate = value(&scores, "samples_per_second");
        assert!((rate - 6e3 / value(&scores, "latency_p50")).abs() < 1e-6 * rate, "{scores:?}");
        let scores = latency.score(&Brightest(4) as &dyn Classifier).unwrap();
        assert_eq!((scores[2].task.as_str(), scores[2].unit.as_str()), ("latency (batch 6)", "samples/s"));
    }

    #[test]
    fn what_cannot_be_timed_is_refused() {
        let latency = Latency::default();
        let model = Bigram::uniform(5).max_tokens(100);
        let model = &model as &dyn LanguageModel;
        for (latency, parts) in [
            (Latency { batch: 2, length: 4, ..latency }, "one sequence at a time, not a batch of 2"),
            (
                Latency { length: 101, ..latency },
                "a sequence of 101 tokens does not fit the network, which takes 1 to 100",
            ),
            (Latency { length: 0, ..latency }, "a sequence of 0 tokens"),
            (Latency { rounds: 0, ..latency }, "0 rounds of a batch of 1"),
        ] {
            let line = refusal(latency.score(model));
            assert!(line.starts_with("task `latency`: ") && line.contains(parts), "{line}");
        }
        let line = refusal(Latency { batch: 0, ..latency }.score(&Brightest(4) as &dyn Classifier));
        assert!(line.contains("30 rounds of a batch of 0"), "{line}");
        let broken = Bigram::new(5, |after, token| if (after, token) == (4, 2) { f32::NAN } else { 0.0 });
        // 7919 · 1 % 5 = 4: the second token
        let line = refusal(latency.score(&broken as &dyn LanguageModel));
        assert!(line.contains("NaN for row 1, column 2 (counted from 0)"), "{line}");
    }
}
