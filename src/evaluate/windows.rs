use ndarray::Array2;
use rayon::prelude::*;

use super::EvaluateError;
use crate::distill::Softmax;
use crate::model::LanguageModel;

/// How a text is cut for a model that takes only so many tokens at once.
///
/// A window of [`context`](Self::context) tokens begins every [`stride`](Self::stride) tokens; the last one may be
/// shorter. Every token is scored once, in the first window that holds it, if something stands before it there. With a
/// stride equal to the context, windows do not overlap and the first token of each is not scored; this is how
/// perplexity on WikiText-2 is usually given. With a smaller stride every token but the very first is scored, and from
/// the second window on each has seen at least `context − stride` others.
///
/// ```
/// use tersor::evaluate::Windows;
///
/// let usual = Windows::of(512);
/// assert_eq!((usual.stride, usual.bos), (512, None));
/// let overlapping = Windows { stride: 256, ..usual };
/// # let _ = overlapping;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of the text in a window; at least 2.
    pub context: usize,
    /// Tokens from the beginning of a window to that of the next; 1 to `context`.
    pub stride: usize,
    /// A token put in front of every window, in addition to its context. Then every token of the text is scored.
    pub bos: Option<u32>,
}

impl Windows {
    /// Windows side by side, with nothing in front.
    pub fn of(context: usize) -> Self {
        Self { context, stride: context, bos: None }
    }

    /// Checks that a text can be cut like this for the models, which have these vocabularies and limits.
    pub(super) fn check<M: LanguageModel + ?Sized>(
        &self,
        task: &str,
        texts: &[Vec<u32>],
        model: &M,
    ) -> Result<(), EvaluateError> {
        let refuse = |reason: String| Err(EvaluateError::task(task, reason));
        let Self { context, stride, bos } = *self;
        if context < 2 {
            return refuse(format!("a context of {context} predicts nothing: give at least 2 tokens"));
        }
        if stride == 0 || stride > context {
            return refuse(format!(
                "a stride of {stride} does not fit a context of {context}: give 1 to {context}"
            ));
        }
        // the last token of a window predicts nothing, and is not fed
        let fed = context - 1 + usize::from(bos.is_some());
        let limit = model.max_tokens();
        if fed > limit {
            let beginning = if bos.is_some() { " and the token in front of it" } else { "" };
            return refuse(format!(
                "a context of {context} tokens{beginning} is more than the {limit} tokens that the model takes"
            ));
        }
        let vocab_size = model.vocab_size();
        let beyond = |id: &u32| *id as usize >= vocab_size;
        if let Some(id) = bos.filter(beyond) {
            return refuse(format!(
                "token id {id}, put in front of every window, is beyond the model's vocabulary of {vocab_size}"
            ));
        }
        for (number, tokens) in texts.iter().enumerate() {
            let Some(position) = tokens.iter().position(beyond) else { continue };
            let place = if texts.len() == 1 { String::new() } else { format!(" of text {number}") };
            return refuse(format!(
                "token id {} at position {position}{place} (counted from 0) is beyond the model's vocabulary of \
                 {vocab_size}: tokenizer and model do not fit",
                tokens[position]
            ));
        }
        // an interval needs two values
        let scored: usize = self.cut(texts).take(2).map(|window| window.targets.len()).sum();
        if scored < 2 {
            return refuse(format!(
                "a text of {} tokens has {scored} to score; at least 2 are needed",
                texts.iter().map(Vec::len).sum::<usize>()
            ));
        }
        Ok(())
    }

    /// The windows of all texts in which something is scored.
    pub(super) fn cut<'a>(&self, texts: &'a [Vec<u32>]) -> impl Iterator<Item = Window<'a>> {
        let windows = texts.iter().flat_map(|tokens| self.cut_one(tokens));
        windows.enumerate().map(|(number, window)| Window { number, ..window })
    }

    fn cut_one<'a>(&self, tokens: &'a [u32]) -> impl Iterator<Item = Window<'a>> + use<'a> {
        let Self { context, stride, bos } = *self;
        let in_front = usize::from(bos.is_some());
        let last = tokens.len().saturating_sub(context).div_ceil(stride.max(1));
        (0..=last).filter_map(move |number| {
            let begin = number * stride;
            let end = (begin + context).min(tokens.len());
            let seen_before = if number == 0 { 0 } else { begin - stride + context };
            let first = seen_before.max(begin + 1 - in_front);
            (first < end).then(|| Window {
                number,
                input: bos.into_iter().chain(tokens[begin..end - 1].iter().copied()).collect(),
                row: first - begin + in_front - 1,
                position: first,
                targets: &tokens[first..end],
            })
        })
    }
}

/// Tokens that go through a model together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Window<'a> {
    /// Which window of all, counted from 0.
    number: usize,
    /// What the model sees: all but the last token, which predicts nothing.
    input: Vec<u32>,
    /// The row of logits that predicts the first target; the others follow.
    row: usize,
    /// Where the first target stands in its text.
    position: usize,
    /// The tokens to predict.
    pub(super) targets: &'a [u32],
}

impl Window<'_> {
    /// What the model gives for this window.
    ///
    /// # Shapes
    /// `[window tokens, vocab_size]`.
    pub(super) fn logits<M: LanguageModel + ?Sized>(
        &self,
        task: &str,
        model: &M,
    ) -> Result<Array2<f32>, EvaluateError> {
        let logits = model.logits(&self.input)?;
        let expected = (self.input.len(), model.vocab_size());
        if logits.dim() != expected {
            let reason = format!("the model gives logits of shape {:?}, not {expected:?}", logits.dim());
            return Err(EvaluateError::task(task, reason));
        }
        Ok(logits)
    }

    /// Computes something of every target, in parallel, from what each of `N` networks predicts there.
    pub(super) fn each_target<const N: usize, T: Send>(
        &self,
        networks: [(&'static str, &Array2<f32>); N],
        value: impl Fn([&Softmax; N], usize) -> T + Sync,
    ) -> Result<Vec<T>, EvaluateError> {
        let room = || networks.map(|(_, logits)| Softmax::new(logits.ncols()));
        let one = |room: &mut [Softmax; N], (index, target): (usize, &u32)| {
            for (softmax, (network, logits)) in room.iter_mut().zip(networks) {
                let row = logits.row(self.row + index);
                if softmax.fill(("logits", index), row, 1.0).is_err() {
                    return Err(self.not_finite(network, index, row.iter().copied()));
                }
            }
            Ok(value(room.each_ref(), *target as usize))
        };
        self.targets.par_iter().enumerate().with_min_len(8).map_init(room, one).collect()
    }

    fn not_finite(
        &self,
        network: &'static str,
        index: usize,
        logits: impl Iterator<Item = f32>,
    ) -> EvaluateError {
        let mut logits = logits.enumerate().filter(|(_, logit)| !logit.is_finite());
        let (class, value) = logits.next().unwrap_or((0, f32::NAN));
        EvaluateError::NonFinite {
            network,
            value,
            place: format!(
                "token id {class} where it predicts token {} of its text, in window {} (counted from 0)",
                self.position + index,
                self.number
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Input, row of the first target and targets of every window.
    fn cut(windows: Windows, tokens: &[u32]) -> Vec<(Vec<u32>, usize, Vec<u32>)> {
        windows.cut(&[tokens.to_vec()]).map(|w| (w.input, w.row, w.targets.to_vec())).collect()
    }

    #[test]
    fn windows_side_by_side() {
        let tokens = [10, 11, 12, 13, 14, 15, 16, 17];
        assert_eq!(
            cut(Windows::of(3), &tokens),
            [(vec![10, 11], 0, vec![11, 12]), (vec![13, 14], 0, vec![14, 15]), (vec![16], 0, vec![17])]
        );
        // a last window of one token predicts nothing
        assert_eq!(cut(Windows::of(3), &tokens[..7]).len(), 2);
        assert_eq!(cut(Windows::of(8), &tokens), [(tokens[..7].to_vec(), 0, tokens[1..].to_vec())]);
        assert_eq!(cut(Windows::of(9), &tokens), [(tokens[..7].to_vec(), 0, tokens[1..].to_vec())]);
        assert_eq!(cut(Windows::of(2), &[]), []);
    }

    #[test]
    fn overlapping_windows_score_every_token_once() {
        let tokens = [10, 11, 12, 13, 14, 15, 16];
        let windows = Windows { stride: 2, ..Windows::of(4) };
        assert_eq!(
            cut(windows, &tokens),
            [
                (vec![10, 11, 12], 0, vec![11, 12, 13]),
                (vec![12, 13, 14], 1, vec![14, 15]),
                (vec![14, 15], 1, vec![16])
            ]
        );
        // the text ends with a window: there is no further one
        assert_eq!(cut(windows, &tokens[..6]).len(), 2);
        for stride in 1..=5 {
            let windows = Windows { stride, ..Windows::of(5) };
            for n in 2..40 {
                let tokens: Vec<u32> = (0..n).collect();
                let scored: Vec<u32> =
                    windows.cut(std::slice::from_ref(&tokens)).flat_map(|w| w.targets.to_vec()).collect();
                let side_by_side = |t: &u32| stride < 5 || !t.is_multiple_of(5);
                assert_eq!(scored, (1..n).filter(side_by_side).collect::<Vec<_>>(), "{n} tokens, {stride}");
            }
        }
    }

    #[test]
    fn no_window_goes_from_one_text_into_the_next() {
        let texts = [vec![10, 11, 12], vec![], vec![13], vec![14, 15]];
        let windows = Windows::of(2);
        let cut: Vec<_> = windows.cut(&texts).map(|w| (w.number, w.input, w.targets.to_vec())).collect();
        assert_eq!(cut, [(0, vec![10], vec![11]), (1, vec![14], vec![15])]);
        let front = Windows { bos: Some(1), ..windows };
        let inputs: Vec<_> = front.cut(&texts).map(|w| w.input).collect();
        assert_eq!(inputs, [vec![1, 10], vec![1], vec![1], vec![1, 14]]);
    }

    #[test]
    fn a_token_in_front_lets_every_token_be_scored() {
        let tokens = [10, 11, 12, 13];
        assert_eq!(
            cut(Windows { bos: Some(1), ..Windows::of(3) }, &tokens),
            [(vec![1, 10, 11], 0, vec![10, 11, 12]), (vec![1], 0, vec![13])]
        );
        assert_eq!(
            cut(Windows { bos: Some(1), stride: 2, ..Windows::of(3) }, &tokens),
            [(vec![1, 10, 11], 0, vec![10, 11, 12]), (vec![1, 12], 1, vec![13])]
        );
    }
}
