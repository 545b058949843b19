use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde_json::{Map, Value, json};

use super::{CheckpointError, positioned};
use crate::dtype::DType;

/// Name, type and shape of a tensor that will be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorSpec {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes of its data.
    pub(crate) fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8) as u64
    }
}

/// Bytes of the whole file that holds these tensors.
pub(crate) fn file_bytes(specs: &[TensorSpec], metadata: &BTreeMap<String, String>) -> u64 {
    let data: u64 = specs.iter().map(TensorSpec::bytes).sum();
    8 + header_json(specs, metadata).len() as u64 + data
}

/// The header, padded so that the data begins on a multiple of 8.
fn header_json(specs: &[TensorSpec], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut offset = 0;
    for spec in specs {
        let end = offset + spec.bytes();
        let info = json!({
            "dtype": spec.dtype,
            "shape": spec.shape,
            "data_offsets": [offset, end],
        });
        header.insert(spec.name.clone(), info);
        offset = end;
    }
    let mut bytes = Value::Object(header).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    bytes
}

/// Writes a safetensors file: tensor by tensor in the order announced, or pieces of tensors from any thread.
///
/// The 8 bytes of header length come last: until [`finish`](Self::finish) the file says that its header is 0 bytes
/// long, which no reader accepts.
pub(crate) struct TensorWriter {
    path: PathBuf,
    file: Arc<File>,
    slots: Vec<Slot>,
    /// The tensor that [`write`](Self::write) takes next.
    next: usize,
    header_length: u64,
    early: Early,
}

/// Where a tensor stands in the file, and how much of it is there.
struct Slot {
    spec: TensorSpec,
    start: u64,
    written: AtomicU64,
}

impl TensorWriter {
    pub(crate) fn create(
        path: &Path,
        specs: Vec<TensorSpec>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, CheckpointError> {
        let error = || CheckpointError::io(path, "write");
        let file = Arc::new(File::create_new(path).map_err(CheckpointError::io(path, "create"))?);
        let header = header_json(&specs, metadata);
        let mut start = 8 + header.len() as u64;
        let mut slots = Vec::with_capacity(specs.len());
        for spec in specs {
            let bytes = spec.bytes();
            slots.push(Slot { spec, start, written: AtomicU64::new(0) });
            start += bytes;
        }
        positioned::allocate(&file, start).map_err(error())?;
        positioned::write_all_at(&file, &[0; 8], 0).map_err(error())?;
        positioned::write_all_at(&file, &header, 8).map_err(error())?;
        let early = Early::new(Arc::clone(&file), start);
        let header_length = header.len() as u64;
        Ok(Self { path: path.to_path_buf(), file, slots, next: 0, header_length, early })
    }

    /// Writes the next tensor.
    ///
    /// # Errors
    /// When it is not the one announced, or the disk refuses.
    pub(crate) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let Some(slot) = self.slots.get(self.next) else {
            return Err(CheckpointError::tensor(&self.path, name, "comes after the last planned tensor"));
        };
        if slot.spec.name != name || slot.spec.bytes() != bytes.len() as u64 {
            return Err(self.unplanned(slot, name, bytes.len() as u64));
        }
        self.put(self.next, 0, bytes)?;
        self.next += 1;
        Ok(())
    }

    /// Writes a piece of tensor number `slot`, `offset` bytes from its beginning. No two pieces may overlap.
    ///
    /// # Errors
    /// When it reaches beyond the tensor, or the disk refuses.
    pub(crate) fn put(&self, slot: usize, offset: u64, bytes: &[u8]) -> Result<(), CheckpointError> {
        let slot = &self.slots[slot];
        let len = bytes.len() as u64;
        if offset + len > slot.spec.bytes() {
            return Err(self.unplanned(slot, &slot.spec.name, offset + len));
        }
        positioned::write_all_at(&self.file, bytes, slot.start + offset)
            .map_err(CheckpointError::io(&self.path, "write"))?;
        slot.written.fetch_add(len, Ordering::Relaxed);
        self.early.wrote(len);
        Ok(())
    }

    fn unplanned(&self, slot: &Slot, name: &str, bytes: u64) -> CheckpointError {
        let reason = format!(
            "{bytes} bytes of `{name}` came where the plan has {} bytes of `{}`; the source changed meanwhile",
            slot.spec.bytes(),
            slot.spec.name
        );
        CheckpointError::tensor(&self.path, name, reason)
    }

    /// Completes the file and waits until the disk has it.
    ///
    /// # Errors
    /// When a tensor is missing, or the disk refuses.
    pub(crate) fn finish(mut self) -> Result<(), CheckpointError> {
        let missing = |slot: &&Slot| slot.written.load(Ordering::Relaxed) != slot.spec.bytes();
        if let Some(slot) = self.slots.iter().find(missing) {
            return Err(CheckpointError::tensor(&self.path, &slot.spec.name, "was planned but not written"));
        }
        let error = |action| CheckpointError::io(&self.path, action);
        self.early.finish().map_err(error("sync"))?;
        self.file.sync_data().map_err(error("sync"))?;
        positioned::write_all_at(&self.file, &self.header_length.to_le_bytes(), 0).map_err(error("write"))?;
        self.file.sync_all().map_err(error("sync"))
    }
}

/// Bytes after which the disk is asked to begin.
const EARLY_STEP: u64 = 8 << 20;

/// Lets the disk begin while the file is still being written, so that the last sync finds little left to do.
struct Early {
    state: Arc<(Mutex<Waiting>, Condvar)>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Default)]
struct Waiting {
    bytes: u64,
    ended: bool,
}

impl Early {
    fn new(file: Arc<File>, len: u64) -> Self {
        let state = Arc::new((Mutex::new(Waiting::default()), Condvar::new()));
        let shared = Arc::clone(&state);
        // a thread that cannot be had is no fault: the last sync does it all
        let thread = (len > 2 * EARLY_STEP).then(|| {
            let name = std::thread::Builder::new().name("tersor write-back".into());
            name.spawn(move || Self::run(&file, &shared)).ok()
        });
        Self { state, thread: thread.flatten() }
    }

    fn run(file: &File, (state, changed): &(Mutex<Waiting>, Condvar)) -> io::Result<()> {
        loop {
            let waiting = state.lock().unwrap_or_else(PoisonError::into_inner);
            let mut waiting = changed
                .wait_while(waiting, |w| w.bytes < EARLY_STEP && !w.ended)
                .unwrap_or_else(PoisonError::into_inner);
            if waiting.ended {
                return Ok(());
            }
            waiting.bytes = 0;
            drop(waiting);
            // the system tells of a failed write once: the error must not be lost
            file.sync_data()?;
        }
    }

    fn wrote(&self, bytes: u64) {
        if self.thread.is_none() {
            return;
        }
        let (state, changed) = &*self.state;
        let mut waiting = state.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.bytes += bytes;
        if waiting.bytes >= EARLY_STEP {
            changed.notify_one();
        }
    }

    /// Ends the thread; gives the error that it met.
    fn finish(&mut self) -> io::Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let (state, changed) = &*self.state;
        state.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        changed.notify_one();
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the write-back thread failed")))
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        // the file is given up: whatever is wrong with it, a worse error is known
        self.finish().ok();
    }
}
