//! Calibration: what goes into a network's layers when it runs on [`Samples`].
//!
//! A [calibrated run](crate::Plan::run_calibrated) takes one block after the other, and in it one group of layers with the same
//! input after the other: it runs the block on the hidden states of all samples up to these layers, gathers their
//! [`LayerStats`](crate::LayerStats), and compresses them. The compressed block then gives the hidden states for the next one.
//! Nothing but one block's statistics and the hidden states, which spill to a file past a limit, is ever held.

mod error;
mod gather;
mod order;
mod own_text;
mod read;
mod samples;
mod saved;
mod store;

pub use error::CalibrateError;
pub(crate) use gather::{BATCH_INPUTS, BATCH_TOKENS, Group, embed, observe_block, run_block};
pub(crate) use order::spread;
pub use own_text::OwnText;
pub use read::Cut;
pub use samples::Samples;
pub(crate) use saved::{Saved, hash_of_inputs};
pub(crate) use store::Store;
