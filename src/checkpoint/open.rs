use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use serde_json::Value;

use super::CheckpointError;
use super::class::TensorClass;
use super::companions::Companions;
use super::floats::{FloatSource, check_overflow};
use super::folder::{INDEX, check_index, find_files, read_config};
use super::formats::{self, compressed_tensors::QuantizationConfig};
use super::header::{self, TensorEntry};
use super::mapped::MappedTensor;
use super::mmap;
use crate::dtype::{DType, FloatType, Precision};
use crate::kernels::{convert, view};
use crate::weight::{CompressedWeight, Form, Layout, Values, matrix_shape};

struct Shard {
    path: PathBuf,
    file: File,
    map: Arc<Mmap>,
    metadata: BTreeMap<String, String>,
}

/// A tensor as it stands in a file.
#[derive(Debug, Clone, Copy)]
pub struct TensorRef<'a> {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: &'a [usize],
    /// Little-endian elements, row-major.
    pub bytes: &'a [u8],
    /// The file.
    pub path: &'a Path,
}

/// How an [`Entry`] is stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored {
    /// One tensor of this element type.
    Plain(DType),
    /// The tensors of a compressed weight.
    Compressed(Form),
}

/// A tensor of the model: one tensor of a file, or the several that store a compressed weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Name in the model, `….weight` for weights.
    pub name: String,
    /// Shape in the model.
    pub shape: Vec<usize>,
    /// What it is to the network.
    pub class: TensorClass,
    /// How it is stored.
    pub stored: Stored,
    /// Bytes of all its tensors.
    pub bytes: u64,
    /// Number of the file that holds it, as in [`Checkpoint::files`].
    pub file: usize,
    /// Names of its tensors in the file.
    pub tensors: Vec<String>,
}

impl Entry {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The name without `.weight`: the module that owns the tensor.
    pub fn module(&self) -> &str {
        self.name.strip_suffix(".weight").unwrap_or(&self.name)
    }

    /// The precision in which the model keeps this tensor.
    pub fn precision(&self) -> Option<Precision> {
        match &self.stored {
            Stored::Plain(dtype) => FloatType::of(*dtype).map(Precision::of),
            Stored::Compressed(form) => Some(formats::precision_of(form.coding())),
        }
    }

    /// Element type or form, in words.
    pub fn describe(&self) -> String {
        match &self.stored {
            Stored::Plain(dtype) => format!("{dtype:?}"),
            Stored::Compressed(form) if self.is_entropy_coded() => format!("{form}, entropy coded"),
            Stored::Compressed(form) => form.to_string(),
        }
    }

    /// Whether all of it stands in one entropy-coded tensor.
    pub fn is_entropy_coded(&self) -> bool {
        matches!(self.stored, Stored::Compressed(_)) && formats::is_coded(&self.name, &self.tensors)
    }
}

/// An opened checkpoint.
///
/// ```no_run
/// use tersor::Checkpoint;
///
/// let checkpoint = Checkpoint::open("fixtures/fashion-mlp")?;
/// for entry in checkpoint.entries() {
///     println!("{} {:?} {}", entry.name, entry.shape, entry.class);
/// }
/// let weight = checkpoint.weight("fc1.weight")?;
/// # Ok::<(), tersor::CheckpointError>(())
/// ```
pub struct Checkpoint {
    root: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, (usize, TensorEntry)>,
    entries: Vec<Entry>,
    /// Where each entry stands among them.
    by_name: HashMap<String, usize>,
    config: Option<Value>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("root", &self.root)
            .field("entries", &self.entries.len())
            .finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens a `.safetensors` file, or a folder with `model.safetensors`, with `model.safetensors.index.json` and the
    /// shards it names, or with a single other `.safetensors` file.
    ///
    /// Only headers are read.
    ///
    /// # Errors
    /// When a file is missing, malformed or contradicts another; the error names file, tensor and numbers.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let root = path.as_ref().to_path_buf();
        let is_folder = fs::metadata(&root).map_err(CheckpointError::io(&root, "open"))?.is_dir();
        let (files, index) = if is_folder { find_files(&root)? } else { (vec![root.clone()], None) };
        let config = if is_folder { read_config(&root.join("config.json"))? } else { None };

        let mut shards = Vec::new();
        let mut tensors = BTreeMap::new();
        let mut order = Vec::new();
        for path in files {
            let (file, map) = mmap::map(&path)?;
            let header = header::parse(&path, &map)?;
            for tensor in header.tensors {
                order.push(tensor.name.clone());
                let name = tensor.name.clone();
                if let Some((other, _)) = tensors.insert(name.clone(), (shards.len(), tensor)) {
                    let other: &Shard = &shards[other];
                    let reason = format!("also stands in {}", other.path.display());
                    return Err(CheckpointError::tensor(&path, &name, reason));
                }
            }
            shards.push(Shard { path, file, map: Arc::new(map), metadata: header.metadata });
        }
        if let Some(index) = index {
            let paths: Vec<&Path> = shards.iter().map(|shard| shard.path.as_path()).collect();
            check_index(&root.join(INDEX), &index, &paths, &tensors)?;
        }
        let by_name = HashMap::new();
        let mut checkpoint = Self { root, shards, tensors, entries: Vec::new(), by_name, config };
        checkpoint.entries = checkpoint.find_entries(&order)?;
        checkpoint.by_name =
            checkpoint.entries.iter().enumerate().map(|(i, entry)| (entry.name.clone(), i)).collect();
        Ok(checkpoint)
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The safetensors files, in order.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.shards.iter().map(|s| s.path.as_path())
    }

    /// Bytes of all safetensors files.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.map.len() as u64).sum()
    }

    /// The tensors of the model, in the order of their data.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// One tensor of the model.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn entry(&self, name: &str) -> Result<&Entry, CheckpointError> {
        self.by_name.get(name).map(|i| &self.entries[*i]).ok_or_else(|| self.missing(name))
    }

    /// `config.json`, if the checkpoint is a folder that has one.
    pub fn config(&self) -> Option<&Value> {
        self.config.as_ref()
    }

    /// The free-form metadata of a file.
    pub fn metadata(&self, file: usize) -> Option<&BTreeMap<String, String>> {
        self.shards.get(file).map(|s| &s.metadata)
    }

    /// A tensor as it stands in its file; `name` is the file's name for it.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn tensor(&self, name: &str) -> Result<TensorRef<'_>, CheckpointError> {
        let (shard, tensor) = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let shard = &self.shards[*shard];
        let bytes = &shard.map[tensor.span.0..tensor.span.1];
        Ok(TensorRef { dtype: tensor.dtype, shape: &tensor.shape, bytes, path: &shard.path })
    }

    /// The values of a tensor of the model in `f32`: widened, or dequantized.
    ///
    /// # Errors
    /// When there is no such tensor, it is not made of floats, a finite f64 is beyond the largest f32, or the parts of a compressed weight do not fit.
    pub fn dense(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        self.values(name).map(Cow::into_owned)
    }

    /// The values of a tensor of the model in `f32`, as [`dense`](Self::dense) gives them; those that the file holds as
    /// `f32` are not copied.
    pub(crate) fn values(&self, name: &str) -> Result<Cow<'_, [f32]>, CheckpointError> {
        let entry = self.entry(name)?;
        if let Some(source) = self.floats(entry)? {
            let tensor = self.tensor(name)?;
            if source.float == FloatType::F32
                && let Some(values) = view::floats(tensor.bytes)
            {
                return Ok(Cow::Borrowed(values));
            }
            let mut values = vec![0.0; tensor.bytes.len() / source.float.size()];
            convert::widen(source.float, tensor.bytes, &mut values);
            if source.float == FloatType::F64 {
                check_overflow(tensor.path, name, 0, tensor.bytes, &values)?;
            }
            return Ok(Cow::Owned(values));
        }
        Ok(Cow::Owned(self.weight(name)?.dequantize().into_raw_vec_and_offset().0))
    }

    /// A plain tensor of the model, to be read in pieces; `None` for a compressed weight.
    ///
    /// # Errors
    /// When it is not made of floats.
    pub(crate) fn floats<'a>(&'a self, entry: &'a Entry) -> Result<Option<FloatSource<'a>>, CheckpointError> {
        let Stored::Plain(dtype) = entry.stored else { return Ok(None) };
        let name = &entry.name;
        let (shard, tensor) = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let shard = &self.shards[*shard];
        let Some(float) = FloatType::of(dtype) else {
            let reason = format!("holds {dtype:?}, not floats");
            return Err(CheckpointError::tensor(&shard.path, name, reason));
        };
        // codes of 8 bits beside scales that nothing here understands are not the weight's values
        let foreign = ["_scale_inv", "_scale"].map(|suffix| format!("{name}{suffix}"));
        if float.size() == 1
            && let Some(scale) = foreign.iter().find(|s| self.has_tensor(s))
        {
            let reason = format!(
                "is scaled by `{scale}` in a way that is not supported; start from the original model"
            );
            return Err(CheckpointError::tensor(&shard.path, name, reason));
        }
        Ok(Some(FloatSource {
            path: &shard.path,
            name,
            file: &shard.file,
            start: tensor.span.0 as u64,
            float,
        }))
    }

    /// A plain tensor of floats of the model where it is mapped; `None` for a compressed weight, and for `f64`, which the
    /// kernels take as `f32` only.
    ///
    /// # Errors
    /// When there is no such tensor, or it is not made of floats.
    pub(crate) fn mapped(&self, name: &str) -> Result<Option<MappedTensor>, CheckpointError> {
        let source = self.floats(self.entry(name)?)?;
        let float = source.map(|source| source.float).filter(|float| *float != FloatType::F64);
        let (Some(float), Some((shard, tensor))) = (float, self.tensors.get(name)) else { return Ok(None) };
        let map = Arc::clone(&self.shards[*shard].map);
        Ok(Some(MappedTensor { map, span: tensor.span.0..tensor.span.1, float }))
    }

    /// Gives the pages of some bytes of a file's tensor back to the system.
    pub(crate) fn release(&self, tensor: &str, bytes: Range<usize>) {
        if let Some((shard, tensor)) = self.tensors.get(tensor) {
            let start = tensor.span.0;
            mmap::release(&self.shards[*shard].map, start + bytes.start..start + bytes.end);
        }
    }

    /// Gives the memory back in which the files' contents were read: it counts as the process's as long as they are mapped. What
    /// is looked at next is read again.
    pub fn release_memory(&self) {
        for shard in &self.shards {
            mmap::release(&shard.map, 0..shard.map.len());
        }
    }

    /// Gives the pages of a tensor of the model back to the system.
    pub(crate) fn release_entry(&self, entry: &Entry) {
        for name in &entry.tensors {
            if let Some((_, tensor)) = self.tensors.get(name) {
                self.release(name, 0..tensor.span.1 - tensor.span.0);
            }
        }
    }

    /// A weight of the model as it is stored. Plain tensors of f64 and f8 become `f32`.
    ///
    /// # Errors
    /// When there is no such tensor, it is not made of floats, or its parts do not fit.
    pub fn weight(&self, name: &str) -> Result<CompressedWeight, CheckpointError> {
        let entry = self.entry(name)?;
        match &entry.stored {
            Stored::Compressed(form) => formats::decode(self, &entry.name, form),
            Stored::Plain(dtype) => {
                let path = self.tensor(name)?.path;
                let precision = FloatType::of(*dtype).map_or(Precision::F32, Precision::of);
                let values = Values::float(precision, self.dense(name)?.into_iter());
                CompressedWeight::from_parts(&entry.shape, Layout::Dense, values)
                    .map_err(CheckpointError::weight(path, name))
            }
        }
    }

    /// Files beside the weights that were opened: those that belong to the model, and other weights. Paths are relative to
    /// the folder; there are none beside a single file.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub(crate) fn companions(&self) -> Result<Companions, CheckpointError> {
        if self.root.is_dir() { Companions::of(&self.root, self.files()) } else { Ok(Companions::default()) }
    }

    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The file that holds a tensor of the model.
    pub(crate) fn entry_file(&self, name: &str) -> Option<&Path> {
        Some(&self.shards[self.entry(name).ok()?.file].path)
    }

    fn missing(&self, name: &str) -> CheckpointError {
        CheckpointError::Missing { path: self.root.clone(), tensor: name.to_owned() }
    }

    /// Groups the tensors of the files into the tensors of the model.
    fn find_entries(&self, order: &[String]) -> Result<Vec<Entry>, CheckpointError> {
        let config_path = self.root.join("config.json");
        let quantization = match &self.config {
            Some(config) => QuantizationConfig::from_config(&config_path, config)?,
            None => None,
        };
        let embedding_rows = embedding_rows(self.config.as_ref());
        let forms = formats::find_forms(self, order, quantization.as_ref())?;
        let mut part_of: BTreeMap<&str, &str> = BTreeMap::new();
        for (weight, form) in &forms {
            for part in &form.tensors {
                if let Some(other) = part_of.insert(part, weight) {
                    let path =
                        &self.tensors.get(part).map_or(&self.root, |(file, _)| &self.shards[*file].path);
                    let reason = format!("belongs to two compressed weights, `{other}` and `{weight}`");
                    return Err(CheckpointError::tensor(path, part, reason));
                }
            }
        }
        let mut entries = Vec::new();
        let mut done = std::collections::BTreeSet::new();
        for name in order {
            let Some((file, tensor)) = self.tensors.get(name) else { continue };
            let size = |name: &str| self.tensors.get(name).map_or(0, |(_, t)| (t.span.1 - t.span.0) as u64);
            if let Some(weight) = part_of.get(name.as_str()) {
                if !done.insert(*weight) {
                    continue;
                }
                let found = &forms[*weight];
                let precision = formats::precision_of(found.form.coding()).dtype();
                let shape = found.form.shape().to_vec();
                entries.push(Entry {
                    name: (*weight).to_owned(),
                    class: TensorClass::of(weight, precision, &shape, &embedding_rows),
                    bytes: found.tensors.iter().map(|t| size(t)).sum(),
                    shape,
                    stored: Stored::Compressed(found.form.clone()),
                    file: *file,
                    tensors: found.tensors.clone(),
                });
            } else {
                let path = &self.shards[*file].path;
                if forms.contains_key(name) {
                    let reason = "stands beside a compressed weight of the same name";
                    return Err(CheckpointError::tensor(path, name, reason));
                }
                matrix_shape(&tensor.shape).map_err(CheckpointError::weight(path, name))?;
                entries.push(Entry {
                    name: name.clone(),
                    shape: tensor.shape.clone(),
                    class: TensorClass::of(name, tensor.dtype, &tensor.shape, &embedding_rows),
                    stored: Stored::Plain(tensor.dtype),
                    bytes: size(name),
                    file: *file,
                    tensors: vec![name.clone()],
                });
            }
        }
        Ok(entries)
    }
}

fn embedding_rows(config: Option<&Value>) -> Vec<usize> {
    ["vocab_size", "max_position_embeddings", "type_vocab_size"]
        .iter()
        .filter_map(|key| config?.get(key)?.as_u64())
        .map(|n| n as usize)
        .collect()
}
