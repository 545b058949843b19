//! Writes what a compressed checkpoint stands for: every tensor of the model as a plain one, in one safetensors file.
//!
//! Compressed weights become dense, in the precision of the model; that loses nothing, since every dequantized value
//! has that precision. Plain tensors are copied byte for byte, whatever their type.
//!
//! ```text
//! cargo run --release --example dequantize -- CHECKPOINT OUT.safetensors
//! ```
//!
//! CHECKPOINT is a safetensors file or a folder, compressed or not. OUT is overwritten. For the model that
//! `tersor compress fixtures/fashion-mlp --preset int4 --group-size 4 -o CHECKPOINT` writes, it prints
//!
//! ```text
//! 6 tensors, 3 of them dequantized: 401208 → 1066440 bytes
//! ```
//!
//! Every tensor is held in memory until the file is written.

use std::borrow::Cow;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use half::{bf16, f16};
use safetensors::{View, serialize_to_file};
use tersor::{Checkpoint, CheckpointError, DType, Entry, Precision, Stored, one_line};

const USAGE: &str = "usage: dequantize CHECKPOINT OUT.safetensors";

struct Plain<'a> {
    dtype: DType,
    shape: &'a [usize],
    bytes: Cow<'a, [u8]>,
}

impl View for Plain<'_> {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn plain<'a>(checkpoint: &'a Checkpoint, entry: &'a Entry) -> Result<Plain<'a>, CheckpointError> {
    let (Stored::Compressed(_), Some(precision)) = (&entry.stored, entry.precision()) else {
        let tensor = checkpoint.tensor(&entry.name)?;
        return Ok(Plain { dtype: tensor.dtype, shape: tensor.shape, bytes: tensor.bytes.into() });
    };
    let values = checkpoint.dense(&entry.name)?;
    let bytes = match precision {
        Precision::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Precision::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        Precision::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
    };
    Ok(Plain { dtype: precision.dtype(), shape: &entry.shape, bytes: Cow::Owned(bytes) })
}

fn run(source: &str, out: &str) -> Result<(), Box<dyn Error>> {
    let checkpoint = Checkpoint::open(source)?;
    let entries = checkpoint.entries();
    let tensors = entries
        .iter()
        .map(|entry| Ok((entry.name.as_str(), plain(&checkpoint, entry)?)))
        .collect::<Result<Vec<_>, CheckpointError>>()?;
    let after: usize = tensors.iter().map(|(_, tensor)| tensor.bytes.len()).sum();
    let before: u64 = entries.iter().map(|entry| entry.bytes).sum();
    let compressed = entries.iter().filter(|entry| matches!(entry.stored, Stored::Compressed(_))).count();
    serialize_to_file(tensors, None, Path::new(out)).map_err(|e| format!("{out}: cannot write: {e}"))?;
    println!("{} tensors, {compressed} of them dequantized: {before} → {after} bytes", entries.len());
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, out] = arguments.as_slice() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(source, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("dequantize: {}", one_line(e.as_ref()));
            ExitCode::FAILURE
        }
    }
}
