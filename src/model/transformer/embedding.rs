use crate::model::ModelError;
use crate::model::linear::MappedMatrix;
use crate::weight::CompressedWeight;

/// A lookup table: one row for every token.
#[derive(Debug, Clone)]
pub(super) enum Embedding {
    Mapped(MappedMatrix),
    /// In the form in which it is stored.
    Compressed(Box<CompressedWeight>),
}

impl Embedding {
    /// Writes the rows of some tokens, which get `[tokens, width]` of room.
    ///
    /// # Errors
    /// When a token is beyond the table.
    pub(super) fn look_up(&self, tokens: &[u32], width: usize, out: &mut Vec<f32>) -> Result<(), ModelError> {
        let rows = match self {
            Self::Mapped(matrix) => matrix.rows,
            Self::Compressed(weight) => weight.rows(),
        };
        if let Some((position, token)) = tokens.iter().enumerate().find(|(_, t)| **t as usize >= rows) {
            let reason = format!(
                "token {token} at position {position} is beyond the model's vocabulary of {rows}; tokenizer and model \
                 do not fit each other"
            );
            return Err(ModelError::Tokens { reason });
        }
        out.resize(tokens.len() * width, 0.0);
        for (token, out) in tokens.iter().zip(out.chunks_exact_mut(width.max(1))) {
            let row = *token as usize;
            match self {
                Self::Mapped(matrix) => matrix.read(row, out),
                Self::Compressed(weight) => weight.decode_rows(row..row + 1, out),
            }
        }
        Ok(())
    }
}
