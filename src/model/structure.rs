//! What of a network can be left out so that an ordinary smaller one remains.

use std::collections::HashSet;
use std::fmt;

use super::sequential::{LayerConfig, SequentialConfig};
use super::transformer::{DecoderWiring, EncoderWiring, LayerNames, Wiring};
use super::{ModelError, Network};
use crate::checkpoint::Checkpoint;

/// What is left out as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnitKind {
    /// Values between two linear layers.
    Neurons,
    /// Attention heads: those that share keys and values, together.
    Heads,
    /// Images between a convolution and what follows it.
    Channels,
}

impl fmt::Display for UnitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Neurons => "neurons",
            Self::Heads => "heads",
            Self::Channels => "channels",
        })
    }
}

/// Units of one kind that stand side by side in a network.
#[derive(Debug, Clone)]
pub(crate) struct UnitGroup {
    pub(crate) kind: UnitKind,
    /// The block of the layer that takes what they give, in the order of the computation.
    pub(crate) block: usize,
    /// How many there are.
    pub(crate) count: usize,
    /// Layers whose outputs they are, with the rows that one unit has in each.
    pub(crate) makers: Vec<(LayerNames, usize)>,
    /// The layer that takes what they give.
    pub(crate) consumer: LayerNames,
    /// Columns that one unit has in it.
    pub(crate) width: usize,
}

/// The blocks of a network, each of which adds to what goes through.
#[derive(Debug, Clone)]
pub(crate) struct BlockNames {
    /// What stands before a block's number in the names of its tensors.
    pub(crate) prefix: String,
    pub(crate) count: usize,
}

/// What can be left out.
#[derive(Debug, Clone)]
pub(crate) struct Structure {
    /// Block by block.
    pub(crate) groups: Vec<UnitGroup>,
    /// `None` where each layer needs the one before it.
    pub(crate) blocks: Option<BlockNames>,
    /// Why heads cannot be left out, if that is so.
    pub(crate) no_heads: Option<&'static str>,
    /// The network as a list of layers, if it is one.
    pub(crate) sequential: Option<SequentialConfig>,
}

impl Structure {
    /// The structure of the network that a checkpoint holds.
    ///
    /// # Errors
    /// When tersor does not run the network, so that it is not known what depends on what, or one of its blocks has a tensor
    /// that no such network has.
    pub(crate) fn of(checkpoint: &Checkpoint, network: &Network) -> Result<Self, ModelError> {
        match network {
            Network::Sequential(_) => Self::of_layers(checkpoint, SequentialConfig::of(checkpoint)?),
            Network::Encoder(_) | Network::Decoder(_) => match Wiring::of(checkpoint)? {
                Wiring::Decoder(wiring) => Self::of_decoder(checkpoint, &wiring),
                Wiring::Encoder(wiring) => Self::of_encoder(checkpoint, &wiring),
            },
        }
    }

    fn of_decoder(checkpoint: &Checkpoint, wiring: &DecoderWiring) -> Result<Self, ModelError> {
        let heads = wiring.heads;
        let queries = heads.count / heads.key_values * heads.size;
        let (mut groups, mut known) = (Vec::new(), HashSet::new());
        for (index, block) in wiring.blocks.iter().enumerate() {
            groups.push(UnitGroup {
                kind: UnitKind::Heads,
                block: index,
                count: heads.key_values,
                makers: vec![
                    (block.query.clone(), queries),
                    (block.key.clone(), heads.size),
                    (block.value.clone(), heads.size),
                ],
                consumer: block.output.clone(),
                width: queries,
            });
            groups.push(UnitGroup {
                kind: UnitKind::Neurons,
                block: index,
                count: wiring.intermediate,
                makers: vec![(block.gate.clone(), 1), (block.up.clone(), 1)],
                consumer: block.down.clone(),
                width: 1,
            });
            known.extend(tensors_of(&groups[groups.len() - 2..]));
            let norms = [&block.input_norm, &block.feed_forward_norm].into_iter();
            known.extend(norms.chain(&block.query_key_norms).cloned());
        }
        let blocks = BlockNames::of(wiring.blocks.iter().map(|block| (&block.query, "0.self_attn.q_proj")));
        blocks.check(checkpoint, &known)?;
        Ok(Self { groups, blocks: Some(blocks), no_heads: None, sequential: None })
    }

    fn of_encoder(checkpoint: &Checkpoint, wiring: &EncoderWiring) -> Result<Self, ModelError> {
        let (mut groups, mut known) = (Vec::new(), HashSet::new());
        for (index, block) in wiring.blocks.iter().enumerate() {
            let neurons = UnitGroup {
                kind: UnitKind::Neurons,
                block: index,
                count: wiring.intermediate,
                makers: vec![(block.up.clone(), 1)],
                consumer: block.down.clone(),
                width: 1,
            };
            known.extend(tensors_of(std::slice::from_ref(&neurons)));
            groups.push(neurons);
            for layer in [&block.query, &block.key, &block.value, &block.output] {
                known.extend(tensors_of_layer(layer));
            }
            known.extend(
                block.norms.iter().flat_map(|norm| ["weight", "bias"].map(|part| format!("{norm}.{part}"))),
            );
        }
        let blocks =
            BlockNames::of(wiring.blocks.iter().map(|block| (&block.query, "0.attention.self.query")));
        blocks.check(checkpoint, &known)?;
        let no_heads = "transformers takes `hidden_size` / `num_attention_heads` for the size of a bert's heads, so that \
                        fewer heads of the same size cannot be described";
        Ok(Self { groups, blocks: Some(blocks), no_heads: Some(no_heads), sequential: None })
    }

    fn of_layers(checkpoint: &Checkpoint, config: SequentialConfig) -> Result<Self, ModelError> {
        let layers = config.layers.iter().filter_map(|layer| match layer {
            LayerConfig::Linear { name } => Some((name, UnitKind::Neurons)),
            LayerConfig::Conv2d { name, .. } => Some((name, UnitKind::Channels)),
            LayerConfig::Relu | LayerConfig::MaxPool2d { .. } | LayerConfig::Flatten => None,
        });
        let layers: Vec<(&String, UnitKind)> = layers.collect();
        let bad = |layer: &str, reason: String| ModelError::Layer {
            path: checkpoint.path().to_path_buf(),
            layer: layer.to_owned(),
            reason,
        };
        let mut groups = Vec::new();
        for (index, pair) in layers.windows(2).enumerate() {
            let [(maker, kind), (consumer, _)] = pair else { continue };
            if let Some((twice, _)) = layers[index + 1..].iter().find(|(name, _)| name == maker) {
                return Err(bad(
                    twice,
                    "stands in the network twice; its units belong to both places".into(),
                ));
            }
            let names = |name: &str| LayerNames {
                name: name.to_owned(),
                has_bias: checkpoint.entry(&format!("{name}.bias")).is_ok(),
            };
            let count = checkpoint.entry(&format!("{maker}.weight"))?.shape.first().copied().unwrap_or(0);
            let taken: usize =
                checkpoint.entry(&format!("{consumer}.weight"))?.shape.iter().skip(1).product();
            if count == 0 || !taken.is_multiple_of(count) {
                let reason =
                    format!("its {taken} input features are not those of the {count} units of `{maker}`");
                return Err(bad(consumer, reason));
            }
            groups.push(UnitGroup {
                kind: *kind,
                block: index + 1,
                count,
                makers: vec![(names(maker), 1)],
                consumer: names(consumer),
                // an image is flattened channel by channel, and so is a window
                width: taken / count,
            });
        }
        let no_heads = Some("a network of layers has none");
        Ok(Self { groups, blocks: None, no_heads, sequential: Some(config) })
    }
}

impl BlockNames {
    /// Of blocks with a layer whose name, of block 0, ends like this.
    fn of<'l>(blocks: impl ExactSizeIterator<Item = (&'l LayerNames, &'l str)>) -> Self {
        let count = blocks.len();
        let mut blocks = blocks;
        let prefix = blocks.next().and_then(|(layer, end)| layer.name.strip_suffix(end)).unwrap_or_default();
        Self { prefix: prefix.to_owned(), count }
    }

    /// The block that a tensor is of, and its name in it.
    pub(crate) fn split<'n>(&self, name: &'n str) -> Option<(usize, &'n str)> {
        let (number, rest) = name.strip_prefix(self.prefix.as_str())?.split_once('.')?;
        let number: usize = number.parse().ok().filter(|number| *number < self.count)?;
        Some((number, rest))
    }

    fn check(&self, checkpoint: &Checkpoint, known: &HashSet<String>) -> Result<(), ModelError> {
        // a buffer of the rotary embedding that older checkpoints have and nobody reads
        let is_known = |name: &str| known.contains(name) || name.ends_with(".rotary_emb.inv_freq");
        let mut names = checkpoint.entries().iter().map(|entry| &entry.name);
        match names.find(|name| self.split(name).is_some() && !is_known(name)) {
            None => Ok(()),
            Some(name) => Err(ModelError::Architecture {
                path: checkpoint.path().to_path_buf(),
                reason: format!(
                    "`{name}` is no tensor that a block of this config.json has, so that it is not known what it depends on"
                ),
            }),
        }
    }
}

fn tensors_of(groups: &[UnitGroup]) -> impl Iterator<Item = String> + '_ {
    groups.iter().flat_map(|group| {
        group.makers.iter().map(|(layer, _)| layer).chain([&group.consumer]).flat_map(tensors_of_layer)
    })
}

fn tensors_of_layer(layer: &LayerNames) -> impl Iterator<Item = String> {
    std::iter::once(layer.weight()).chain(layer.bias())
}
