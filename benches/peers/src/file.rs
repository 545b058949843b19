//! A checkpoint to compress, and how fast this machine reads and writes files of its size.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use crate::data;

/// Square matrices of the checkpoint and their side: 1.07 GB.
const TENSORS: usize = 16;
const SIDE: usize = 4096;

/// Times that each rate is measured.
const ROUNDS: usize = 5;

/// Bytes a second, divided by 1e9.
#[derive(Debug, Serialize)]
pub(crate) struct FileRates {
    /// Every byte of a file in the page cache, mapped.
    read: f64,
    /// A new file, until it is on the disk.
    write: f64,
}

/// Writes the checkpoint: f32 matrices in one safetensors file.
pub(crate) fn write_checkpoint(path: &Path) -> io::Result<()> {
    let bytes = SIDE * SIDE * 4;
    let entries: Vec<String> = (0..TENSORS)
        .map(|i| {
            let (begin, end) = (i * bytes, (i + 1) * bytes);
            format!(r#""layers.{i:02}.weight":{{"dtype":"F32","shape":[{SIDE},{SIDE}],"data_offsets":[{begin},{end}]}}"#)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let padded = header.len().next_multiple_of(8);
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(padded as u64).to_le_bytes())?;
    write!(file, "{header:padded$}")?;
    for i in 0..TENSORS {
        let values = data::normal(SIDE * SIDE, i as u64);
        file.write_all(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    file.into_inner()?.sync_all()
}

/// Reads the file at `path`, and writes a quarter of its size beside it, several times; the fastest count.
pub(crate) fn rates(path: &Path) -> io::Result<FileRates> {
    let file = File::open(path)?;
    let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let scratch = path.with_extension("scratch");
    let quarter = vec![1u8; len / 4];
    let mut rates = FileRates { read: 0.0, write: 0.0 };
    for _ in 0..ROUNDS {
        let clock = Instant::now();
        // SAFETY: a private read-only mapping of `len` bytes, of a file that nobody changes meanwhile, unmapped below.
        let bytes: &[u8] = unsafe {
            let start = libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            );
            if start == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            std::slice::from_raw_parts(start.cast(), len)
        };
        black_box(bytes.par_chunks(1 << 20).map(xor).reduce(|| 0, |a, b| a ^ b));
        // SAFETY: the slice is not used any more.
        unsafe { libc::munmap(bytes.as_ptr().cast_mut().cast(), len) };
        rates.read = rates.read.max(len as f64 / clock.elapsed().as_secs_f64() / 1e9);

        let clock = Instant::now();
        let mut file = File::create(&scratch)?;
        file.write_all(&quarter)?;
        file.sync_all()?;
        rates.write = rates.write.max(quarter.len() as f64 / clock.elapsed().as_secs_f64() / 1e9);
        std::fs::remove_file(&scratch)?;
    }
    Ok(rates)
}

fn xor(bytes: &[u8]) -> u64 {
    bytes.as_chunks().0.iter().fold(0, |sum, word| sum ^ u64::from_ne_bytes(*word))
}
