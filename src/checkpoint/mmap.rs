use std::fs;
use std::path::Path;

use memmap2::Mmap;

use super::CheckpointError;
use crate::file::open_regular;

/// Maps a regular file for reading.
#[allow(unsafe_code)]
pub(super) fn map(path: &Path) -> Result<Mmap, CheckpointError> {
    let metadata = fs::metadata(path).map_err(CheckpointError::io(path, "open"))?;
    if !metadata.is_file() {
        let reason = "is not a regular file".to_owned();
        return Err(CheckpointError::NotACheckpoint { path: path.to_path_buf(), reason });
    }
    let file = open_regular(path).map_err(CheckpointError::io(path, "open"))?;
    // SAFETY: the mapping is private and only ever read as bytes, for which every bit pattern is valid. If another
    // process shortens the file meanwhile, the system ends this process at the next access; no library that maps
    // files can prevent that, and nothing that was written would look finished.
    unsafe { Mmap::map(&file) }.map_err(CheckpointError::io(path, "map"))
}
