//! The last step of a run, which loses nothing: tensors of a finished file in as few bits as their frequencies allow.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufWriter, Seek, Write};
use std::path::Path;

use serde::Serialize;

use super::PipelineError;
use crate::checkpoint::formats::coded;
use crate::checkpoint::formats::tersor::{self, Storage};
use crate::checkpoint::{Checkpoint, CheckpointError, Entry, Stored, TensorSpec, TensorWriter, file_bytes};
use crate::dtype::{DType, Precision};
use crate::weight::{Coding, Form, LayoutKind};

/// Bytes that are copied at a time.
const PIECE: usize = 8 << 20;

/// What entropy coding did to a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EntropyReport {
    /// Its bytes without entropy coding.
    pub plain_bytes: u64,
    /// Its bytes in the output.
    pub bytes: u64,
    /// Whether it is coded; otherwise it was no smaller so.
    pub coded: bool,
    /// Bits of its tensors in the output for each weight, pruned ones included.
    pub bits_per_weight: f64,
    /// The same of Shannon's bound: every code, byte of a float and gap between positions by itself, or positions of which
    /// nothing but their number is known, where that is less.
    pub bound_bits_per_weight: f64,
}

/// A file after entropy coding.
pub(super) struct CodedFile {
    pub(super) bytes: u64,
    /// Names and bytes of all tensors.
    pub(super) specs: Vec<TensorSpec>,
    /// By name in the model.
    pub(super) reports: BTreeMap<String, EntropyReport>,
}

/// One tensor of the model on its way.
struct Item<'c> {
    entry: &'c Entry,
    /// Its form, and bytes in the spool.
    coded: Option<(Form, u64)>,
}

/// Replaces a finished file by one whose tensors are coded where that makes them smaller; it stays if that is nowhere. `taken` are
/// the names of all tensors of the model's files; `next` is told of every tensor, and may stop the work.
///
/// # Errors
/// When it cannot be read or written, or was stopped.
pub(super) fn code_file(
    path: &Path,
    taken: &BTreeSet<&str>,
    next: &mut dyn FnMut(&str) -> Result<(), PipelineError>,
) -> Result<CodedFile, PipelineError> {
    let source = Checkpoint::open(path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let error = |action| CheckpointError::io(path, action);
    // coded tensors wait here until the header is known, which says how long each is
    let spool = tempfile::tempfile_in(folder).map_err(error("create a file beside"))?;
    let mut spool = BufWriter::new(spool);
    let (mut items, mut reports) = (Vec::new(), BTreeMap::new());
    for entry in source.entries() {
        next(&entry.name)?;
        let mut item = Item { entry, coded: None };
        if let Some(form) = form_of(entry) {
            let weight = source.weight(&entry.name)?;
            let coded = coded::encode_weight(&weight);
            let bytes = coded.bytes.len() as u64;
            let is_free = !taken.contains(coded_name(entry).as_str());
            let is_smaller = bytes + header_cost(entry, &form) < entry.bytes;
            let is_smaller = is_free && is_smaller && coded::check_hollow(&form, coded.bytes.len()).is_ok();
            let elements = entry.elements().max(1) as f64;
            let report = EntropyReport {
                plain_bytes: entry.bytes,
                bytes: if is_smaller { bytes } else { entry.bytes },
                coded: is_smaller,
                bits_per_weight: 8.0 * if is_smaller { bytes } else { entry.bytes } as f64 / elements,
                bound_bits_per_weight: coded.bound / elements,
            };
            reports.insert(entry.name.clone(), report);
            if is_smaller {
                spool.write_all(&coded.bytes).map_err(error("write beside"))?;
                item.coded = Some((form, bytes));
            }
        }
        source.release_entry(entry);
        items.push(item);
    }
    let mut specs = Vec::new();
    for item in &items {
        match &item.coded {
            Some((_, bytes)) => specs.push(TensorSpec {
                name: coded_name(item.entry),
                dtype: DType::U8,
                shape: vec![*bytes as usize],
            }),
            None => specs.extend(plain_specs(&source, item.entry)?),
        }
    }
    let metadata = metadata_of(&source, &items);
    let bytes = file_bytes(&specs, &metadata);
    if items.iter().all(|item| item.coded.is_none()) || bytes >= source.file_bytes() {
        for report in reports.values_mut() {
            if report.coded {
                report.bits_per_weight *= report.plain_bytes as f64 / report.bytes.max(1) as f64;
            }
            report.coded = false;
            report.bytes = report.plain_bytes;
        }
        let plain: Result<Vec<_>, _> =
            source.entries().iter().map(|entry| plain_specs(&source, entry)).collect();
        let specs = plain?.into_iter().flatten().collect();
        return Ok(CodedFile { bytes: source.file_bytes(), specs, reports });
    }
    let mut spool = spool.into_inner().map_err(|e| error("write beside")(e.into_error()))?;
    spool.rewind().map_err(error("read beside"))?;
    let temporary = path.with_extension("coded");
    let writer = TensorWriter::create(&temporary, specs.clone(), &metadata)?;
    let mut slot = 0;
    for item in &items {
        if let Some((_, bytes)) = &item.coded {
            copy(&mut spool, &writer, slot, *bytes).map_err(|fault| match fault {
                CopyFault::Read(e) => error("read beside")(e),
                CopyFault::Write(e) => e,
            })?;
            slot += 1;
        } else {
            for name in &item.entry.tensors {
                let bytes = source.tensor(name)?.bytes;
                for (i, piece) in bytes.chunks(PIECE).enumerate() {
                    writer.put(slot, (i * PIECE) as u64, piece)?;
                }
                slot += 1;
            }
            source.release_entry(item.entry);
        }
    }
    writer.finish()?;
    drop(source);
    fs::rename(&temporary, path).map_err(error("rename to"))?;
    Ok(CodedFile { bytes, specs, reports })
}

enum CopyFault {
    Read(std::io::Error),
    Write(CheckpointError),
}

/// Copies so many bytes of the spool into a tensor.
fn copy(spool: &mut fs::File, writer: &TensorWriter, slot: usize, bytes: u64) -> Result<(), CopyFault> {
    use std::io::Read;
    let mut piece = Vec::new();
    for from in (0..bytes).step_by(PIECE) {
        piece.resize((bytes - from).min(PIECE as u64) as usize, 0);
        spool.read_exact(&mut piece).map_err(CopyFault::Read)?;
        writer.put(slot, from, &piece).map_err(CopyFault::Write)?;
    }
    Ok(())
}

fn coded_name(entry: &Entry) -> String {
    format!("{}{}", entry.name, coded::SUFFIX)
}

/// The form that a tensor can be coded in without loss; `None` of what is no weight.
fn form_of(entry: &Entry) -> Option<Form> {
    match &entry.stored {
        _ if entry.elements() == 0 => None,
        Stored::Compressed(form) => Some(form.clone()),
        Stored::Plain(dtype) => {
            let precisions = [Precision::F32, Precision::F16, Precision::Bf16];
            let precision = precisions.into_iter().find(|precision| precision.dtype() == *dtype)?;
            let coding = Coding::Float(precision);
            Form::new(&entry.shape, LayoutKind::Dense, coding, entry.elements()).ok()
        }
    }
}

/// Bytes that the header may grow by when a tensor is coded.
fn header_cost(entry: &Entry, form: &Form) -> u64 {
    let described = tersor::write_metadata([(entry.name.as_str(), form, Storage::Coded)].into_iter());
    // as it stands in the header, where quotation marks are escaped
    let escaped = described.len() + described.matches('"').count();
    match entry.stored {
        Stored::Compressed(_) => 32,
        Stored::Plain(_) => escaped as u64,
    }
}

fn plain_specs(source: &Checkpoint, entry: &Entry) -> Result<Vec<TensorSpec>, CheckpointError> {
    let spec = |name: &String| {
        let tensor = source.tensor(name)?;
        Ok(TensorSpec { name: name.clone(), dtype: tensor.dtype, shape: tensor.shape.to_vec() })
    };
    entry.tensors.iter().map(spec).collect()
}

fn metadata_of(source: &Checkpoint, items: &[Item<'_>]) -> BTreeMap<String, String> {
    let mut metadata = source.metadata(0).cloned().unwrap_or_default();
    let forms = items.iter().filter_map(|item| {
        let (form, storage) = match (&item.coded, &item.entry.stored) {
            (Some((form, _)), _) => (form, Storage::Coded),
            (None, Stored::Compressed(form)) => (form, Storage::Parts),
            (None, Stored::Plain(_)) => return None,
        };
        Some((item.entry.name.as_str(), form, storage))
    });
    let mut forms = forms.peekable();
    if forms.peek().is_some() {
        metadata.insert(tersor::KEY.into(), tersor::write_metadata(forms));
    }
    metadata
}
