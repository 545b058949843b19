use super::statistics::clustered_mean;
use super::windows::Window;
use super::{Better, EvaluateError, Score, Task, Windows};
use crate::model::LanguageModel;

const TASK: &str = "perplexity";

/// How surprised a language model is by a text.
///
/// Every token costs `−ln p(token | tokens before it in its window)` nats, with the softmax taken in `f64`. The scores
/// are `nats_per_token`, the mean m of these, and `perplexity` = eᵐ (Jelinek, Mercer, Bahl & Baker 1977), which is 1 for
/// a model that knows the text and the size of the vocabulary for one that guesses. The number depends on the
/// tokenizer and on [`Windows`]: compare models only under the same ones.
///
/// The 95 % interval lets tokens of one window depend on each other: it comes from the spread between windows
/// (cluster-robust standard error, Student's t with one degree of freedom less than windows). With a single window
/// there is no such spread; then tokens are taken as independent, and the interval is too narrow. It tells how much
/// another text of the kind would differ; two models on the same text differ by much less than two texts.
///
/// ```no_run
/// use tersor::evaluate::{Perplexity, Windows};
/// use tersor::{Checkpoint, Execution, Network, Task, Tokenizer};
///
/// let checkpoint = Checkpoint::open("SmolLM2-135M")?;
/// let network = Network::open(&checkpoint, Execution::default())?;
/// let tokens = Tokenizer::of(&checkpoint)?.encode("Once upon a time …", false)?;
/// for score in (Perplexity { texts: vec![tokens], windows: Windows::of(512) }).score(&network)? {
///     println!("{} {:.3}", score.metric, score.value);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Perplexity {
    /// The tokens of each text; windows do not go from one into the next.
    pub texts: Vec<Vec<u32>>,
    /// How it is cut.
    pub windows: Windows,
}

impl<M: LanguageModel + ?Sized> Task<M> for Perplexity {
    /// # Errors
    /// When the text has nothing to score, the windows are longer than the model takes, a token is beyond its vocabulary,
    /// or it gives NaN or an infinity.
    fn score(&self, model: &M) -> Result<Vec<Score>, EvaluateError> {
        self.windows.check(TASK, &self.texts, model)?;
        let nats = |window: Window<'_>| {
            let logits = window.logits(TASK, model)?;
            window.each_target([("the network", &logits)], |[softmax], target| -softmax.log_prob(target))
        };
        let nats: Vec<_> = self.windows.cut(&self.texts).map(nats).collect::<Result<_, _>>()?;
        let samples = nats.iter().map(Vec::len).sum();
        let mean = clustered_mean(&nats).clamp(0.0, f64::INFINITY);
        Ok(vec![
            Score::new((TASK, "perplexity"), mean.map(f64::exp), "", Better::Lower, samples),
            Score::new((TASK, "nats_per_token"), mean, "nats", Better::Lower, samples),
        ])
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;
    use crate::evaluate::testing::{Bigram, refusal};

    fn scores(model: &Bigram, tokens: &[u32], windows: Windows) -> Vec<Score> {
        Perplexity { texts: vec![tokens.to_vec()], windows }.score(model).unwrap()
    }

    #[test]
    fn guessing_costs_the_whole_vocabulary() {
        let tokens: Vec<u32> = (0..100).map(|i| i * 7 % 23).collect();
        for (windows, samples) in [
            (Windows::of(10), 90),
            (Windows { stride: 5, ..Windows::of(10) }, 99),
            (Windows { bos: Some(0), ..Windows::of(10) }, 100),
        ] {
            let [perplexity, nats] = &scores(&Bigram::uniform(23), &tokens, windows)[..] else { panic!() };
            assert_relative_eq!(perplexity.value, 23.0, max_relative = 1e-14);
            assert_relative_eq!(nats.value, 23f64.ln(), max_relative = 1e-14);
            assert_eq!((perplexity.samples, nats.samples), (samples, samples));
            assert_relative_eq!(perplexity.interval[0], 23.0, max_relative = 1e-12);
        }
    }

    #[test]
    fn knowing_costs_nothing() {
        // the next token is always one more
        let next = |after: u32, token: u32| if token == (after + 1) % 11 { 1e4 } else { 0.0 };
        let tokens: Vec<u32> = (0..40).map(|i| i % 11).collect();
        let scores = scores(&Bigram::new(11, next), &tokens, Windows::of(8));
        assert_eq!((scores[0].value, scores[1].value), (1.0, 0.0));
        assert_eq!(scores[0].interval, [1.0, 1.0]);
    }

    #[test]
    fn probabilities_by_hand() {
        // after 0 the next is 0 with 1/4 and 1 with 3/4; after 1 both are as likely
        let model = Bigram::new(2, |after, token| match (after, token) {
            (0, 1) => 3f32.ln(),
            _ => 0.0,
        });
        // 0→1: 3/4, 1→1: 1/2 | 0→0: 1/4, 0→1: 3/4 | nothing before the last 1
        let tokens = [0, 1, 1, 0, 0, 1, 1];
        let [a, b] = [(4.0 / 3.0f64).ln() + 2f64.ln(), 4f64.ln() + (4.0 / 3.0f64).ln()];
        let scores = scores(&model, &tokens, Windows::of(3));
        assert_eq!(scores[0].samples, 4);
        assert_relative_eq!(scores[1].value, (a + b) / 4.0, max_relative = 1e-7);
        // two windows of two tokens: mean ± t(1) · √(2 · 2 · d²) / 4, where d = (a − b)/2
        let half = 12.706_204_736 * (a - b).abs() / 4.0;
        assert_relative_eq!(scores[1].interval[1], (a + b) / 4.0 + half, max_relative = 1e-6);
        assert_eq!((scores[1].interval[0], scores[0].interval[0]), (0.0, 1.0));
        // with a 0 in front of each: its first token costs 4, 4 and 4/3 times
        let front =
            Perplexity { texts: vec![tokens.to_vec()], windows: Windows { bos: Some(0), ..Windows::of(3) } };
        let nats = &front.score(&model).unwrap()[1];
        assert_eq!(nats.samples, 7);
        let all = a + b + 2.0 * 4f64.ln() + (4.0 / 3.0f64).ln();
        assert_relative_eq!(nats.value, all / 7.0, max_relative = 1e-7);
    }

    #[test]
    fn a_large_vocabulary_loses_nothing() {
        let (size, tokens) = (50_257, [5, 9, 50_256, 0]);
        // one class as likely as all others together
        let model = Bigram::new(size, |_, token| if token == 9 { f32::ln(50_256.0) } else { 0.0 });
        let scores = scores(&model, &tokens, Windows::of(4));
        let rest = (2.0 * 50_256.0f64).ln();
        assert_relative_eq!(scores[1].value, (2f64.ln() + rest + rest) / 3.0, max_relative = 1e-7);
    }

    #[test]
    fn what_cannot_be_scored_is_refused() {
        let model = Bigram::uniform(5).max_tokens(16);
        let refused = |tokens: &[u32], windows: Windows| {
            refusal(Perplexity { texts: vec![tokens.to_vec()], windows }.score(&model))
        };
        let text = [1, 2, 3, 4];
        for (tokens, windows, parts) in [
            (&[][..], Windows::of(4), "a text of 0 tokens has 0 to score"),
            (&[1], Windows::of(4), "a text of 1 tokens has 0 to score"),
            (&[1, 2], Windows::of(4), "a text of 2 tokens has 1 to score"),
            (&text, Windows::of(1), "a context of 1 predicts nothing"),
            (&text, Windows::of(18), "a context of 18 tokens is more than the 16 tokens"),
            (
                &text,
                Windows { bos: Some(0), ..Windows::of(17) },
                "a context of 17 tokens and the token in front",
            ),
            (&text, Windows { stride: 0, ..Windows::of(4) }, "a stride of 0 does not fit a context of 4"),
            (&text, Windows { stride: 5, ..Windows::of(4) }, "a stride of 5 does not fit a context of 4"),
            (&text, Windows { bos: Some(5), ..Windows::of(4) }, "token id 5, put in front"),
            (
                &[1, 2, 5, 3],
                Windows::of(4),
                "token id 5 at position 2 (counted from 0) is beyond the model's vocabulary of 5: tokenizer",
            ),
        ] {
            let line = refused(tokens, windows);
            assert!(line.starts_with("task `perplexity`: ") && line.contains(parts), "{line}");
        }
    }

    #[test]
    fn nan_says_where() {
        let model = Bigram::new(5, |after, token| if (after, token) == (3, 4) { f32::NAN } else { 0.0 });
        let text = Perplexity { texts: vec![vec![0, 1, 2, 0, 1, 3, 2, 1]], windows: Windows::of(4) };
        let line = refusal(text.score(&model));
        assert!(
            line.contains("gives NaN for token id 4 where it predicts token 6 of its text, in window 1"),
            "{line}"
        );
    }

    #[test]
    fn logits_of_another_shape_are_refused() {
        let line = refusal(
            Perplexity { texts: vec![vec![0, 1, 2]], windows: Windows::of(3) }
                .score(&Bigram::uniform(5).misshapen()),
        );
        assert!(line.contains("logits of shape (2, 4), not (2, 5)"), "{line}");
    }
}
