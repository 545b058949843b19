use std::path::Path;

use serde::Serialize;

use crate::checkpoint::CheckpointError;
use crate::file::hash_regular;

/// A file that was read, so that another can know whether it has the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InputFile {
    /// Its name, without the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

impl InputFile {
    /// Reads a file once, a piece at a time.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let (bytes, sha256) = hash_regular(path).map_err(CheckpointError::io(path, "open"))?;
        let name = path
            .file_name()
            .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        Ok(Self { name, bytes, sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_the_standard() {
        let folder = tempfile::tempdir().unwrap();
        // FIPS 180-4, examples: one block, and a million times the letter a
        for (bytes, sha256) in [
            (b"abc".to_vec(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (vec![b'a'; 1_000_000], "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
        ] {
            let path = folder.path().join("file");
            std::fs::write(&path, &bytes).unwrap();
            let input = InputFile::read(&path).unwrap();
            assert_eq!((input.name.as_str(), input.bytes), ("file", bytes.len() as u64));
            assert_eq!(input.sha256, sha256);
        }
        let missing = InputFile::read(folder.path().join("missing")).unwrap_err().to_string();
        assert!(missing.contains("missing: cannot open"), "{missing}");
    }
}
