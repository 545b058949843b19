use std::collections::BTreeMap;

use super::TransformError;
use super::error::{check_finite, check_length};
use crate::checkpoint::Checkpoint;
use crate::model::{DecoderWiring, Heads, LayerNames, Wiring};

/// Where the scales of channels can move from what gives the channels into the layers that take them.
///
/// With a positive scale `s` for every channel, the output of the producer is divided by `s` and the columns of the consumers'
/// weights are multiplied by it; the network computes the same. `SmoothQuant` chooses the scales so that the activations lose
/// their outliers (Xiao et al., 2023, equation 3), AWQ so that the weights of important channels are rounded more finely (Lin
/// et al., 2024, equation 4).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Fold {
    /// The block where it is, if it is in one.
    pub block: Option<usize>,
    /// What gives the channels.
    pub producer: Producer,
    /// Names of the linear layers that take them, without `.weight`.
    pub consumers: Vec<String>,
    /// Channels that the consumers take: their `in_features`.
    pub channels: usize,
    heads: Option<Heads>,
    parts: Vec<Part>,
}

/// What gives the channels of a [`Fold`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Producer {
    /// A normalization: the name of its weight's tensor.
    Norm(String),
    /// A linear layer: its name without `.weight`. Between it and the consumers, nothing but weighted sums over tokens or
    /// products with other values of the same channel.
    Linear(String),
}

/// How channels that must have one scale come to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SharedScales {
    /// The largest of their scales.
    Max,
    /// The mean of their scales.
    Mean,
}

/// A tensor that changes.
#[derive(Debug, Clone, PartialEq)]
struct Part {
    name: String,
    len: usize,
    change: Change,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Change {
    /// Rows of so many values.
    DivideRows(usize),
    MultiplyColumns,
}

/// The tensors of a model, to be read and written by name.
pub trait Weights {
    /// What can go wrong.
    type Error: From<TransformError>;

    /// The values of a tensor.
    ///
    /// # Errors
    /// When it cannot be read.
    fn get(&mut self, name: &str) -> Result<Vec<f32>, Self::Error>;

    /// Replaces the values of a tensor.
    ///
    /// # Errors
    /// When it cannot be written.
    fn set(&mut self, name: &str, values: Vec<f32>) -> Result<(), Self::Error>;
}

impl Weights for BTreeMap<String, Vec<f32>> {
    type Error = TransformError;

    fn get(&mut self, name: &str) -> Result<Vec<f32>, TransformError> {
        let values = BTreeMap::get(self, name).cloned();
        values.ok_or_else(|| TransformError::Missing { name: name.to_owned() })
    }

    fn set(&mut self, name: &str, values: Vec<f32>) -> Result<(), TransformError> {
        self.insert(name.to_owned(), values);
        Ok(())
    }
}

/// All folds of the transformer that a checkpoint holds, block by block in the order of its computation.
///
/// Of a decoder: either normalization of a block into what it feeds, the value layer into the output layer, the up layer into
/// the down layer; and the last normalization into a head of its own. Of an encoder like BERT, whose normalizations feed the
/// residual, too: the value layer into the output layer.
///
/// # Errors
/// When `config.json` describes no transformer that tersor runs.
pub fn folds(checkpoint: &Checkpoint) -> Result<Vec<Fold>, TransformError> {
    let mut folds = Vec::new();
    match Wiring::of(checkpoint)? {
        Wiring::Decoder(wiring) => of_decoder(&wiring, &mut folds),
        Wiring::Encoder(wiring) => {
            for (index, block) in wiring.blocks.iter().enumerate() {
                let fold =
                    Fold::of_attention(index, wiring.hidden, wiring.heads, &block.value, &block.output);
                folds.push(fold);
            }
        }
    }
    Ok(folds)
}

fn of_decoder(wiring: &DecoderWiring, folds: &mut Vec<Fold>) {
    let DecoderWiring { hidden, intermediate, heads, .. } = *wiring;
    let (queries, keys) = (heads.count * heads.size, heads.key_values * heads.size);
    for (index, block) in wiring.blocks.iter().enumerate() {
        let of_norm = |norm: &str, consumers: &[(&LayerNames, usize)]| {
            Fold::of_norm(Some(index), hidden, norm, consumers)
        };
        let inputs = [(&block.query, queries), (&block.key, keys), (&block.value, keys)];
        folds.push(of_norm(&block.input_norm, &inputs));
        folds.push(Fold::of_attention(index, hidden, heads, &block.value, &block.output));
        let inputs = [(&block.gate, intermediate), (&block.up, intermediate)];
        folds.push(of_norm(&block.feed_forward_norm, &inputs));
        folds.push(Fold::of_layers(index, intermediate, [&block.up, &block.down], hidden, None));
    }
    if !wiring.tied {
        folds.push(Fold::of_norm(None, hidden, &wiring.norm, &[(&wiring.head, wiring.vocab_size)]));
    }
}

impl Fold {
    /// `consumers` with their numbers of outputs.
    fn of_norm(
        block: Option<usize>,
        channels: usize,
        norm: &str,
        consumers: &[(&LayerNames, usize)],
    ) -> Self {
        let mut parts = vec![Part { name: norm.to_owned(), len: channels, change: Change::DivideRows(1) }];
        for (layer, rows) in consumers {
            parts.push(Part { name: layer.weight(), len: rows * channels, change: Change::MultiplyColumns });
        }
        let consumers = consumers.iter().map(|(layer, _)| layer.name.clone()).collect();
        Self { block, producer: Producer::Norm(norm.to_owned()), consumers, channels, heads: None, parts }
    }

    fn of_attention(
        block: usize,
        hidden: usize,
        heads: Heads,
        value: &LayerNames,
        output: &LayerNames,
    ) -> Self {
        Self::of_layers(block, heads.count * heads.size, [value, output], hidden, Some(heads))
    }

    /// Of two layers between which there are `channels`, both with `hidden` values on the other side.
    fn of_layers(
        block: usize,
        channels: usize,
        [producer, consumer]: [&LayerNames; 2],
        hidden: usize,
        heads: Option<Heads>,
    ) -> Self {
        let rows = heads.map_or(channels, |heads| heads.key_values * heads.size);
        let change = Change::DivideRows(hidden);
        let mut parts = vec![Part { name: producer.weight(), len: rows * hidden, change }];
        if let Some(name) = producer.bias() {
            parts.push(Part { name, len: rows, change: Change::DivideRows(1) });
        }
        let change = Change::MultiplyColumns;
        parts.push(Part { name: consumer.weight(), len: hidden * channels, change });
        Self {
            block: Some(block),
            producer: Producer::Linear(producer.name.clone()),
            consumers: vec![consumer.name.clone()],
            channels,
            heads,
            parts,
        }
    }

    /// Names of all tensors that change.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|part| part.name.as_str())
    }

    /// Number of channels of the consumers that are one channel of the producer: more than one where heads of queries share
    /// one of keys and values.
    pub fn repeats(&self) -> usize {
        self.heads.map_or(1, |heads| heads.count / heads.key_values)
    }

    /// The channel of the consumers that first takes the output of the producer's channel `row`; others follow in steps
    /// of a head's size.
    fn first_channel(&self, row: usize) -> usize {
        match self.heads {
            None => row,
            Some(heads) => row / heads.size * self.repeats() * heads.size + row % heads.size,
        }
    }

    /// Gives channels that are one channel of the producer the same scale.
    ///
    /// # Shapes
    /// `scales` has one value per channel of the consumers.
    ///
    /// # Errors
    /// When there are more or fewer scales than channels, or one is no positive number.
    pub fn share(&self, scales: &mut [f32], by: SharedScales) -> Result<(), TransformError> {
        self.check_scales(scales)?;
        let Some(heads) = self.heads.filter(|_| self.repeats() > 1) else { return Ok(()) };
        for row in 0..heads.key_values * heads.size {
            let channels = (0..self.repeats()).map(|repeat| self.first_channel(row) + repeat * heads.size);
            let of_all = channels.clone().map(|channel| scales[channel]);
            let shared = match by {
                SharedScales::Max => of_all.fold(0.0, f32::max),
                SharedScales::Mean => (of_all.map(f64::from).sum::<f64>() / self.repeats() as f64) as f32,
            };
            for channel in channels {
                scales[channel] = shared;
            }
        }
        Ok(())
    }

    /// Changes one tensor as the scales ask for. Says whether it is one of those that change.
    ///
    /// # Shapes
    /// `values` are all of the tensor, row-major; `scales` has one value per channel of the consumers.
    ///
    /// # Errors
    /// When a length is wrong, a scale is no positive number, channels that are one have different scales, or the
    /// tensor holds NaN or an infinity before or after.
    pub fn scale(&self, name: &str, values: &mut [f32], scales: &[f32]) -> Result<bool, TransformError> {
        let Some(part) = self.parts.iter().find(|part| part.name == name) else { return Ok(false) };
        self.check(scales)?;
        check_length(name, values, part.len)?;
        check_finite(name, values)?;
        match part.change {
            Change::DivideRows(width) => {
                for (row, values) in values.chunks_exact_mut(width).enumerate() {
                    let scale = scales[self.first_channel(row)];
                    for value in values {
                        *value /= scale;
                    }
                }
            }
            Change::MultiplyColumns => {
                for row in values.chunks_exact_mut(scales.len()) {
                    row.iter_mut().zip(scales).for_each(|(value, scale)| *value *= scale);
                }
            }
        }
        check_finite(name, values)?;
        Ok(true)
    }

    /// Changes all tensors as the scales ask for; when one cannot be changed, none is written.
    ///
    /// # Shapes
    /// `scales` has one value per channel of the consumers.
    ///
    /// # Errors
    /// As [`scale`](Self::scale), and when a tensor cannot be read or written.
    pub fn apply<W: Weights>(&self, scales: &[f32], weights: &mut W) -> Result<(), W::Error> {
        let mut changed = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let mut values = weights.get(&part.name)?;
            self.scale(&part.name, &mut values, scales)?;
            changed.push(values);
        }
        for (part, values) in self.parts.iter().zip(changed) {
            weights.set(&part.name, values)?;
        }
        Ok(())
    }

    fn check_scales(&self, scales: &[f32]) -> Result<(), TransformError> {
        let layer = || self.consumers.join("`, `");
        if scales.len() != self.channels {
            let (expected, actual) = (self.channels, scales.len());
            return Err(TransformError::Scales { layer: layer(), expected, actual });
        }
        let is_wrong = |(_, scale): &(usize, &f32)| !(scale.is_finite() && **scale > 0.0);
        match scales.iter().enumerate().find(is_wrong) {
            Some((channel, scale)) => Err(TransformError::Scale { layer: layer(), channel, scale: *scale }),
            None => Ok(()),
        }
    }

    fn check(&self, scales: &[f32]) -> Result<(), TransformError> {
        self.check_scales(scales)?;
        let (Some(heads), Producer::Linear(producer)) = (self.heads, &self.producer) else { return Ok(()) };
        for row in 0..heads.key_values * heads.size {
            let first = self.first_channel(row);
            for second in (1..self.repeats()).map(|repeat| first + repeat * heads.size) {
                if scales[first] != scales[second] {
                    return Err(TransformError::Shared {
                        layer: self.consumers.join("`, `"),
                        producer: producer.clone(),
                        first,
                        first_scale: scales[first],
                        second,
                        second_scale: scales[second],
                    });
                }
            }
        }
        Ok(())
    }
}
