//! How much every block turns the hidden states.

use std::f64::consts::PI;
use std::ops::ControlFlow;

use ndarray::ArrayView1;

use super::BlockChoice;
use crate::calibrate::{CalibrateError, Store};
use crate::model::blockwise::Blockwise;
use crate::pipeline::PipelineError;

/// What was found of the blocks.
pub(super) struct Measured {
    /// Of every block, the smaller the less it is missed: its influence, or the distance over the run of blocks that begins
    /// with it (none where the run would end beyond the last).
    pub(super) scores: Vec<Option<f64>>,
    /// The blocks that go, in order.
    pub(super) removed: Vec<usize>,
}

/// Runs all blocks on what the first takes, and chooses those that go.
///
/// # Errors
/// When hidden states are not finite or cannot be kept, or the caller stops.
pub(super) fn choose_blocks(
    model: &Blockwise<'_>,
    store: &mut Store,
    choice: BlockChoice,
    remove: usize,
    next: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Measured, PipelineError> {
    let blocks = model.blocks();
    // from the states before a block to those after how many
    let span = if choice == BlockChoice::Distance { remove } else { 1 };
    let mut sums = vec![0f64; blocks + 1 - span.min(blocks)];
    let mut tokens = 0usize;
    for index in 0..store.len() {
        if next().is_break() {
            return Err(PipelineError::Stopped);
        }
        let mut hidden = store.take(index)?;
        // what stood before the last blocks
        let mut before = std::collections::VecDeque::from([hidden.states.clone()]);
        let start = hidden.clone();
        let looked_at = looked_at(&hidden.lengths, choice);
        tokens += looked_at.len();
        for block in 0..blocks {
            model.run_block(block, &mut hidden, None)?;
            before.push_back(hidden.states.clone());
            if before.len() > span {
                let Some(from) = before.pop_front() else { break };
                for token in &looked_at {
                    let cosine = cosine(from.row(*token), hidden.states.row(*token));
                    sums[block + 1 - span] += match choice {
                        BlockChoice::Influence => 1.0 - cosine,
                        BlockChoice::Distance => cosine.clamp(-1.0, 1.0).acos() / PI,
                    };
                }
            }
        }
        store.put(index, start)?;
    }
    let mut scores: Vec<Option<f64>> = sums.iter().map(|sum| Some(sum / tokens.max(1) as f64)).collect();
    if let Some(block) = scores.iter().position(|score| score.is_none_or(|score| !score.is_finite())) {
        let reason = format!(
            "block {block} gives hidden states that are not finite; its weights or the samples are not sound"
        );
        return Err(CalibrateError::Samples { path: None, reason }.into());
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // among equals the later goes
    order.sort_by(|a, b| scores[*a].unwrap_or(0.0).total_cmp(&scores[*b].unwrap_or(0.0)).then(b.cmp(a)));
    let mut removed: Vec<usize> = match (choice, order.first()) {
        (BlockChoice::Distance, Some(first)) => (*first..first + remove).collect(),
        _ => order.into_iter().take(remove).collect(),
    };
    removed.sort_unstable();
    scores.resize(blocks, None);
    Ok(Measured { scores, removed })
}

/// Rows of the hidden states that are looked at.
fn looked_at(lengths: &[usize], choice: BlockChoice) -> Vec<usize> {
    let mut end = 0;
    let mut last = Vec::with_capacity(lengths.len());
    for length in lengths {
        end += length;
        last.push(end - 1);
    }
    if choice == BlockChoice::Distance { last } else { (0..end).collect() }
}

/// Of two vectors; 1 where one of them is zero, which has no direction that could be turned.
fn cosine(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f64 {
    let (mut product, mut of_a, mut of_b) = (0f64, 0f64, 0f64);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        product += a * b;
        of_a += a * a;
        of_b += b * b;
    }
    if of_a == 0.0 || of_b == 0.0 { 1.0 } else { product / (of_a.sqrt() * of_b.sqrt()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_by_hand() {
        let of = |a: [f32; 2], b: [f32; 2]| cosine(ArrayView1::from(&a), ArrayView1::from(&b));
        assert_eq!(of([1.0, 0.0], [2.0, 0.0]), 1.0);
        assert_eq!(of([1.0, 0.0], [0.0, 3.0]), 0.0);
        assert!((of([3.0, 4.0], [4.0, 3.0]) - 0.96).abs() < 1e-12);
        assert_eq!(of([0.0, 0.0], [0.0, 3.0]), 1.0);
        assert!(of([f32::NAN, 0.0], [0.0, 3.0]).is_nan());
    }

    #[test]
    fn last_tokens_are_those_of_every_sequence() {
        assert_eq!(looked_at(&[2, 1, 3], BlockChoice::Distance), [1, 2, 5]);
        assert_eq!(looked_at(&[2, 1], BlockChoice::Influence), [0, 1, 2]);
    }
}
