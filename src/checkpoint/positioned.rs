//! Reading and writing at a place of a file, from several threads at once.

use std::fs::File;
use std::io;

/// Fills `bytes` from `offset` on.
pub(crate) fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset);
    #[cfg(windows)]
    return whole(bytes.len(), |at| {
        std::os::windows::fs::FileExt::seek_read(file, &mut bytes[at..], offset + at as u64)
    });
}

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::write_all_at(file, bytes, offset);
    #[cfg(windows)]
    return whole(bytes.len(), |at| {
        std::os::windows::fs::FileExt::seek_write(file, &bytes[at..], offset + at as u64)
    });
}

#[cfg(windows)]
fn whole(len: usize, mut some: impl FnMut(usize) -> io::Result<usize>) -> io::Result<()> {
    let mut at = 0;
    while at < len {
        match some(at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => at += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Makes a new file as long as it will be, so that a full disk shows at once and its blocks lie together.
pub(crate) fn allocate(file: &File, len: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if len > 0 {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        // what a file system cannot do beforehand it does when the data comes
        if let Err(e @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) =
            fallocate(file, FallocateFlags::empty(), 0, len)
        {
            return Err(e.into());
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, len);
    Ok(())
}
