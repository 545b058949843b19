//! Calibration: what goes into a network's layers when it runs on [`Samples`].
//!
//! [`observe_block`] runs one block on the hidden states of all samples and gathers, of every group of layers with the same
//! input, the [`LayerStats`](crate::LayerStats) that methods ask for. Nothing but one block's statistics and the hidden
//! states, which [spill to a file](Store) past a limit, is ever held.

mod error;
mod gather;
mod read;
mod samples;
mod saved;
mod store;

pub use error::CalibrateError;
pub(crate) use gather::{Group, embed, observe_block, run_block};
pub use read::Cut;
pub use samples::Samples;
pub(crate) use saved::Saved;
pub(crate) use store::Store;
