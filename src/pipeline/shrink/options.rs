use std::num::NonZeroUsize;

use super::Amount;
use crate::layer::Needs;
use crate::model::UnitKind;
use crate::prune::Importance;

/// By what blocks are judged, from the hidden states before and after them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockChoice {
    /// Each by itself: those whose hidden states turn least, by the mean of `1 − cos` over all tokens (Men et al., `ShortGPT`,
    /// 2024, equation 1).
    #[default]
    Influence,
    /// The run of blocks over which the hidden states of the samples' last tokens turn least, by the mean angle (Gromov et al.,
    /// "The Unreasonable Ineffectiveness of the Deeper Layers", 2024, equation 7).
    Distance,
}

impl BlockChoice {
    /// Names that [`from_name`](Self::from_name) knows, and what they are.
    pub const NAMES: [(&'static str, &'static str); 2] = [
        ("influence", "blocks that turn the hidden states least, each by itself"),
        ("distance", "neighbouring blocks that together turn them least"),
    ];

    /// The choice of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "influence" => Some(Self::Influence),
            "distance" => Some(Self::Distance),
            _ => None,
        }
    }
}

/// What is left out of a network.
///
/// Every layer loses as many neurons, heads or channels of its own as every other, or the same share of them: `config.json`
/// has one number for all blocks. Blocks go first; then block by block heads, and then neurons.
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use tersor::{Calibration, Checkpoint, Samples, Shrink, ShrinkPlan};
///
/// let model = Checkpoint::open("SmolLM2-135M")?;
/// let shrink = Shrink::new().neurons("25%".parse()?);
/// let plan = ShrinkPlan::new(&model, shrink)?;
/// println!("{} → {} bytes", plan.bytes_before(), plan.bytes_after());
/// let samples = Samples::tokens(vec![vec![504, 253, 1234]])?;
/// let shrunk = plan.run("out", Some(Calibration::new(&samples)), &mut |_| ControlFlow::Continue(()))?;
/// for units in &shrunk.units {
///     println!("{}: {} of {} {} stay", units.layer, units.after, units.before, units.kind);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shrink {
    pub(super) neurons: Option<Amount>,
    pub(super) heads: Option<Amount>,
    pub(super) channels: Option<Amount>,
    pub(super) blocks: Option<Amount>,
    pub(super) choice: BlockChoice,
    pub(super) importance: Importance,
    pub(super) repair: bool,
    pub(super) multiple: Option<NonZeroUsize>,
}

impl Default for Shrink {
    fn default() -> Self {
        Self::new()
    }
}

impl Shrink {
    /// Nothing is left out; what will be, is judged by Wanda's score and repaired.
    pub fn new() -> Self {
        Self {
            neurons: None,
            heads: None,
            channels: None,
            blocks: None,
            choice: BlockChoice::default(),
            importance: Importance::default(),
            repair: true,
            multiple: None,
        }
    }

    /// Leaves out values between two linear layers: of a transformer's feed-forward layers, or of a perceptron's hidden ones.
    #[must_use]
    pub fn neurons(self, amount: Amount) -> Self {
        Self { neurons: Some(amount), ..self }
    }

    /// Leaves out attention heads. Where heads of queries share one of keys and values, they go together, and count as one.
    #[must_use]
    pub fn heads(self, amount: Amount) -> Self {
        Self { heads: Some(amount), ..self }
    }

    /// Leaves out what convolutions give.
    #[must_use]
    pub fn channels(self, amount: Amount) -> Self {
        Self { channels: Some(amount), ..self }
    }

    /// Leaves out whole blocks of a transformer.
    #[must_use]
    pub fn blocks(self, amount: Amount, choice: BlockChoice) -> Self {
        Self { blocks: Some(amount), choice, ..self }
    }

    /// Chooses by what neurons, heads and channels are judged.
    #[must_use]
    pub fn importance(self, importance: Importance) -> Self {
        Self { importance, ..self }
    }

    /// Chooses whether the layers that took what is left out are fitted anew to what stays.
    #[must_use]
    pub fn repair(self, repair: bool) -> Self {
        Self { repair, ..self }
    }

    /// Rounds the number of neurons and channels that stay up to a multiple.
    #[must_use]
    pub fn multiple(self, multiple: NonZeroUsize) -> Self {
        Self { multiple: Some(multiple), ..self }
    }

    /// What is asked for of a kind.
    pub(super) fn amount(&self, kind: UnitKind) -> Option<Amount> {
        match kind {
            UnitKind::Neurons => self.neurons,
            UnitKind::Heads => self.heads,
            UnitKind::Channels => self.channels,
        }
    }

    /// What must be known of the inputs of layers that lose some of them.
    pub(super) fn needs_of_units(&self) -> Needs {
        if self.repair { Needs::Hessian } else { self.importance.needs() }
    }
}
