//! Statistics on the disk, for runs that come later.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{CalibrateError, Group, Samples};
use crate::checkpoint::{Checkpoint, CheckpointError, TensorSpec, TensorWriter, write_atomically};
use crate::dtype::DType;
use crate::file::{hash_regular, read_regular};
use crate::layer::{LayerStats, StatsParts};

const STATE: &str = "statistics.json";

/// A folder with the statistics of every block, `block-00000.safetensors` and so on: of every group of layers with the same input,
/// under the name of the first, `….abs_max`, `….sums` (of values, magnitudes and squares) and `….gram` (on and above the
/// diagonal, row by row).
#[derive(Debug)]
pub(crate) struct Saved {
    folder: PathBuf,
}

/// A hash of everything that the inputs of a network's layers depend on: its weights, the samples, and how it was turned before.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn hash_of_inputs(
    checkpoint: &Checkpoint,
    samples: Option<&Samples>,
    rotation: &str,
) -> Result<Sha256, CalibrateError> {
    let mut hash = Sha256::new();
    for path in checkpoint.files() {
        let (_, of_file) = hash_regular(path).map_err(CheckpointError::io(path, "open"))?;
        hash.update(of_file);
    }
    if let Some(config) = checkpoint.config() {
        hash.update(config.to_string());
    }
    let samples = samples.map(Samples::fingerprint).unwrap_or_default();
    hash.update(format!("{samples} {rotation}"));
    Ok(hash)
}

impl Saved {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// When it holds statistics of another model, other samples or another rotation, or the disk refuses.
    pub(crate) fn open(folder: &Path, fingerprint: &str) -> Result<Self, CalibrateError> {
        let bad = |reason: String| CalibrateError::Samples { path: Some(folder.to_path_buf()), reason };
        fs::create_dir_all(folder).map_err(CheckpointError::io(folder, "create"))?;
        let mine = serde_json::json!({ "tersor": env!("CARGO_PKG_VERSION"), "fingerprint": fingerprint });
        match read_regular(&folder.join(STATE)) {
            Ok(bytes) if serde_json::from_slice::<serde_json::Value>(&bytes).ok().as_ref() == Some(&mine) => {
            }
            Ok(_) => {
                let reason = "holds statistics of another model, other samples or another rotation; choose another folder";
                return Err(bad(reason.into()));
            }
            Err(_) if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) => {
                return Err(bad(format!("holds something else: it has no {STATE}; choose another folder")));
            }
            Err(_) => write_atomically(folder, STATE, |path| {
                fs::write(path, format!("{mine:#}\n")).map_err(CheckpointError::io(path, "write"))
            })?,
        }
        Ok(Self { folder: folder.to_path_buf() })
    }

    fn name(block: usize) -> String {
        format!("block-{block:05}.safetensors")
    }

    /// Whether a block's statistics are there.
    pub(crate) fn has(&self, block: usize) -> bool {
        self.folder.join(Self::name(block)).exists()
    }

    /// Fills some groups of a block.
    ///
    /// # Errors
    /// When the file is damaged.
    pub(crate) fn read(&self, block: usize, groups: &mut [Group]) -> Result<(), CalibrateError> {
        let path = self.folder.join(Self::name(block));
        let file = Checkpoint::open(&path)?;
        let bad = |reason: String| CalibrateError::Samples { path: Some(path.clone()), reason };
        for group in groups {
            let Some(first) = group.layers.first() else { continue };
            let wide = |part: &str| -> Result<Vec<f64>, CalibrateError> {
                let tensor = file.tensor(&format!("{first}.{part}"))?;
                Ok(tensor.bytes.as_chunks::<8>().0.iter().map(|x| f64::from_le_bytes(*x)).collect())
            };
            let tokens = file.metadata(0).and_then(|all| all.get(first)?.parse().ok());
            let parts = StatsParts {
                tokens: tokens.ok_or_else(|| bad(format!("does not say of how many tokens `{first}` is")))?,
                abs_max: file.dense(&format!("{first}.abs_max"))?,
                sums: wide("sums")?,
                gram: wide("gram")?,
            };
            let stats = LayerStats::from_parts(parts);
            group.stats =
                Some(stats.ok_or_else(|| bad(format!("the parts of `{first}` do not fit each other")))?);
        }
        Ok(())
    }

    /// Writes the statistics of a block, and waits until the disk has them.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn write(&self, block: usize, groups: &[Group]) -> Result<(), CalibrateError> {
        let mut specs = Vec::new();
        let mut data: Vec<Vec<u8>> = Vec::new();
        let mut tokens = BTreeMap::new();
        for group in groups {
            let (Some(first), Some(stats)) = (group.layers.first(), &group.stats) else { continue };
            let parts = stats.parts();
            tokens.insert(first.clone(), parts.tokens.to_string());
            let mut add = |part: &str, dtype, shape, bytes| {
                specs.push(TensorSpec { name: format!("{first}.{part}"), dtype, shape });
                data.push(bytes);
            };
            let wide = |values: &[f64]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
            let narrow = parts.abs_max.iter().flat_map(|x| x.to_le_bytes()).collect();
            add("abs_max", DType::F32, vec![stats.size()], narrow);
            add("sums", DType::F64, vec![3, stats.size()], wide(&parts.sums));
            add("gram", DType::F64, vec![parts.gram.len()], wide(&parts.gram));
        }
        write_atomically(&self.folder, &Self::name(block), |path| {
            fs::remove_file(path).ok();
            let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
            let mut writer = TensorWriter::create(path, specs, &tokens)?;
            for (name, bytes) in names.iter().zip(&data) {
                writer.write(name, bytes)?;
            }
            writer.finish()
        })?;
        Ok(())
    }
}
