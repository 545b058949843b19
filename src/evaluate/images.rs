use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use crate::file::open_regular;

/// Why image data could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused, or the compressed stream is broken.
    #[error("{}: cannot read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The file is no IDX file of bytes, or contradicts itself or its companion.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Labelled 8-bit images, as the MNIST family of data sets has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSet {
    /// Height and width.
    size: [usize; 2],
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

impl ImageSet {
    /// Reads images (`idx3-ubyte`) and their labels (`idx1-ubyte`), gzipped or not.
    ///
    /// Format: <http://yann.lecun.com/exdb/mnist/>: the bytes 0, 0, 8 and the number of dimensions, the
    /// dimensions as big-endian u32, the bytes.
    ///
    /// # Errors
    /// When a file cannot be read, is no such file, or there are not as many labels as images.
    pub fn open(images: impl AsRef<Path>, labels: impl AsRef<Path>) -> Result<Self, DataError> {
        let (images, labels) = (images.as_ref(), labels.as_ref());
        let (shape, pixels) = read_idx(images)?;
        let (label_shape, label_bytes) = read_idx(labels)?;
        let bad = |path: &Path, reason: String| DataError::Format { path: path.to_path_buf(), reason };
        let [count, height, width] = shape[..] else {
            return Err(bad(images, format!("holds {} dimensions, but images have 3", shape.len())));
        };
        let [label_count] = label_shape[..] else {
            return Err(bad(labels, format!("holds {} dimensions, but labels have 1", label_shape.len())));
        };
        if count != label_count {
            return Err(bad(
                labels,
                format!("has {label_count} labels for {count} images in {}", images.display()),
            ));
        }
        if height == 0 || width == 0 {
            return Err(bad(images, format!("holds images of {height} × {width} pixels")));
        }
        if count == 0 {
            return Err(bad(images, "holds no images".into()));
        }
        Ok(Self { size: [height, width], pixels, labels: label_bytes })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Pixels of one image.
    pub fn features(&self) -> usize {
        self.size[0] * self.size[1]
    }

    /// The pixels, image by image, row by row.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The labels.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }
}

/// Most bytes that a file may hold once it is unpacked: a few bytes of gzip can claim terabytes.
const MAX_BYTES: u64 = 1 << 32;

/// Shape and bytes of an IDX file.
fn read_idx(path: &Path) -> Result<(Vec<usize>, Vec<u8>), DataError> {
    let io = |source| DataError::Io { path: path.to_path_buf(), source };
    let bad = |reason: String| DataError::Format { path: path.to_path_buf(), reason };
    let mut file = open_regular(path).map_err(io)?;
    let mut start = [0; 2];
    let gzipped = file.read_exact(&mut start).is_ok() && start == [0x1f, 0x8b];
    let file = io::Seek::rewind(&mut file).map(|()| file).map_err(io)?;
    let mut input: Box<dyn Read> = if gzipped { Box::new(GzDecoder::new(file)) } else { Box::new(file) };

    let mut magic = [0; 4];
    input.read_exact(&mut magic).map_err(io)?;
    let [0, 0, 0x08, dimensions @ 1..=4] = magic else {
        return Err(bad(format!(
            "begins with {magic:02x?}, but an IDX file of bytes begins with [00, 00, 08, dimensions]"
        )));
    };
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let mut dimension = [0; 4];
        input.read_exact(&mut dimension).map_err(io)?;
        shape.push(u32::from_be_bytes(dimension) as usize);
    }
    let expected = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64));
    let expected = expected
        .filter(|n| *n <= MAX_BYTES)
        .ok_or_else(|| bad(format!("claims the shape {shape:?}, more than {MAX_BYTES} bytes")))?;
    let mut bytes = Vec::new();
    input.take(expected + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 != expected {
        let more = if bytes.len() as u64 > expected { "more" } else { "fewer" };
        return Err(bad(format!(
            "shape {shape:?} is {expected} bytes, but the file holds {more}: it is corrupt or cut short"
        )));
    }
    Ok((shape, bytes))
}
