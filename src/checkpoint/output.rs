use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::CheckpointError;
use crate::file::open_regular;

/// What tersor writes about its own work beside the weights.
pub(crate) const MANIFEST: &str = "tersor.json";

/// A folder that appears under its name only when it is complete.
///
/// Everything is written to `.NAME.partial-…` beside it, which is removed on failure. After everything has
/// reached the disk, the folder is renamed.
pub(crate) struct OutputFolder {
    target: PathBuf,
    parent: PathBuf,
    // removed in this order, unless the folder is finished
    temporary: TempDir,
    created: CreatedFolders,
}

/// Folders that were made for the output, outermost first; removed when dropped, as far as they are empty.
struct CreatedFolders(Vec<PathBuf>);

impl Drop for CreatedFolders {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            fs::remove_dir(folder).ok();
        }
    }
}

impl OutputFolder {
    /// Checks that `target` may be written, given what is read, and creates the temporary folder.
    pub(crate) fn create(target: &Path, input: &Path, needed: u64) -> Result<Self, CheckpointError> {
        Self::check(target, input)?;
        let absolute = std::path::absolute(target).map_err(CheckpointError::io(target, "find"))?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(CheckpointError::OutputExists { path: target.to_path_buf() });
        };
        let created = CreatedFolders(missing_ancestors(parent));
        fs::create_dir_all(parent).map_err(CheckpointError::io(parent, "create"))?;
        if let Some(free) = free_bytes(parent)
            && free < needed
        {
            return Err(CheckpointError::DiskFull { path: target.to_path_buf(), needed, free });
        }
        let temporary = tempfile::Builder::new()
            .prefix(&format!(".{}.partial-", name.to_string_lossy()))
            .tempdir_in(parent)
            .map_err(CheckpointError::io(parent, "create a folder in"))?;
        Ok(Self { target: absolute.clone(), parent: parent.to_path_buf(), temporary, created })
    }

    /// Checks that `target` does not exist and does not lie in `input`.
    pub(crate) fn check(target: &Path, input: &Path) -> Result<(), CheckpointError> {
        let input = input.canonicalize().map_err(CheckpointError::io(input, "open"))?;
        // the part of the target that exists, with links resolved, and the rest as it is
        let absolute = std::path::absolute(target).map_err(CheckpointError::io(target, "find"))?;
        let missing = absolute.ancestors().find(|a| a.exists()).and_then(|a| absolute.strip_prefix(a).ok());
        if missing.is_some_and(|m| m.components().any(|c| c == std::path::Component::ParentDir)) {
            // what `..` means behind a folder that does not exist yet cannot be judged
            let error = io::Error::new(
                io::ErrorKind::InvalidInput,
                "`..` stands behind a folder that does not exist",
            );
            return Err(CheckpointError::io(target, "write to")(error));
        }
        let resolved = absolute
            .ancestors()
            .find_map(|a| Some(a.canonicalize().ok()?.join(absolute.strip_prefix(a).ok()?)))
            .unwrap_or_else(|| absolute.clone());
        if resolved.starts_with(&input) {
            return Err(CheckpointError::OutputInsideInput { path: target.to_path_buf(), input });
        }
        if fs::symlink_metadata(&absolute).is_ok() {
            return Err(CheckpointError::OutputExists { path: target.to_path_buf() });
        }
        Ok(())
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Writes a small file and waits until the disk has it.
    pub(crate) fn write(&self, relative: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
        let (mut file, path) = self.create_file(relative)?;
        file.write_all(bytes).map_err(CheckpointError::io(&path, "write"))?;
        file.sync_all().map_err(CheckpointError::io(&path, "sync"))
    }

    /// Copies a file of any size and waits until the disk has it.
    pub(crate) fn copy(&self, from: &Path, relative: &Path) -> Result<(), CheckpointError> {
        let mut source = open_regular(from).map_err(CheckpointError::io(from, "open"))?;
        let (mut file, path) = self.create_file(relative)?;
        io::copy(&mut source, &mut file).map_err(CheckpointError::io(&path, "write"))?;
        file.sync_all().map_err(CheckpointError::io(&path, "sync"))
    }

    fn create_file(&self, relative: &Path) -> Result<(File, PathBuf), CheckpointError> {
        let path = self.path().join(relative);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(CheckpointError::io(folder, "create"))?;
        }
        let file = File::create_new(&path).map_err(CheckpointError::io(&path, "create"))?;
        Ok((file, path))
    }

    /// Gives the folder its name.
    pub(crate) fn finish(mut self) -> Result<PathBuf, CheckpointError> {
        sync_folders(self.path())?;
        set_default_permissions(self.path());
        match rename_new(self.path(), &self.target) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(CheckpointError::OutputExists { path: self.target });
            }
            renamed => renamed.map_err(CheckpointError::io(&self.target, "rename to"))?,
        }
        self.created.0.clear();
        sync_folder(&self.parent)?;
        // nothing is left under the temporary name
        let _ = self.temporary.keep();
        Ok(self.target)
    }
}

fn missing_ancestors(folder: &Path) -> Vec<PathBuf> {
    let mut missing: Vec<PathBuf> =
        folder.ancestors().take_while(|a| !a.exists()).map(Path::to_path_buf).collect();
    missing.reverse();
    missing
}

/// A temporary folder is private; the finished one has the permissions that a new folder gets.
fn set_default_permissions(folder: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let probe = folder.join(".permissions");
        if fs::create_dir(&probe).is_ok() {
            if let Ok(metadata) = fs::metadata(&probe) {
                let mode = metadata.permissions().mode();
                fs::set_permissions(folder, fs::Permissions::from_mode(mode)).ok();
            }
            fs::remove_dir(&probe).ok();
        }
    }
    #[cfg(not(unix))]
    let _ = folder;
}

/// Renames a folder, and never replaces what stands there: not even an empty folder, which a plain rename would.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // the kernel or the file system does not know the flag
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {}
            renamed => return Ok(renamed?),
        }
    }
    rename_checked(from, to)
}

/// The same where the system offers nothing better: what appears between the look and the rename goes unseen.
fn rename_checked(from: &Path, to: &Path) -> io::Result<()> {
    if fs::symlink_metadata(to).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    fs::rename(from, to)
}

/// Writes a file under another name, and renames it when the disk has it: under its own name it is always whole.
///
/// # Errors
/// When it cannot be written, or the disk refuses.
pub(crate) fn write_atomically(
    folder: &Path,
    name: &str,
    write: impl FnOnce(&Path) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let (path, temporary) = (folder.join(name), folder.join(format!("{name}.part")));
    write(&temporary)?;
    let written = File::open(&temporary).and_then(|file| file.sync_all());
    written.map_err(CheckpointError::io(&temporary, "sync"))?;
    fs::rename(&temporary, &path).map_err(CheckpointError::io(&path, "rename to"))?;
    sync_folder(folder)
}

/// Waits until the disk has the names in a folder and in all below it.
fn sync_folders(folder: &Path) -> Result<(), CheckpointError> {
    for item in fs::read_dir(folder).map_err(CheckpointError::io(folder, "list"))? {
        let item = item.map_err(CheckpointError::io(folder, "list"))?;
        if item.file_type().is_ok_and(|kind| kind.is_dir()) {
            sync_folders(&item.path())?;
        }
    }
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    #[cfg(unix)]
    File::open(folder).and_then(|f| f.sync_all()).map_err(CheckpointError::io(folder, "sync"))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// Bytes that this user may still write to the disk of a folder; `None` where the system does not tell.
fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(folder).ok()?;
        stat.f_bavail.checked_mul(stat.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rename_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        for rename in [rename_new, rename_checked] {
            assert_eq!(rename(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert!(from.is_dir());
        }
        fs::remove_dir(&to).unwrap();
        rename_new(&from, &to).unwrap();
        rename_checked(&to, &from).unwrap();
        assert!(from.is_dir() && !to.exists());
    }
}
