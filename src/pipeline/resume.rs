//! What a calibrated run has finished, kept on the disk so that the same command can go on from there.

use std::fmt::Display;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::PipelineError;
use super::prepared::TensorReport;
use crate::checkpoint::formats::tersor::Storage;
use crate::checkpoint::formats::{self, tersor};
use crate::checkpoint::{Checkpoint, CheckpointError, TensorSpec, TensorWriter, write_atomically};
use crate::file::read_regular;
use crate::weight::CompressedWeight;

const STATE: &str = "run.json";
const LOCK: &str = "lock";
const STEP_ENDING: &str = ".safetensors";

const OF_ANOTHER_RUN: &str = "holds what another run finished, one with other inputs or options; finish that one, or delete the folder";

/// The folder of an unfinished run, `OUTPUT.unfinished`.
#[derive(Debug)]
pub(super) struct Unfinished {
    folder: PathBuf,
    /// Of the source, the recipe, the calibration and the seed.
    fingerprint: String,
    /// Held as long as this run works on it.
    _lock: File,
}

/// What is said of a block beside its tensors.
#[derive(Deserialize)]
struct Described {
    fingerprint: String,
    reports: Vec<TensorReport>,
}

/// A block that is on the disk.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) tensors: Checkpoint,
    pub(super) reports: Vec<TensorReport>,
}

impl Finished {
    /// Its tensors.
    ///
    /// # Errors
    /// When its file has changed.
    pub(super) fn weights(&self) -> Result<Vec<(String, CompressedWeight)>, PipelineError> {
        let names = self.tensors.entries().iter().map(|entry| &entry.name);
        names.map(|name| Ok((name.clone(), self.tensors.weight(name)?))).collect()
    }
}

impl Unfinished {
    /// Opens the folder of a run, or makes it.
    ///
    /// # Errors
    /// When it is that of another run or holds something else, another process works on it, or the disk refuses.
    pub(super) fn open(output: &Path, fingerprint: &str) -> Result<Self, PipelineError> {
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(".unfinished");
        let folder = output.with_file_name(name);
        fs::create_dir_all(&folder).map_err(CheckpointError::io(&folder, "create"))?;
        check_ours(&folder)?;
        let lock_path = folder.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(CheckpointError::io(&lock_path, "open"))?;
        if lock.try_lock().is_err() {
            let reason = "another process works on it; wait for it to end".to_owned();
            return Err(PipelineError::Unfinished { path: folder, reason });
        }
        let state = folder.join(STATE);
        let mine = json!({ "tersor": env!("CARGO_PKG_VERSION"), "fingerprint": fingerprint });
        match read_regular(&state) {
            Ok(bytes) if serde_json::from_slice::<Value>(&bytes).ok().as_ref() == Some(&mine) => {}
            Ok(_) => {
                return Err(PipelineError::Unfinished { path: folder, reason: OF_ANOTHER_RUN.to_owned() });
            }
            Err(_) => write_atomically(&folder, STATE, |path| {
                fs::write(path, format!("{mine:#}\n")).map_err(CheckpointError::io(path, "write"))
            })?,
        }
        Ok(Self { folder, fingerprint: fingerprint.to_owned(), _lock: lock })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn block_name(block: usize, ending: &str) -> String {
        format!("block-{block:05}.{ending}")
    }

    /// A block, if it is finished.
    ///
    /// # Errors
    /// When its file is there and cannot be read.
    pub(super) fn block(&self, block: usize) -> Result<Option<Finished>, PipelineError> {
        // written last
        let path = self.folder.join(Self::block_name(block, "json"));
        let Ok(bytes) = read_regular(&path) else { return Ok(None) };
        let Described { fingerprint, reports } =
            serde_json::from_slice(&bytes).map_err(|error| damaged(&path, error))?;
        if fingerprint != self.fingerprint {
            // one that still runs, after its folder was deleted and made again
            return Err(PipelineError::Unfinished { path, reason: OF_ANOTHER_RUN.to_owned() });
        }
        let tensors = Checkpoint::open(self.folder.join(Self::block_name(block, "safetensors")))?;
        Ok(Some(Finished { tensors, reports }))
    }

    /// Writes a finished block, and waits until the disk has it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn write_block(
        &self,
        block: usize,
        tensors: &[(String, CompressedWeight)],
        reports: &[TensorReport],
    ) -> Result<Finished, PipelineError> {
        write_atomically(&self.folder, &Self::block_name(block, "safetensors"), |path| {
            write_tensors(path, tensors)
        })?;
        write_atomically(&self.folder, &Self::block_name(block, "json"), |path| {
            let described = json!({ "fingerprint": self.fingerprint, "reports": reports });
            fs::write(path, format!("{described:#}\n")).map_err(CheckpointError::io(path, "write"))
        })?;
        // as a run reads it that goes on from here, so that both write the same
        self.block(block)?.ok_or_else(|| PipelineError::Unfinished {
            path: self.folder.clone(),
            reason: "a block that was just written is gone".into(),
        })
    }

    /// Writes what has been learned in so many steps, waits until the disk has it, and removes what was there before.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn write_step(
        &self,
        steps: usize,
        tensors: &[(String, CompressedWeight)],
    ) -> Result<(), PipelineError> {
        let before = self.steps()?;
        let name = format!("{}{steps:06}{STEP_ENDING}", self.step_prefix());
        write_atomically(&self.folder, &name, |path| write_tensors(path, tensors))?;
        for (_, path) in before.into_iter().filter(|(step, _)| *step != steps) {
            fs::remove_file(&path).map_err(CheckpointError::io(&path, "remove"))?;
        }
        Ok(())
    }

    /// The last number of steps of which it was written what had been learned, and that.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn last_step(&self) -> Result<Option<(usize, Checkpoint)>, PipelineError> {
        let last = self.steps()?.into_iter().max_by_key(|(step, _)| *step);
        let open = |(step, path): (usize, PathBuf)| match Checkpoint::open(&path) {
            Ok(tensors) => Ok((step, tensors)),
            Err(error) => Err(damaged(&path, error)),
        };
        last.map(open).transpose()
    }

    /// The steps of which there is a file.
    fn steps(&self) -> Result<Vec<(usize, PathBuf)>, CheckpointError> {
        let prefix = self.step_prefix();
        let entries = fs::read_dir(&self.folder).map_err(CheckpointError::io(&self.folder, "list"))?;
        let step = |entry: fs::DirEntry| {
            let name = entry.file_name();
            let step = name.to_str()?.strip_prefix(&prefix)?.strip_suffix(STEP_ENDING)?;
            Some((step.parse().ok()?, entry.path()))
        };
        Ok(entries.flatten().filter_map(step).collect())
    }

    /// Names this run, lest a file of one that still runs, after its folder was deleted and made again, is taken for ours.
    fn step_prefix(&self) -> String {
        format!("step-{}-", self.fingerprint.get(..16).unwrap_or_default())
    }

    /// Removes the folder: the output is complete.
    pub(super) fn remove(self) {
        // what cannot be removed does no harm
        fs::remove_dir_all(&self.folder).ok();
    }

    /// Removes the folder if no block has been finished, and nothing been learned.
    pub(super) fn remove_if_empty(self) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let is_kept = |name: &str| name.starts_with("block-") || name.starts_with("step-");
        if !entries.into_iter().any(|entry| is_kept(&entry.file_name().to_string_lossy())) {
            self.remove();
        }
    }
}

/// What is to be done about a file that is not as it was written.
pub(super) fn damaged(path: &Path, error: impl Display) -> PipelineError {
    let reason = format!("is damaged ({error}); delete the folder");
    PipelineError::Unfinished { path: path.to_path_buf(), reason }
}

/// A folder that is there already must be one that a run has made: it will be deleted in the end.
fn check_ours(folder: &Path) -> Result<(), PipelineError> {
    if folder.join(STATE).exists() {
        return Ok(());
    }
    let mut entries = fs::read_dir(folder).map_err(CheckpointError::io(folder, "list"))?;
    // what stands there before the state does
    let is_early = |name: &str| name == LOCK || name.strip_prefix(STATE) == Some(".part");
    match entries.find_map(|entry| entry.ok().filter(|entry| !is_early(&entry.file_name().to_string_lossy())))
    {
        None => Ok(()),
        Some(other) => Err(PipelineError::Unfinished {
            path: folder.to_path_buf(),
            reason: format!(
                "is where unfinished work is kept, but holds something else: `{}`; choose another output",
                other.file_name().to_string_lossy()
            ),
        }),
    }
}

fn write_tensors(path: &Path, tensors: &[(String, CompressedWeight)]) -> Result<(), CheckpointError> {
    let specs: Vec<TensorSpec> =
        tensors.iter().flat_map(|(name, weight)| formats::specs(name, weight.form())).collect();
    let described = tensors.iter().filter(|(_, w)| !w.form().is_plain());
    let mut forms = described.map(|(n, w)| (n.as_str(), w.form(), Storage::Parts)).peekable();
    let mut metadata = std::collections::BTreeMap::new();
    if forms.peek().is_some() {
        metadata.insert(tersor::KEY.into(), tersor::write_metadata(forms));
    }
    // a file that an earlier run did not finish
    fs::remove_file(path).ok();
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    let mut writer = TensorWriter::create(path, specs, &metadata)?;
    let data = tensors.iter().flat_map(|(_, weight)| formats::encode(weight));
    for (name, (_, bytes)) in names.iter().zip(data) {
        writer.write(name, &bytes)?;
    }
    writer.finish()
}
