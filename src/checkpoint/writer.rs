use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::CheckpointError;
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

/// Writes a safetensors file tensor by tensor, in the order announced.
///
/// The 8 bytes of header length come last: until [`finish`](Self::finish) the file says that its header is 0 bytes
/// long, which no reader accepts.
pub(crate) struct TensorWriter {
    path: PathBuf,
    file: BufWriter<File>,
    specs: std::vec::IntoIter<TensorSpec>,
    header_length: u64,
}

impl TensorWriter {
    pub(crate) fn create(
        path: &Path,
        specs: Vec<TensorSpec>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, CheckpointError> {
        let file = File::create_new(path).map_err(CheckpointError::io(path, "create"))?;
        let header = header_json(&specs, metadata);
        let mut writer = Self {
            path: path.to_path_buf(),
            file: BufWriter::with_capacity(1 << 20, file),
            specs: specs.into_iter(),
            header_length: header.len() as u64,
        };
        writer.put(&[0; 8])?;
        writer.put(&header)?;
        Ok(writer)
    }

    /// Writes the next tensor.
    ///
    /// # Errors
    /// When it is not the one announced, or the disk refuses.
    pub(crate) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        match self.specs.next() {
            Some(spec) if spec.name == name && spec.bytes() == bytes.len() as u64 => self.put(bytes),
            Some(spec) => {
                let reason = format!(
                    "{} bytes of `{name}` came where the plan has {} bytes of `{}`; the source changed meanwhile",
                    bytes.len(),
                    spec.bytes(),
                    spec.name
                );
                Err(CheckpointError::tensor(&self.path, name, reason))
            }
            None => Err(CheckpointError::tensor(&self.path, name, "comes after the last planned tensor")),
        }
    }

    /// Completes the file and waits until the disk has it.
    ///
    /// # Errors
    /// When a tensor is missing, or the disk refuses.
    pub(crate) fn finish(mut self) -> Result<(), CheckpointError> {
        if let Some(spec) = self.specs.next() {
            return Err(CheckpointError::tensor(&self.path, &spec.name, "was planned but not written"));
        }
        let error = |action| CheckpointError::io(&self.path, action);
        self.file.flush().map_err(error("write"))?;
        let file = self.file.get_mut();
        file.sync_data().map_err(error("sync"))?;
        file.seek(SeekFrom::Start(0)).map_err(error("write"))?;
        file.write_all(&self.header_length.to_le_bytes()).map_err(error("write"))?;
        file.sync_all().map_err(error("sync"))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.file.write_all(bytes).map_err(CheckpointError::io(&self.path, "write"))
    }
}
