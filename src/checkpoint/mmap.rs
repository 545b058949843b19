use std::fs::{self, File};
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use super::CheckpointError;

/// Opens a regular file for reading and maps it.
#[allow(unsafe_code)]
pub(super) fn map(path: &Path) -> Result<(File, Mmap), CheckpointError> {
    // before it is opened: opening a pipe waits for its other end
    let metadata = fs::metadata(path).map_err(CheckpointError::io(path, "open"))?;
    if !metadata.is_file() {
        let reason = "is not a regular file".to_owned();
        return Err(CheckpointError::NotACheckpoint { path: path.to_path_buf(), reason });
    }
    let file = File::open(path).map_err(CheckpointError::io(path, "open"))?;
    // SAFETY: the mapping is private and only ever read as bytes, for which every bit pattern is valid. If another
    // process shortens the file meanwhile, the system ends this process at the next access; no library that maps
    // files can prevent that, and nothing that was written would look finished.
    let map = unsafe { Mmap::map(&file) }.map_err(CheckpointError::io(path, "map"))?;
    Ok((file, map))
}

/// Tells the system that the pages of a range are not needed for now, so that they no longer count as this process's
/// memory. They stay what they are: the next access takes them from the file again.
#[allow(unsafe_code)]
pub(super) fn release(map: &Mmap, bytes: Range<usize>) {
    #[cfg(target_os = "linux")]
    {
        // A multiple of every system's pages. Neighbours in use come back when they are next looked at.
        const PAGE: usize = 1 << 16;
        let from = bytes.start / PAGE * PAGE;
        // SAFETY: the mapping is of a file and never written to, so that dropped pages come back with the same bytes.
        unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, bytes.end - from) }
            .ok();
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (map, bytes);
}
