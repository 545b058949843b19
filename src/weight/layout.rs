use rayon::prelude::*;

use super::form::{LayoutKind, NofM};
use super::packed::PackedCodes;
use super::{Mask, WeightError};
use crate::kernels::{CHUNK, mask};

/// Where the kept values of a matrix stand.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Layout {
    Dense,
    Bitmask {
        mask: Mask,
        /// Index of each row's first value.
        starts: Vec<usize>,
    },
    NofM {
        pattern: NofM,
        /// Position within its group of every kept value, in one stream.
        positions: PackedCodes,
    },
    CompressedRows {
        /// Index of each row's first value, and the number of values.
        offsets: Vec<u64>,
        columns: Vec<u32>,
    },
    Empty,
}

impl Layout {
    pub(crate) fn kind(&self) -> LayoutKind {
        match self {
            Self::Dense => LayoutKind::Dense,
            Self::Bitmask { .. } => LayoutKind::Bitmask,
            Self::NofM { pattern, .. } => LayoutKind::NofM(*pattern),
            Self::CompressedRows { .. } => LayoutKind::CompressedRows,
            Self::Empty => LayoutKind::Empty,
        }
    }

    /// Lays out the kept positions of `mask`. A dense layout ignores it.
    pub(crate) fn from_mask(kind: LayoutKind, mask: &Mask) -> Result<Self, WeightError> {
        match kind {
            LayoutKind::Dense => Ok(Self::Dense),
            LayoutKind::Bitmask => Ok(Self::bitmask(mask.clone())),
            LayoutKind::NofM(pattern) => {
                let (m, per_row) = (pattern.m(), pattern.kept_per_row(mask.cols()));
                let mut positions = vec![0; mask.rows() * per_row];
                let place = |row: usize, out: &mut [u8]| {
                    let mut next = 0;
                    for (group, expected) in groups(pattern, mask.cols()) {
                        let bits = mask.group(row, group * m, m);
                        if bits.count_ones() as usize != expected {
                            // says what is wrong with the row
                            return check_n_of_m(pattern, mask.cols(), row, mask.kept_in_row(row));
                        }
                        let mut left = bits;
                        for out in &mut out[next..next + expected] {
                            *out = left.trailing_zeros() as u8;
                            left &= left - 1;
                        }
                        next += expected;
                    }
                    Ok(())
                };
                if per_row > 0 {
                    let rows = positions.par_chunks_mut(per_row).enumerate();
                    let min_rows = (CHUNK / per_row).max(1);
                    // of several faults the first row's is told
                    let fault =
                        rows.with_min_len(min_rows).find_map_first(|(row, out)| place(row, out).err());
                    fault.map_or(Ok(()), Err)?;
                }
                let positions = PackedCodes::from_codes(pattern.position_bits(), &positions);
                Ok(Self::NofM { pattern, positions })
            }
            LayoutKind::CompressedRows => {
                let mut offsets = vec![0u64];
                let mut columns = Vec::with_capacity(mask.kept());
                for row in 0..mask.rows() {
                    mask::for_each_set(mask.row_bytes(row), |col| columns.push(col as u32));
                    offsets.push(columns.len() as u64);
                }
                Ok(Self::CompressedRows { offsets, columns })
            }
            LayoutKind::Empty => Ok(Self::Empty),
        }
    }

    pub(crate) fn bitmask(mask: Mask) -> Self {
        let mut next = 0;
        // rows without columns take no bytes in a file, so that their number is anyone's claim
        let rows = if mask.cols() == 0 { 0 } else { mask.rows() };
        let starts = (0..rows)
            .map(|row| {
                let start = next;
                next += mask.kept_count_in_row(row);
                start
            })
            .collect();
        Self::Bitmask { mask, starts }
    }

    /// N:M from stored positions, which are checked.
    pub(crate) fn n_of_m(
        pattern: NofM,
        rows: usize,
        cols: usize,
        words: Vec<u32>,
    ) -> Result<Self, WeightError> {
        let per_row = pattern.kept_per_row(cols);
        let bits = pattern.position_bits();
        let positions =
            PackedCodes::from_words("words of positions", bits, 1, rows.saturating_mul(per_row), words)?;
        let layout = Self::NofM { pattern, positions };
        let mut columns = Vec::new();
        let rows = if cols == 0 { 0 } else { rows };
        for row in 0..rows {
            layout.columns_of(row, cols, &mut columns);
            check_n_of_m(pattern, cols, row, columns.iter().map(|c| *c as usize))?;
        }
        Ok(layout)
    }

    /// Compressed rows from stored offsets and columns, which are checked.
    pub(crate) fn compressed_rows(
        rows: usize,
        cols: usize,
        offsets: Vec<u64>,
        columns: Vec<u32>,
    ) -> Result<Self, WeightError> {
        WeightError::check_len("row offsets", rows + 1, offsets.len())?;
        let bad = |row: usize, reason: String| Err(WeightError::Positions { row, reason });
        for row in 0..rows {
            let (from, to) = (offsets[row], offsets[row + 1]);
            let first_is_zero = row > 0 || from == 0;
            if from > to || to > columns.len() as u64 || !first_is_zero {
                return bad(
                    row,
                    format!("offsets {from} to {to} do not lie within {} columns", columns.len()),
                );
            }
            let mut last = None;
            for col in &columns[from as usize..to as usize] {
                if *col as usize >= cols || last.is_some_and(|last| last >= *col) {
                    return bad(row, format!("column {col} is out of order or not below {cols}"));
                }
                last = Some(*col);
            }
        }
        let used = offsets[rows] as usize;
        WeightError::check_len("columns of compressed rows", used, columns.len())?;
        Ok(Self::CompressedRows { offsets, columns })
    }

    /// Number of stored values.
    pub(crate) fn kept(&self, rows: usize, cols: usize) -> usize {
        match self {
            Self::Dense => rows * cols,
            Self::Bitmask { mask, .. } => mask.kept(),
            Self::NofM { pattern, .. } => rows * pattern.kept_per_row(cols),
            Self::CompressedRows { columns, .. } => columns.len(),
            Self::Empty => 0,
        }
    }

    /// Puts the columns of a row's values into `columns`, ascending, and gives the index of the first value.
    ///
    /// Not for a dense layout, whose columns are all.
    pub(crate) fn columns_of(&self, row: usize, cols: usize, columns: &mut Vec<u32>) -> usize {
        columns.clear();
        match self {
            Self::Dense => {
                columns.extend(0..cols as u32);
                row * cols
            }
            Self::Bitmask { mask, starts } => {
                mask::for_each_set(mask.row_bytes(row), |col| columns.push(col as u32));
                starts[row]
            }
            Self::NofM { pattern, positions } => {
                let per_row = pattern.kept_per_row(cols);
                let mut buffer = vec![0u8; per_row];
                positions.unpack(0, row * per_row, &mut buffer);
                columns.extend(
                    buffer
                        .iter()
                        .enumerate()
                        .map(|(i, position)| (i / pattern.n() * pattern.m()) as u32 + u32::from(*position)),
                );
                row * per_row
            }
            Self::CompressedRows { offsets, columns: all } => {
                columns.extend_from_slice(&all[offsets[row] as usize..offsets[row + 1] as usize]);
                offsets[row] as usize
            }
            Self::Empty => 0,
        }
    }
}

/// The groups of a row, and how many values each keeps.
fn groups(pattern: NofM, cols: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..cols.div_ceil(pattern.m())).map(move |g| (g, pattern.n().min(cols - g * pattern.m())))
}

/// Checks that the kept columns of a row are ascending, inside the row, and as many per group as the pattern has.
fn check_n_of_m(
    pattern: NofM,
    cols: usize,
    row: usize,
    kept: impl Iterator<Item = usize>,
) -> Result<(), WeightError> {
    let mut counts = vec![0usize; cols.div_ceil(pattern.m())];
    let mut last = None;
    for col in kept {
        if col >= cols || last.is_some_and(|last| last >= col) {
            let reason = format!("position of column {col} is out of order or beyond {cols} columns");
            return Err(WeightError::Positions { row, reason });
        }
        counts[col / pattern.m()] += 1;
        last = Some(col);
    }
    for ((group, expected), count) in groups(pattern, cols).zip(&counts) {
        if *count != expected {
            let reason = format!("group {group} keeps {count} values where {pattern} has {expected}");
            return Err(WeightError::Positions { row, reason });
        }
    }
    Ok(())
}
