use ndarray::{Array2, ArrayView1};

use super::statistics::{correlation, fisher, ranks};
use super::{Better, EvaluateError, Score, Task};
use crate::model::SentenceEncoder;

const TASK: &str = "sts";

/// Sentences that are embedded at once.
const BATCH: usize = 32;

/// Two sentences and how similar people find them.
#[derive(Debug, Clone, PartialEq)]
pub struct SentencePair {
    /// Their tokens, with those that mark beginning and end as the encoder wants them.
    pub tokens: [Vec<u32>; 2],
    /// How similar they are, on any scale.
    pub similarity: f64,
}

/// How well an encoder's cosine similarities agree with people's (semantic textual similarity).
///
/// The scores are `spearman` and `pearson`: the correlations of `cos(a, b)` with the similarities given, −1 to 1; equal
/// values share their mean rank. Spearman's is the one that STS results are given in (Reimers, Beyer & Gurevych 2016).
/// Their 95 % intervals are Fisher's, with the standard errors `1/√(n−3)` for Pearson's and `√((1 + r²/2)/(n−3))` for
/// Spearman's (Bonett & Wright 2000).
///
/// Sentences go through the encoder in batches of similar length, because short ones wait for the longest of theirs.
/// [`read_sts`](super::read_sts) reads the STS benchmark.
#[derive(Debug, Clone, PartialEq)]
pub struct Similarity {
    /// The pairs; at least 4.
    pub pairs: Vec<SentencePair>,
}

impl<M: SentenceEncoder + ?Sized> Task<M> for Similarity {
    /// # Errors
    /// When there are fewer than 4 pairs, a sentence has no tokens or more than the encoder takes, an embedding holds NaN
    /// or an infinity or is zero, or all pairs are equally similar.
    fn score(&self, encoder: &M) -> Result<Vec<Score>, EvaluateError> {
        let refuse = |reason: String| Err(EvaluateError::task(TASK, reason));
        let samples = self.pairs.len();
        if samples < 4 {
            return refuse(format!("{samples} pairs of sentences are too few: a correlation needs 4"));
        }
        let sentences: Vec<&[u32]> = self.pairs.iter().flat_map(|p| &p.tokens).map(Vec::as_slice).collect();
        let limit = encoder.max_tokens();
        if let Some(index) = sentences.iter().position(|s| s.is_empty() || s.len() > limit) {
            let length = sentences[index].len();
            let place = place(index);
            return refuse(format!(
                "{place} has {length} tokens, but the encoder takes 1 to {limit}: cut it"
            ));
        }
        let given: Vec<f64> = self.pairs.iter().map(|pair| pair.similarity).collect();
        if let Some(index) = given.iter().position(|s| !s.is_finite()) {
            return refuse(format!("the similarity {} of pair {} is no number", given[index], index + 1));
        }
        let embeddings = embed(encoder, &sentences)?;
        let cosines = (0..samples)
            .map(|pair| cosine(embeddings.row(2 * pair), embeddings.row(2 * pair + 1)))
            .collect::<Vec<f64>>();
        if let Some(pair) = cosines.iter().position(|cosine| cosine.is_nan()) {
            return refuse(format!(
                "the embedding of a sentence of pair {} is zero: it has no direction",
                pair + 1
            ));
        }
        let (pearson, spearman) =
            (correlation(&cosines, &given), correlation(&ranks(&cosines), &ranks(&given)));
        let (Some(pearson), Some(spearman)) = (pearson, spearman) else {
            let whose = if given.iter().all(|s| *s == given[0]) { "given" } else { "found" };
            return refuse(format!("all similarities {whose} are the same: nothing correlates with them"));
        };
        let spearman = fisher(spearman, 1.0 + spearman * spearman / 2.0, samples);
        Ok(vec![
            Score::new((TASK, "spearman"), spearman, "", Better::Higher, samples),
            Score::new((TASK, "pearson"), fisher(pearson, 1.0, samples), "", Better::Higher, samples),
        ])
    }
}

/// The embeddings of sentences, in their order.
fn embed<M: SentenceEncoder + ?Sized>(
    encoder: &M,
    sentences: &[&[u32]],
) -> Result<Array2<f32>, EvaluateError> {
    let mut order: Vec<usize> = (0..sentences.len()).collect();
    // the longest first: if memory is short, it shows at once
    order.sort_by_key(|index| std::cmp::Reverse(sentences[*index].len()));
    let mut all = Array2::zeros((sentences.len(), 0));
    for batch in order.chunks(BATCH) {
        let inputs: Vec<&[u32]> = batch.iter().map(|index| sentences[*index]).collect();
        let embeddings = encoder.embed(&inputs)?;
        if all.ncols() == 0 {
            all = Array2::zeros((sentences.len(), embeddings.ncols()));
        }
        let expected = (batch.len(), all.ncols());
        if embeddings.dim() != expected {
            let reason =
                format!("the encoder gives embeddings of shape {:?}, not {expected:?}", embeddings.dim());
            return Err(EvaluateError::task(TASK, reason));
        }
        for (index, embedding) in batch.iter().zip(embeddings.rows()) {
            if let Some((column, value)) = embedding.iter().enumerate().find(|(_, value)| !value.is_finite())
            {
                let place = format!("value {column} (counted from 0) of the embedding of {}", place(*index));
                return Err(EvaluateError::NonFinite { network: "the network", place, value: *value });
            }
            all.row_mut(*index).assign(&embedding);
        }
    }
    Ok(all)
}

/// Which sentence, counted from 1 as lines of a file are.
fn place(index: usize) -> String {
    format!("sentence {} of pair {}", index % 2 + 1, index / 2 + 1)
}

/// Cosine of the angle between two vectors; NaN if one is zero.
fn cosine(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f64 {
    let product = |a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>| {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    product(a, b) / (product(a, a).sqrt() * product(b, b).sqrt())
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;
    use crate::evaluate::testing::{Angles, refusal};

    /// Pairs of one-token sentences at angles of so many degrees.
    fn pairs(degrees: &[(u32, f64)]) -> Similarity {
        let pair = |(angle, similarity): &(u32, f64)| SentencePair {
            tokens: [vec![0], vec![*angle]],
            similarity: *similarity,
        };
        Similarity { pairs: degrees.iter().map(pair).collect() }
    }

    #[test]
    fn correlations_with_ties() {
        let task = pairs(&[(0, 5.0), (60, 3.0), (90, 3.0), (90, 1.0), (120, 2.0), (180, 0.0)]);
        let [spearman, pearson] = &task.score(&Angles::default()).unwrap()[..] else { panic!() };
        // scipy.stats.spearmanr([1, .5, 0, 0, -.5, -1], [5, 3, 3, 1, 2, 0]).statistic, and pearsonr
        assert_relative_eq!(spearman.value, 0.867_647_058_823_529_4, max_relative = 1e-6);
        assert_relative_eq!(pearson.value, 0.888_330_138_395_973_2, max_relative = 1e-6);
        assert_eq!((spearman.metric.as_str(), spearman.samples), ("spearman", 6));
        // pearsonr(…).confidence_interval()
        assert_relative_eq!(pearson.interval[0], 0.275_092_466_310_950_25, max_relative = 1e-5);
    }

    #[test]
    fn order_and_batches_change_nothing() {
        // sentences of many lengths, of which the last token alone counts
        let long = |i: u32, angle: u32| [vec![7; (i * 37 % 50) as usize], vec![angle]].concat();
        let pair = |i: u32| SentencePair { tokens: [long(i, 0), long(i + 1, i)], similarity: -f64::from(i) };
        let task = Similarity { pairs: (1..180).map(pair).collect() };
        let encoder = Angles::default();
        assert_eq!(task.score(&encoder).unwrap()[0].value, 1.0);
        // 358 sentences in batches that fall in length
        let lengths = encoder.lengths.into_inner().unwrap();
        assert_eq!(lengths.len(), 12);
        assert!(lengths.concat().is_sorted_by(|a, b| a >= b), "{lengths:?}");
    }

    #[test]
    fn what_cannot_be_scored_is_refused() {
        let good = [(0, 5.0), (60, 3.0), (90, 3.0), (120, 1.0)];
        let encoder = Angles::default();
        let mut empty = pairs(&good);
        empty.pairs[2].tokens[1].clear();
        let mut long = pairs(&good);
        long.pairs[3].tokens[0] = vec![0; 65];
        for (task, parts) in [
            (pairs(&good[..3]), "3 pairs of sentences are too few"),
            (empty, "sentence 2 of pair 3 has 0 tokens, but the encoder takes 1 to 64"),
            (long, "sentence 1 of pair 4 has 65 tokens"),
            (pairs(&[(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0)]), "all similarities given are the same"),
            (pairs(&[(9, 1.0), (9, 2.0), (9, 3.0), (9, 4.0)]), "all similarities found are the same"),
            (pairs(&[(0, 1.0), (1, f64::NAN), (2, 1.0), (3, 1.0)]), "similarity NaN of pair 2"),
            (pairs(&[(0, 1.0), (1, 2.0), (Angles::NOTHING, 3.0), (3, 1.0)]), "a sentence of pair 3 is zero"),
        ] {
            let line = refusal(task.score(&encoder));
            assert!(line.starts_with("task `sts`: ") && line.contains(parts), "{line}");
        }
        let line = refusal(pairs(&[(0, 1.0), (1, 2.0), (2, 3.0), (Angles::BROKEN, 1.0)]).score(&encoder));
        assert!(
            line.contains("gives NaN for value 1 (counted from 0) of the embedding of sentence 2 of pair 4"),
            "{line}"
        );
    }
}
