//! The tensors of the smaller network, written as soon as it is known what they lose.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::plan::{ShrinkPlan, ShrunkFile, ShrunkTensor};
use crate::checkpoint::formats::encode;
use crate::checkpoint::{CheckpointError, INDEX, MANIFEST, OutputFolder, TensorWriter, file_bytes};
use crate::pipeline::run::{index, pretty};
use crate::weight::CompressedWeight;

/// The output while it is written.
pub(super) struct Output<'p> {
    plan: &'p ShrinkPlan<'p>,
    folder: OutputFolder,
    tensors: Vec<ShrunkTensor>,
    files: Vec<ShrunkFile>,
    writers: Vec<TensorWriter>,
    /// From a tensor's new name to its file and place.
    slots: HashMap<String, (usize, usize)>,
    /// Of every group, which units stay, once that is known.
    decided: HashMap<usize, Vec<bool>>,
    /// Tensors that have other values now; without the columns that they lost.
    replaced: HashMap<String, CompressedWeight>,
    written: Vec<bool>,
}

impl<'p> Output<'p> {
    pub(super) fn create(
        plan: &'p ShrinkPlan<'p>,
        folder: OutputFolder,
        kept_blocks: &[bool],
    ) -> Result<Self, CheckpointError> {
        let tensors = plan.tensors_with(kept_blocks);
        let files = plan.files(&tensors);
        let (mut writers, mut slots) = (Vec::new(), HashMap::new());
        for (number, file) in files.iter().enumerate() {
            let path = folder.path().join(&file.name);
            writers.push(TensorWriter::create(&path, file.specs.clone(), &file.metadata)?);
            slots.extend(
                file.specs.iter().enumerate().map(|(slot, spec)| (spec.name.clone(), (number, slot))),
            );
        }
        let written = vec![false; tensors.len()];
        let (decided, replaced) = (HashMap::new(), HashMap::new());
        Ok(Self { plan, folder, tensors, files, writers, slots, decided, replaced, written })
    }

    /// Bytes of the safetensors files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file_bytes(&file.specs, &file.metadata)).sum()
    }

    /// Says which units of a group stay, and what other values tensors have now.
    pub(super) fn decide(
        &mut self,
        group: usize,
        kept: Vec<bool>,
        replaced: impl IntoIterator<Item = (String, CompressedWeight)>,
    ) {
        self.decided.insert(group, kept);
        self.replaced.extend(replaced);
    }

    /// Writes all tensors of which everything is known; gives the bytes of the source that they were.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn write_ready(&mut self) -> Result<u64, CheckpointError> {
        let mut done = 0;
        for (tensor, written) in self.tensors.iter().zip(&mut self.written) {
            let is_ready = tensor.cuts.waits_for.iter().all(|group| self.decided.contains_key(group));
            let Some(name) = tensor.becomes.as_ref().filter(|_| is_ready && !*written) else { continue };
            let entry = &self.plan.checkpoint.entries()[tensor.entry];
            let source = self.plan.checkpoint.tensor(&tensor.name)?;
            let kept = |cut: Option<(usize, usize)>| {
                let (group, width) = cut?;
                let kept = self.decided.get(&group)?;
                Some(kept.iter().flat_map(|kept| std::iter::repeat_n(*kept, width)).collect::<Vec<bool>>())
            };
            let (rows, cols) = (kept(tensor.cuts.rows), kept(tensor.cuts.cols));
            let replaced = self.replaced.remove(&tensor.name);
            let new: Vec<u8>;
            let bytes = match &replaced {
                None => cut(
                    source.bytes,
                    entry.shape.first().copied().unwrap_or(1),
                    rows.as_deref(),
                    cols.as_deref(),
                ),
                Some(weight) => {
                    new = encode(weight).into_iter().flat_map(|(_, bytes)| bytes.into_owned()).collect();
                    // its columns have gone already
                    cut(&new, weight.rows(), rows.as_deref(), None)
                }
            };
            if let Some((file, slot)) = self.slots.get(name) {
                self.writers[*file].put(*slot, 0, &bytes)?;
            }
            self.plan.checkpoint.release_entry(entry);
            *written = true;
            done += entry.bytes;
        }
        Ok(done)
    }

    /// Completes the folder.
    ///
    /// # Errors
    /// When a tensor is missing, or the disk refuses.
    pub(super) fn finish(self, config: Option<&Value>, manifest: &Value) -> Result<PathBuf, CheckpointError> {
        for writer in self.writers {
            writer.finish()?;
        }
        let source = self.plan.source();
        for companion in &self.plan.companions.carried {
            self.folder.copy(&source.join(companion), companion)?;
        }
        if self.plan.checkpoint.files().len() > 1 {
            let files = self.files.iter();
            let specs = files.flat_map(|file| file.specs.iter().map(|spec| (spec, file.name.as_str())));
            self.folder.write(Path::new(INDEX), &pretty(&index(specs)))?;
        }
        if let Some(config) = config {
            self.folder.write(Path::new("config.json"), &pretty(config))?;
        }
        self.folder.write(Path::new(MANIFEST), &pretty(manifest))?;
        self.folder.finish()
    }
}

/// The rows and columns of a matrix of any type that stay.
fn cut<'b>(
    bytes: &'b [u8],
    rows: usize,
    kept_rows: Option<&[bool]>,
    kept_cols: Option<&[bool]>,
) -> Cow<'b, [u8]> {
    if (kept_rows.is_none() && kept_cols.is_none()) || rows == 0 {
        return Cow::Borrowed(bytes);
    }
    let row_bytes = bytes.len() / rows;
    let mut out = Vec::new();
    for (row, bytes) in bytes.chunks_exact(row_bytes.max(1)).enumerate() {
        if kept_rows.is_some_and(|kept| !kept[row]) {
            continue;
        }
        match kept_cols {
            None => out.extend_from_slice(bytes),
            Some(kept) => {
                let size = row_bytes / kept.len().max(1);
                let values = bytes.chunks_exact(size.max(1)).zip(kept);
                values.filter(|(_, kept)| **kept).for_each(|(value, _)| out.extend_from_slice(value));
            }
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_go() {
        // three rows of four values of two bytes
        let bytes: Vec<u8> = (0..24).collect();
        let all = cut(&bytes, 3, None, None);
        assert!(matches!(all, Cow::Borrowed(_)) && *all == bytes);
        assert_eq!(*cut(&bytes, 3, Some(&[false, true, false]), None), (8..16).collect::<Vec<u8>>());
        let cols = [false, true, true, false];
        assert_eq!(*cut(&bytes, 3, Some(&[true, false, true]), Some(&cols)), [2, 3, 4, 5, 18, 19, 20, 21]);
        assert_eq!(*cut(&[1, 2, 3, 4], 4, Some(&[true, false, false, true]), None), [1, 4]);
    }
}
