//! Reports on the disk: each appears when it is complete, and replaces an earlier one only then.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::Failure;

/// Checks that a file can be written there, as far as can be said before there is something to write.
pub(super) fn check(path: &Path) -> Result<(), Failure> {
    let parent = parent(path);
    if !parent.is_dir() {
        return Err(format!(
            "{}: cannot write: {} is no folder; create it first",
            path.display(),
            parent.display()
        )
        .into());
    }
    if path.is_dir() {
        return Err(format!("{}: cannot write: it is a folder; name a file in it", path.display()).into());
    }
    Ok(())
}

/// Checks that a folder is there, or can be made where it is to be.
pub(super) fn check_folder(folder: &Path) -> Result<(), Failure> {
    if folder.is_dir() {
        return Ok(());
    }
    if fs::symlink_metadata(folder).is_ok() {
        return Err(format!("{}: cannot write files into it: it is no folder", folder.display()).into());
    }
    check(folder)
}

/// Makes a folder if it is not there; not those above it.
pub(super) fn create_folder(folder: &Path) -> Result<(), Failure> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir(folder).map_err(|e| format!("{}: cannot create: {e}", folder.display()).into())
}

/// Writes a file beside its place, waits for the disk and moves it there.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    check(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.partial-");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // what a new file gets; the mask of the process is taken off
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let written = builder.tempfile_in(parent(path)).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    });
    written.map_err(|e| format!("{}: cannot write: {e}", path.display()).into())
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}
