use super::statistics::{clustered_mean, clustered_share, quantile};
use super::windows::Window;
use super::{Better, EvaluateError, Score, Task, Windows};
use crate::distill::Softmax;
use crate::model::LanguageModel;

const TASK: &str = "agreement";

/// How closely a language model follows another one, such as the one that it was compressed from.
///
/// For every token that [`Perplexity`](super::Perplexity) would score, p is what the reference predicts and q what the
/// model does. The scores:
///
/// - `kl`: mean of KL(p ‖ q) = Σ p ln(p / q) in nats (Kullback & Leibler 1951): 0 if nothing changed;
/// - `kl_p999`: the divergence that one token in a thousand exceeds;
/// - `top1_agreement`: how often both find the same token likeliest, in percent. Among equals the first counts.
///
/// Unlike perplexity this sees every change, not only what happens to the token that follows, so it needs much less text.
/// Softmax and sums are taken in `f64`. Both models run window by window, and no more than one window's logits of each
/// are held. Intervals of the means let tokens of one window depend on each other, as those of perplexity do.
pub struct Agreement<'a> {
    /// What the model is held against.
    pub reference: &'a dyn LanguageModel,
    /// The tokens of each text; windows do not go from one into the next.
    pub texts: Vec<Vec<u32>>,
    /// How it is cut.
    pub windows: Windows,
}

impl<M: LanguageModel + ?Sized> Task<M> for Agreement<'_> {
    /// # Errors
    /// As for [`Perplexity`](super::Perplexity), for either model; and when their vocabularies differ.
    fn score(&self, model: &M) -> Result<Vec<Score>, EvaluateError> {
        let (own, reference) = (model.vocab_size(), self.reference.vocab_size());
        if own != reference {
            let reason =
                format!("the model has a vocabulary of {own} tokens, but the reference one of {reference}");
            return Err(EvaluateError::task(TASK, reason));
        }
        self.windows.check(TASK, &self.texts, self.reference)?;
        self.windows.check(TASK, &self.texts, model)?;
        let compare = |window: Window<'_>| {
            let expected = window.logits(TASK, self.reference)?;
            let actual = window.logits(TASK, model)?;
            let logits = [("the reference", &expected), ("the network", &actual)];
            window.each_target(logits, |[p, q], _| (divergence(p, q), f64::from(top(p) == top(q))))
        };
        let (mut divergences, mut agreements) = (Vec::new(), Vec::new());
        for window in self.windows.cut(&self.texts) {
            let (kl, same): (Vec<_>, Vec<_>) = compare(window)?.into_iter().unzip();
            divergences.push(kl);
            agreements.push(same);
        }
        let mut sorted = divergences.concat();
        sorted.sort_by(f64::total_cmp);
        let (nats, lower, samples) = ("nats", Better::Lower, sorted.len());
        let kl = clustered_mean(&divergences).clamp(0.0, f64::INFINITY);
        let same = clustered_share(&agreements).map(|share| 100.0 * share);
        Ok(vec![
            Score::new((TASK, "kl"), kl, nats, lower, samples),
            Score::new((TASK, "kl_p999"), quantile(&sorted, 0.999), nats, lower, samples),
            Score::new((TASK, "top1_agreement"), same, "%", Better::Higher, samples),
        ])
    }
}

/// KL(p ‖ q) in nats.
fn divergence(p: &Softmax, q: &Softmax) -> f64 {
    let terms = p.iter().zip(q.iter()).map(|((p, log_p), (_, log_q))| p * (log_p - log_q));
    // rounding can take a sum of almost nothing below zero
    terms.sum::<f64>().max(0.0)
}

/// The likeliest token.
fn top(p: &Softmax) -> Option<usize> {
    p.shifted.iter().position(|logit| *logit == 0.0)
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;
    use crate::evaluate::testing::{Bigram, refusal};

    fn agreement<'a>(reference: &'a Bigram, tokens: &[u32], windows: Windows) -> Agreement<'a> {
        Agreement { reference, texts: vec![tokens.to_vec()], windows }
    }

    #[test]
    fn divergences_by_hand() {
        // the reference says 3/4 and 1/4 after 0, the model 1/2 and 1/2; after 1 both are sure, but of other tokens
        let reference = Bigram::new(2, |after, token| match (after, token) {
            (0, 0) => 3f32.ln(),
            (1, 0) => 4f32.ln(),
            _ => 0.0,
        });
        let model = Bigram::new(2, |after, token| if (after, token) == (1, 1) { 4f32.ln() } else { 0.0 });
        // Σ p ln(p/q): 3/4 ln(3/2) + 1/4 ln(1/2), and 4/5 ln 4 − 1/5 ln 4
        let [zero, one] = [0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln(), 0.6 * 4f64.ln()];
        // predictions after 0 0 0 | 1 1 | –
        let task = agreement(&reference, &[0, 0, 0, 1, 1, 1, 1, 0], Windows::of(4));
        let [kl, worst, same] = &task.score(&model).unwrap()[..] else { panic!() };
        assert_eq!((kl.metric.as_str(), kl.samples), ("kl", 6));
        assert_relative_eq!(kl.value, (3.0 * zero + 3.0 * one) / 6.0, max_relative = 1e-6);
        assert_relative_eq!(worst.value, one, max_relative = 1e-6);
        // after 0 the model finds both as likely, and the first counts: as the reference; after 1 never
        assert_eq!((same.metric.as_str(), same.value, same.unit.as_str()), ("top1_agreement", 50.0, "%"));
        assert_eq!((kl.better, same.better), (Better::Lower, Better::Higher));
    }

    #[test]
    fn a_model_agrees_with_itself() {
        let model = Bigram::new(300, |after, token| ((after * 31 + token * 17) % 101) as f32 / 7.0);
        let tokens: Vec<u32> = (0..80).map(|i| i * 13 % 300).collect();
        let scores = agreement(&model, &tokens, Windows::of(16)).score(&model).unwrap();
        assert_eq!(scores.iter().map(|s| s.value).collect::<Vec<_>>(), [0.0, 0.0, 100.0]);
        assert_eq!((scores[0].interval, scores[2].interval[1]), ([0.0, 0.0], 100.0));
        // 75 of 75: statsmodels proportion_confint(75, 75, method="wilson")[0]
        assert_relative_eq!(
            scores[2].interval[0],
            100.0 * 75.0 / (75.0 + 1.959_963_985f64.powi(2)),
            max_relative = 1e-9
        );
    }

    #[test]
    fn models_that_cannot_be_compared_are_refused() {
        let (five, six) = (Bigram::uniform(5), Bigram::uniform(6));
        let line = refusal(agreement(&five, &[1, 2, 3], Windows::of(3)).score(&six));
        assert!(line.contains("vocabulary of 6 tokens, but the reference one of 5"), "{line}");
        let short = Bigram::uniform(5).max_tokens(4);
        for (reference, model) in [(&five, &short), (&short, &five)] {
            let line = refusal(agreement(reference, &[1, 2, 3], Windows::of(6)).score(model));
            assert!(line.contains("more than the 4 tokens"), "{line}");
        }
        let broken = Bigram::new(5, |_, token| if token == 3 { f32::INFINITY } else { 0.0 });
        let line = refusal(agreement(&broken, &[1, 2, 3], Windows::of(3)).score(&five));
        assert!(line.contains("the reference gives inf for token id 3"), "{line}");
        let line = refusal(agreement(&five, &[1, 2, 3], Windows::of(3)).score(&broken));
        assert!(line.contains("the network gives inf for token id 3"), "{line}");
    }
}
