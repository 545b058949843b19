//! Plain tensors of floats, read in pieces.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use super::CheckpointError;
use super::positioned;
use crate::dtype::FloatType;
use crate::kernels::{convert, view};

/// A finite f64 that became an infinite f32 is no fault of the checkpoint's, and no infinity of its. `values` are the
/// elements of the tensor from `first` on, and `bytes` what they were.
pub(super) fn check_overflow(
    path: &Path,
    name: &str,
    first: usize,
    bytes: &[u8],
    values: &[f32],
) -> Result<(), CheckpointError> {
    let (wide, _) = bytes.as_chunks::<8>();
    let overflows = |i: &usize| values[*i].is_infinite() && f64::from_le_bytes(wide[*i]).is_finite();
    let Some(index) = (0..values.len()).find(overflows) else { return Ok(()) };
    let reason = format!(
        "{:e} at index {} is beyond {:e}, the largest f32, in which tersor computes; rescale the tensor or ignore it",
        f64::from_le_bytes(wide[index]),
        first + index,
        f32::MAX
    );
    Err(CheckpointError::tensor(path, name, reason))
}

/// A plain tensor of floats, read in pieces.
///
/// Pieces are read into the caller's buffers rather than taken from the map: copying from the system's cache is twice as
/// fast as having its pages mapped, and they never count as this process's memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FloatSource<'a> {
    pub(super) path: &'a Path,
    pub(super) name: &'a str,
    pub(super) file: &'a File,
    pub(super) start: u64,
    pub(super) float: FloatType,
}

/// Space to read pieces into, for reuse.
#[derive(Default)]
pub(crate) struct FloatBuffer {
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl FloatSource<'_> {
    /// Reads some elements, row-major.
    pub(crate) fn read<'b>(
        &self,
        elements: Range<usize>,
        buffer: &'b mut FloatBuffer,
    ) -> Result<&'b [f32], CheckpointError> {
        let offset = self.start + (elements.start * self.float.size()) as u64;
        let error = || CheckpointError::io(self.path, "read");
        let FloatBuffer { bytes, values } = buffer;
        values.resize(elements.len(), 0.0);
        if self.float == FloatType::F32
            && let Some(bytes) = view::le_bytes_mut(values)
        {
            positioned::read_exact_at(self.file, bytes, offset).map_err(error())?;
        } else {
            bytes.resize(elements.len() * self.float.size(), 0);
            positioned::read_exact_at(self.file, bytes, offset).map_err(error())?;
            convert::widen(self.float, bytes, values);
            if self.float == FloatType::F64 {
                check_overflow(self.path, self.name, elements.start, bytes, values)?;
            }
        }
        Ok(values)
    }

    /// Bytes of the buffers that so many elements are read into.
    pub(crate) fn buffer_bytes(float: FloatType, elements: usize) -> usize {
        elements * if float == FloatType::F32 { 4 } else { 4 + float.size() }
    }
}
