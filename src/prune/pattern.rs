use std::fmt;

use super::magnitude::Sparsity;
use crate::weight::NofM;

/// How many weights of a layer go, and among which it is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SparsityPattern {
    /// A fraction, wherever they stand.
    Unstructured(Sparsity),
    /// All but `n` of every `m` neighbours in a row.
    NofM(NofM),
}

impl SparsityPattern {
    /// How many weights of a `[rows, cols]` matrix are kept, if it is chosen among all of them.
    pub fn kept(self, rows: usize, cols: usize) -> usize {
        match self {
            Self::Unstructured(sparsity) => rows * cols - sparsity.of((rows * cols) as u64) as usize,
            Self::NofM(pattern) => rows * pattern.kept_per_row(cols),
        }
    }
}

impl fmt::Display for SparsityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unstructured(sparsity) => {
                f.write_str(&format!("{:.4}%", sparsity.get() * 100.0).replace(".0000", ""))
            }
            Self::NofM(pattern) => pattern.fmt(f),
        }
    }
}
