use std::collections::HashMap;
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::model::ModelError;
use crate::weight::CompressedWeight;

/// Tensors that stand in for some of a checkpoint's while it is being compressed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overlay {
    tensors: HashMap<String, Arc<CompressedWeight>>,
}

impl Overlay {
    /// Lets `weight` stand in for the tensor of this name.
    pub(crate) fn insert(&mut self, name: &str, weight: CompressedWeight) {
        self.tensors.insert(name.to_owned(), Arc::new(weight));
    }

    /// What stands in for a tensor.
    pub(crate) fn get(&self, name: &str) -> Option<&CompressedWeight> {
        self.tensors.get(name).map(Arc::as_ref)
    }

    /// Lets the checkpoint's own tensor be seen again.
    pub(crate) fn remove(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// The values of a tensor: of what stands in for it, else the checkpoint's.
    ///
    /// # Errors
    /// As [`Checkpoint::dense`].
    pub(crate) fn dense(&self, checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>, ModelError> {
        match self.get(name) {
            Some(weight) => Ok(weight.dequantize().into_raw_vec_and_offset().0),
            None => Ok(checkpoint.dense(name)?),
        }
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// When neither has one of this name.
    pub(crate) fn shape<'a>(
        &'a self,
        checkpoint: &'a Checkpoint,
        name: &str,
    ) -> Result<&'a [usize], ModelError> {
        match self.get(name) {
            Some(weight) => Ok(weight.shape()),
            None => Ok(&checkpoint.entry(name)?.shape),
        }
    }
}
