use std::collections::HashMap;

use ndarray::ArrayView2;

use super::samples::Kind;
use super::{CalibrateError, Samples, Store};
use crate::error::NonFinite;
use crate::layer::{LayerStats, Needs};
use crate::model::Tap;
use crate::model::blockwise::{Blockwise, Input};
use crate::quantize::ActivationObserver;

/// Layers with the same input, and what was seen of it.
#[derive(Debug)]
pub(crate) struct Group {
    /// Names without `.weight`.
    pub(crate) layers: Vec<String>,
    pub(crate) needs: Needs,
    /// `None` until the input is seen.
    pub(crate) stats: Option<LayerStats>,
    /// Finds the range of the input, if that is asked for.
    pub(crate) range: Option<ActivationObserver>,
}

impl Group {
    /// Layers of whose input nothing is asked.
    pub(crate) fn new(layers: Vec<String>) -> Self {
        Self { layers, needs: Needs::Nothing, stats: None, range: None }
    }

    /// Whether anything is asked of the input.
    fn is_asked(&self) -> bool {
        self.needs > Needs::Nothing || self.range.is_some()
    }

    fn observe(&mut self, input: ArrayView2<'_, f32>) -> Result<(), NonFinite> {
        if self.needs > Needs::Nothing {
            let stats = self.stats.get_or_insert_with(|| LayerStats::new(input.ncols(), self.needs));
            stats.observe(input)?;
        }
        if let Some(range) = &mut self.range {
            let values = input.as_standard_layout();
            range.observe(values.as_slice().unwrap_or_default())?;
        }
        Ok(())
    }
}

/// Tokens of short sequences that go through a block together.
pub(crate) const BATCH_TOKENS: usize = 512;

/// Inputs of a network of numbers that go through a block together.
pub(crate) const BATCH_INPUTS: usize = 64;

/// What the first block takes, of all samples.
///
/// # Errors
/// When the network does not take them, or the hidden states cannot be kept.
pub(crate) fn embed(
    model: &Blockwise<'_>,
    samples: &Samples,
    mut store: Store,
) -> Result<Store, CalibrateError> {
    match &samples.kind {
        Kind::Features(inputs) => {
            for batch in inputs.axis_chunks_iter(ndarray::Axis(0), BATCH_INPUTS) {
                store.push(model.embed(Input::Features(batch))?)?;
            }
        }
        Kind::Tokens(sequences) => {
            let mut rest = sequences.as_slice();
            while !rest.is_empty() {
                let mut tokens = 0;
                let fits = |sequence: &&Vec<u32>| {
                    tokens += sequence.len();
                    tokens <= BATCH_TOKENS
                };
                let together =
                    if model.takes_batches() { rest.iter().take_while(fits).count().max(1) } else { 1 };
                let (batch, others) = rest.split_at(together);
                let batch: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
                store.push(model.embed(Input::Tokens(&batch))?)?;
                rest = others;
            }
        }
    }
    Ok(store)
}

/// Runs a block on all hidden states, which stay as they are, and gathers what goes into its layers; no further than to the last
/// of which something is asked.
///
/// # Errors
/// When an input is not finite, or the hidden states cannot be kept.
pub(crate) fn observe_block(
    model: &Blockwise<'_>,
    block: usize,
    groups: &mut [Group],
    store: &mut Store,
) -> Result<(), CalibrateError> {
    let asked = groups.iter().enumerate().filter(|(_, group)| group.is_asked());
    let by_layer = asked.filter_map(|(i, group)| Some((group.layers.first()?.clone(), i)));
    let by_layer: HashMap<String, usize> = by_layer.collect();
    if by_layer.is_empty() {
        return Ok(());
    }
    let mut gather = Gather { groups, by_layer, left: 0, first: 0, lengths: Vec::new(), failed: None };
    for index in 0..store.len() {
        let hidden = store.take(index)?;
        gather.left = gather.by_layer.len();
        gather.first += gather.lengths.len();
        gather.lengths.clone_from(&hidden.lengths);
        let mut after = hidden.clone();
        store.put(index, hidden)?;
        model.run_block(block, &mut after, Some(&mut gather))?;
        if let Some(error) = gather.failed.take() {
            return Err(error);
        }
    }
    Ok(())
}

/// Replaces all hidden states by what a block makes of them.
///
/// # Errors
/// When the hidden states cannot be kept.
pub(crate) fn run_block(
    model: &Blockwise<'_>,
    block: usize,
    store: &mut Store,
) -> Result<(), CalibrateError> {
    for index in 0..store.len() {
        let mut hidden = store.take(index)?;
        model.run_block(block, &mut hidden, None)?;
        store.put(index, hidden)?;
    }
    Ok(())
}

/// The tap that fills the groups.
struct Gather<'a> {
    groups: &'a mut [Group],
    /// From the first layer of a group of which something is asked to its number.
    by_layer: HashMap<String, usize>,
    /// Groups that the hidden states in the network have not come to yet.
    left: usize,
    /// Number of the first sample that is in the network, and the tokens of all that are.
    first: usize,
    lengths: Vec<usize>,
    failed: Option<CalibrateError>,
}

impl Tap for Gather<'_> {
    fn observe(&mut self, layers: &[&str], input: ArrayView2<'_, f32>) {
        for layer in layers {
            let Some(group) = self.by_layer.get(*layer) else { continue };
            self.left = self.left.saturating_sub(1);
            if self.failed.is_none()
                && let Err(found) = self.groups[*group].observe(input)
            {
                self.failed = Some(self.not_finite(layer, input.ncols(), found));
            }
        }
    }

    fn is_done(&self) -> bool {
        self.left == 0 || self.failed.is_some()
    }
}

impl Gather<'_> {
    fn not_finite(&self, layer: &str, width: usize, found: NonFinite) -> CalibrateError {
        let width = width.max(1);
        let (mut sample, mut token) = (self.first, found.index / width);
        for length in &self.lengths {
            if token < *length {
                break;
            }
            token -= length;
            sample += 1;
        }
        let (layer, feature) = (layer.to_owned(), found.index % width);
        CalibrateError::NonFinite { layer, sample, token, feature, value: found.value }
    }
}
