use crate::checkpoint::{Checkpoint, Stored};
use crate::model::ModelError;
use crate::model::linear::{Linear, MappedMatrix, Matrix};
use crate::model::network::{Execution, PlainWeights};
use crate::model::overlay::Overlay;
use crate::weight::CompressedWeight;

use super::embedding::Embedding;

/// Tensors of a checkpoint, by name and expected shape.
pub(super) struct Tensors<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    /// What stands in for some of them.
    pub(super) overlay: &'a Overlay,
    pub(super) execution: Execution,
    /// What stands before every name: `model.`, `bert.` or nothing.
    pub(super) prefix: &'static str,
}

impl Tensors<'_> {
    /// The first prefix under which a tensor exists; the first of all if it does not.
    pub(super) fn prefix(checkpoint: &Checkpoint, prefixes: &[&'static str], name: &str) -> &'static str {
        let exists = |prefix: &&&str| checkpoint.entry(&format!("{prefix}{name}")).is_ok();
        prefixes.iter().find(exists).or(prefixes.first()).copied().unwrap_or_default()
    }

    fn error(&self, layer: &str, reason: String) -> ModelError {
        let path = self.checkpoint.entry_file(layer).unwrap_or(self.checkpoint.path()).to_path_buf();
        ModelError::Layer { path, layer: layer.to_owned(), reason }
    }

    fn check_shape(&self, name: &str, expected: &[usize]) -> Result<(), ModelError> {
        let actual = self.overlay.shape(self.checkpoint, name)?;
        if actual == expected {
            return Ok(());
        }
        Err(self.error(name, format!("has the shape {actual:?}, but config.json asks for {expected:?}")))
    }

    /// A vector of a normalization or a bias.
    pub(super) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let name = format!("{}{name}", self.prefix);
        self.check_shape(&name, &[len])?;
        self.overlay.dense(self.checkpoint, &name)
    }

    /// A linear layer, `[out, in]`, with a bias if there is one to be.
    pub(super) fn linear(
        &self,
        name: &str,
        shape: [usize; 2],
        with_bias: bool,
    ) -> Result<Linear, ModelError> {
        let bias = with_bias.then(|| self.vector(&format!("{name}.bias"), shape[0])).transpose()?;
        let name = format!("{}{name}", self.prefix);
        let matrix = self.matrix(&format!("{name}.weight"), shape)?;
        Ok(Linear { name, matrix, bias })
    }

    /// A lookup table, `[count, width]`.
    pub(super) fn embedding(&self, name: &str, shape: [usize; 2]) -> Result<Embedding, ModelError> {
        let name = format!("{}{name}.weight", self.prefix);
        self.check_shape(&name, &shape)?;
        if let Some(weight) = self.overlay.get(&name) {
            return Ok(Embedding::Compressed(Box::new(weight.clone())));
        }
        Ok(match self.mapped(&name, shape)? {
            Some(matrix) => Embedding::Mapped(matrix),
            None => Embedding::Compressed(Box::new(self.checkpoint.weight(&name)?)),
        })
    }

    /// A lookup table as the matrix of a linear layer.
    pub(super) fn head_of(&self, name: &str, table: &Embedding) -> Result<Matrix, ModelError> {
        let name = &format!("{}{name}.weight", self.prefix);
        match table {
            Embedding::Mapped(matrix) => match self.execution.plain_weights {
                PlainWeights::Mapped => Ok(Matrix::Mapped(matrix.clone())),
                PlainWeights::Packed => self.packed(name, &self.checkpoint.weight(name)?),
            },
            Embedding::Compressed(weight) => self.packed(name, weight),
        }
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix, ModelError> {
        self.check_shape(name, &shape)?;
        if let Some(weight) = self.overlay.get(name) {
            return self.packed(name, weight);
        }
        if self.execution.plain_weights == PlainWeights::Mapped
            && let Some(matrix) = self.mapped(name, shape)?
        {
            return Ok(Matrix::Mapped(matrix));
        }
        let packed = self.packed(name, &self.checkpoint.weight(name)?);
        // the packed form is all that is read from here on
        if let Ok(entry) = self.checkpoint.entry(name) {
            self.checkpoint.release_entry(entry);
        }
        packed
    }

    fn packed(&self, name: &str, weight: &CompressedWeight) -> Result<Matrix, ModelError> {
        let packed = self.execution.packed(weight).map_err(|error| self.error(name, error.to_string()))?;
        Ok(Matrix::Packed(Box::new(packed)))
    }

    /// A plain tensor where it is mapped.
    fn mapped(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<Option<MappedMatrix>, ModelError> {
        match self.checkpoint.entry(name)?.stored {
            Stored::Compressed(_) => Ok(None),
            Stored::Plain(_) => {
                let tensor = self.checkpoint.mapped(name)?;
                Ok(tensor.map(|tensor| MappedMatrix { tensor, rows, cols }))
            }
        }
    }
}
