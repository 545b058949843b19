use ndarray::{Array2, ArrayView2};

use super::overlay::Overlay;
use super::{Execution, ModelError, Network, Tap, TrainedBlock};
use crate::checkpoint::Checkpoint;
use crate::weight::CompressedWeight;

/// A network that is run block by block while the weights of one block after another are replaced.
#[derive(Debug)]
pub(crate) struct Blockwise<'a> {
    checkpoint: &'a Checkpoint,
    overlay: Overlay,
    execution: Execution,
    network: Network,
}

/// What is between two blocks for some inputs that go through the network together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hidden {
    /// `[tokens, features]`
    pub(crate) states: Array2<f32>,
    /// Tokens of each sequence; they stand one after the other.
    pub(crate) lengths: Vec<usize>,
}

/// What goes into a network.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Input<'a> {
    /// The tokens of some sequences.
    Tokens(&'a [&'a [u32]]),
    /// `[batch, features]`
    Features(ArrayView2<'a, f32>),
}

impl<'a> Blockwise<'a> {
    /// Opens the network of a checkpoint, with the tensors of an overlay in the place of some.
    ///
    /// # Errors
    /// As [`Network::open`].
    pub(crate) fn open(
        checkpoint: &'a Checkpoint,
        overlay: Overlay,
        execution: Execution,
    ) -> Result<Self, ModelError> {
        let network = Network::open_over(checkpoint, &overlay, execution)?;
        Ok(Self { checkpoint, overlay, execution, network })
    }

    /// Number of blocks.
    pub(crate) fn blocks(&self) -> usize {
        match &self.network {
            Network::Sequential(model) => model.blocks(),
            Network::Encoder(model) => model.blocks(),
            Network::Decoder(model) => model.blocks(),
        }
    }

    /// The layers of a block that have a weight, without `.weight`; those with the same input together.
    pub(crate) fn block_layers(&self, block: usize) -> Vec<Vec<String>> {
        match &self.network {
            Network::Sequential(model) => model.block_layers(block),
            Network::Encoder(model) => model.block_layers(block),
            Network::Decoder(model) => model.block_layers(block),
        }
    }

    /// Puts tensors in the place of a block's.
    ///
    /// # Errors
    /// When they do not fit.
    pub(crate) fn replace(
        &mut self,
        block: usize,
        tensors: impl IntoIterator<Item = (String, CompressedWeight)>,
    ) -> Result<(), ModelError> {
        for (name, weight) in tensors {
            self.overlay.insert(&name, weight);
        }
        self.reopen(block)
    }

    /// Forgets what was put in the place of a block's tensors.
    ///
    /// # Errors
    /// When the checkpoint has changed.
    pub(crate) fn restore<'n>(
        &mut self,
        block: usize,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<(), ModelError> {
        for name in names {
            self.overlay.remove(name);
        }
        self.reopen(block)
    }

    fn reopen(&mut self, block: usize) -> Result<(), ModelError> {
        let Self { checkpoint, overlay, execution, network } = self;
        match network {
            // its layers are small, and know nothing of each other
            Network::Sequential(_) => *network = Network::open_over(checkpoint, overlay, *execution)?,
            Network::Encoder(model) => model.reopen_block(checkpoint, overlay, *execution, block)?,
            Network::Decoder(model) => model.reopen_block(checkpoint, overlay, *execution, block)?,
        }
        Ok(())
    }

    /// A block whose linear layers are to be trained, from the weights on that they have; `None` unless the network is a decoder.
    ///
    /// # Errors
    /// When the checkpoint has changed.
    pub(crate) fn trained_block(&self, block: usize) -> Result<Option<TrainedBlock<'_>>, ModelError> {
        let weight = |layer: &str| self.overlay.dense(self.checkpoint, &format!("{layer}.weight"));
        match &self.network {
            Network::Decoder(model) => model.trained_block(block, weight).map(Some),
            Network::Sequential(_) | Network::Encoder(_) => Ok(None),
        }
    }

    /// Features of the hidden states; for a network that is no transformer, most numbers that a layer works with.
    pub(crate) fn states_width(&self) -> usize {
        match &self.network {
            Network::Sequential(model) => model.widest_layer(),
            Network::Encoder(model) => model.hidden_size(),
            Network::Decoder(model) => model.hidden_size(),
        }
    }

    /// Whether plain weights are used where their file is mapped.
    pub(crate) fn is_mapped(&self) -> bool {
        !matches!(self.network, Network::Sequential(_))
    }

    /// Whether it is a decoder.
    pub(crate) fn is_decoder(&self) -> bool {
        matches!(self.network, Network::Decoder(_))
    }

    /// Whether several sequences can go through it together.
    pub(crate) fn takes_batches(&self) -> bool {
        matches!(self.network, Network::Encoder(_))
    }

    /// What the first block takes.
    ///
    /// # Errors
    /// When the network does not take such an input.
    pub(crate) fn embed(&self, input: Input<'_>) -> Result<Hidden, ModelError> {
        match (&self.network, input) {
            (Network::Sequential(model), Input::Features(features)) => {
                let states = model.embed(features)?;
                Ok(Hidden { lengths: vec![1; states.nrows()], states })
            }
            (Network::Encoder(model), Input::Tokens(sentences)) => {
                let lengths = sentences.iter().map(|tokens| tokens.len()).collect();
                Ok(Hidden { states: model.embed_tokens(sentences)?, lengths })
            }
            (Network::Decoder(model), Input::Tokens([tokens])) => {
                Ok(Hidden { states: model.embed(tokens)?, lengths: vec![tokens.len()] })
            }
            (_, Input::Tokens(sequences)) => {
                let reason = format!("{} sequences do not fit the network", sequences.len());
                Err(ModelError::Tokens { reason })
            }
            (_, Input::Features(features)) => {
                let reason = format!("the network takes tokens, not {} features", features.ncols());
                Err(ModelError::Tokens { reason })
            }
        }
    }

    /// Runs one block.
    ///
    /// # Errors
    /// When the hidden states do not fit the network.
    pub(crate) fn run_block(
        &self,
        block: usize,
        hidden: &mut Hidden,
        tap: Option<&mut dyn Tap>,
    ) -> Result<(), ModelError> {
        match &self.network {
            Network::Sequential(model) => model.run_block(block, &mut hidden.states, tap),
            Network::Encoder(model) => model.run_block(block, &mut hidden.states, &hidden.lengths, tap),
            Network::Decoder(model) => model.run_block(block, &mut hidden.states, tap),
        }
    }
}
