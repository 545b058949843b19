//! Checkpoints: files ↔ weights.
//!
//! [`Checkpoint`] opens a safetensors file, a sharded folder with its index, or a Hugging Face folder. Files are
//! mapped and read when a tensor is asked for. Tensors that together store one compressed weight appear as one
//! [`Entry`], named like the weight they stand for.
//!
#![doc = include_str!("../../docs/formats.md")]

mod class;
mod companions;
mod error;
mod floats;
mod folder;
pub(crate) mod formats;
mod header;
mod mapped;
mod masks;
mod mmap;
mod open;
mod output;
pub(crate) mod positioned;
mod save;
mod writer;

pub use class::TensorClass;
pub(crate) use companions::Companions;
pub use error::CheckpointError;
pub(crate) use floats::{FloatBuffer, FloatSource};
pub(crate) use folder::INDEX;
pub use formats::{StoredTensor, coded_tensor, stored_tensors};
pub(crate) use mapped::MappedTensor;
pub use masks::{load_masks, save_masks};
pub use open::{Checkpoint, Entry, Stored, TensorRef};
pub(crate) use output::{MANIFEST, OutputFolder, write_atomically};
pub use save::save_weights;
pub(crate) use writer::{TensorSpec, TensorWriter, file_bytes};
