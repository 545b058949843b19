use std::fs::File;
use std::path::{Path, PathBuf};

use ndarray::Array2;

use super::CalibrateError;
use crate::checkpoint::positioned::{read_exact_at, write_all_at};
use crate::kernels::view::le_bytes;
use crate::model::blockwise::Hidden;

/// The hidden states of all samples between two blocks: in memory up to a limit, beyond it in a file without a name.
#[derive(Debug)]
pub(crate) struct Store {
    items: Vec<Item>,
    /// Bytes that may be held.
    limit: usize,
    held: usize,
    folder: PathBuf,
    file: Option<File>,
    /// Where the file ends.
    end: u64,
}

#[derive(Debug)]
enum Item {
    Held(Hidden),
    Spilled { at: u64, shape: [usize; 2], lengths: Vec<usize> },
}

impl Store {
    /// A store that holds up to `limit` bytes, and keeps what is beyond it in a file in `folder`.
    pub(crate) fn new(limit: usize, folder: &Path) -> Self {
        Self { items: Vec::new(), limit, held: 0, folder: folder.to_path_buf(), file: None, end: 0 }
    }

    /// Number of hidden states.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Adds one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn push(&mut self, hidden: Hidden) -> Result<(), CalibrateError> {
        let bytes = hidden.states.len() * size_of::<f32>();
        let item = if self.held + bytes <= self.limit {
            self.held += bytes;
            Item::Held(hidden)
        } else {
            let at = self.end;
            self.end += bytes as u64;
            let (rows, cols) = hidden.states.dim();
            self.write(at, &hidden.states)?;
            Item::Spilled { at, shape: [rows, cols], lengths: hidden.lengths }
        };
        self.items.push(item);
        Ok(())
    }

    /// Takes one out, to be [put back](Self::put).
    ///
    /// # Errors
    /// When the file cannot be read.
    ///
    /// # Panics
    /// When there is no such one.
    pub(crate) fn take(&mut self, index: usize) -> Result<Hidden, CalibrateError> {
        let (at, [rows, cols], lengths) = match &mut self.items[index] {
            Item::Held(hidden) => {
                let lengths = hidden.lengths.clone();
                return Ok(Hidden { states: std::mem::take(&mut hidden.states), lengths });
            }
            Item::Spilled { at, shape, lengths } => (*at, *shape, lengths.clone()),
        };
        let mut bytes = vec![0u8; rows * cols * size_of::<f32>()];
        if let Some(file) = &self.file {
            read_exact_at(file, &mut bytes, at).map_err(|e| self.error(e))?;
        }
        let values = bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        Ok(Hidden { states: Array2::from_shape_vec((rows, cols), values).unwrap_or_default(), lengths })
    }

    /// A copy of one, which stays.
    ///
    /// # Errors
    /// When the file cannot be read.
    ///
    /// # Panics
    /// When there is no such one.
    pub(crate) fn copy(&mut self, index: usize) -> Result<Hidden, CalibrateError> {
        match &self.items[index] {
            Item::Held(hidden) => Ok(hidden.clone()),
            // which stays in the file
            Item::Spilled { .. } => self.take(index),
        }
    }

    /// Puts one back, which may have another width now.
    ///
    /// # Errors
    /// When the file cannot be written.
    ///
    /// # Panics
    /// When there is no such one.
    pub(crate) fn put(&mut self, index: usize, hidden: Hidden) -> Result<(), CalibrateError> {
        let (rows, cols) = hidden.states.dim();
        match &mut self.items[index] {
            Item::Held(held) => *held = hidden,
            Item::Spilled { at, shape, .. } => {
                if rows * cols > shape[0] * shape[1] {
                    *at = self.end;
                    self.end += (rows * cols * size_of::<f32>()) as u64;
                }
                *shape = [rows, cols];
                let at = *at;
                self.write(at, &hidden.states)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, at: u64, states: &Array2<f32>) -> Result<(), CalibrateError> {
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile_in(&self.folder).map_err(|e| self.error(e))?);
        }
        let Some(file) = &self.file else { return Ok(()) };
        let standard = states.as_standard_layout();
        let bytes = le_bytes(standard.as_slice().unwrap_or_default());
        write_all_at(file, &bytes, at).map_err(|e| self.error(e))
    }

    fn error(&self, source: std::io::Error) -> CalibrateError {
        CalibrateError::Store { path: self.folder.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(rows: usize, cols: usize, first: f32) -> Hidden {
        let states = Array2::from_shape_fn((rows, cols), |(r, c)| first + (r * cols + c) as f32);
        Hidden { states, lengths: vec![rows] }
    }

    #[test]
    fn what_spills_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        // 48 bytes: two of the five are held
        let mut store = Store::new(48, folder.path());
        for i in 0..5 {
            store.push(hidden(2, 3, i as f32 * 100.0)).unwrap();
        }
        assert_eq!(store.items.iter().filter(|item| matches!(item, Item::Held(_))).count(), 2);
        for round in 0..3 {
            for i in 0..5 {
                let first = (i * 100 + round) as f32;
                // widths change from block to block
                let cols = 3 + round;
                assert_eq!(store.take(i).unwrap(), hidden(2, cols, first));
                store.put(i, hidden(2, cols + 1, first + 1.0)).unwrap();
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
    }
}
