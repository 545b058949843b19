//! Which weights share one scale or codebook.

use std::fmt;
use std::num::NonZeroUsize;

/// Which weights share one scale.
///
/// Every granularity tiles the `[rows, cols]` matrix with rectangles of one size; tiles at the right and lower edge
/// may be smaller (a ragged last group).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// One scale for the whole weight.
    Tensor,
    /// One scale per row (output feature).
    Channel,
    /// One scale per run of this many columns of a row.
    Group(NonZeroUsize),
    /// One scale per tile of `[rows, cols]`.
    Block(NonZeroUsize, NonZeroUsize),
}

impl Granularity {
    /// The tiling of a `[rows, cols]` matrix.
    pub fn grid(self, rows: usize, cols: usize) -> ScaleGrid {
        let (block_rows, block_cols) = match self {
            Self::Tensor => (rows, cols),
            Self::Channel => (1, cols),
            Self::Group(size) => (1, size.get()),
            Self::Block(rows, cols) => (rows.get(), cols.get()),
        };
        let (block_rows, block_cols) = (block_rows.max(1), block_cols.max(1));
        ScaleGrid {
            block_rows,
            block_cols,
            // A tensor or row without elements still has its scale, so that shapes do not depend on emptiness.
            rows: if self == Self::Tensor { 1 } else { rows.div_ceil(block_rows) },
            cols: match self {
                Self::Tensor | Self::Channel => 1,
                _ => cols.div_ceil(block_cols),
            },
        }
    }
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor => f.write_str("tensor"),
            Self::Channel => f.write_str("channel"),
            Self::Group(size) => write!(f, "group {size}"),
            Self::Block(rows, cols) => write!(f, "block {rows}×{cols}"),
        }
    }
}

/// A tiling of a matrix: tile size, and number of tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScaleGrid {
    /// Rows of one tile.
    pub block_rows: usize,
    /// Columns of one tile.
    pub block_cols: usize,
    /// Tiles from top to bottom.
    pub rows: usize,
    /// Tiles from left to right.
    pub cols: usize,
}

impl ScaleGrid {
    /// Number of tiles, and so of scales.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there are no tiles.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Index of the tile that holds `(row, col)`, row-major.
    #[inline]
    pub fn index(&self, row: usize, col: usize) -> usize {
        (row / self.block_rows) * self.cols + col / self.block_cols
    }
}
