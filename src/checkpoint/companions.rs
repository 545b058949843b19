use std::fs;
use std::path::{Path, PathBuf};

use super::{CheckpointError, MANIFEST};

/// The files beside a checkpoint's weights, relative to its folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Companions {
    /// What belongs to the model whatever form its weights have: tokenizer, pooling, readme.
    pub(crate) carried: Vec<PathBuf>,
    /// Weights of other parts of the model, or the same in other formats: they are not compressed.
    pub(crate) left_behind: Vec<PathBuf>,
}

/// Weights in whatever format, and the state of a training.
const WEIGHT_FILES: [&str; 22] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "h5",
    "gguf",
    "ggml",
    "onnx",
    "onnx_data",
    "msgpack",
    "tflite",
    "ot",
    "npz",
    "npy",
    "pkl",
    "pickle",
    "pb",
    "pdparams",
    "mlmodel",
    "engine",
    "llamafile",
];

/// What a file beside the weights is.
enum Kind {
    Carried,
    Weights,
    /// Written anew, or of no use without the weights it speaks of.
    Dropped,
}

impl Companions {
    /// Bytes of what is carried along from this folder.
    pub(crate) fn carried_bytes(&self, root: &Path) -> u64 {
        let bytes = |path: &PathBuf| Some(fs::metadata(root.join(path)).ok()?.len());
        self.carried.iter().filter_map(bytes).sum()
    }

    /// What stands in a folder, of which `opened` are the weights that are compressed. Hidden files are left out.
    pub(super) fn of<'a>(
        root: &Path,
        opened: impl Iterator<Item = &'a Path>,
    ) -> Result<Self, CheckpointError> {
        let opened: Vec<&Path> = opened.collect();
        let mut found = Self::default();
        found.list(root, &PathBuf::new(), &opened, &mut Vec::new())?;
        found.carried.sort();
        found.left_behind.sort();
        Ok(found)
    }

    /// Adds what stands `below` the root; `above` are the folders on the way there, lest a link leads around in a circle.
    fn list(
        &mut self,
        root: &Path,
        below: &Path,
        opened: &[&Path],
        above: &mut Vec<PathBuf>,
    ) -> Result<(), CheckpointError> {
        let folder = root.join(below);
        let real = folder.canonicalize().map_err(CheckpointError::io(&folder, "list"))?;
        if above.contains(&real) {
            return Ok(());
        }
        above.push(real);
        for item in fs::read_dir(&folder).map_err(CheckpointError::io(&folder, "list"))? {
            let item = item.map_err(CheckpointError::io(&folder, "list"))?;
            let (path, relative) = (item.path(), below.join(item.file_name()));
            if item.file_name().to_string_lossy().starts_with('.') || opened.contains(&path.as_path()) {
                continue;
            }
            let metadata = fs::metadata(&path).map_err(CheckpointError::io(&path, "read"))?;
            if metadata.is_dir() {
                self.list(root, &relative, opened, above)?;
            } else if metadata.is_file() {
                match kind(&relative) {
                    Kind::Carried => self.carried.push(relative),
                    Kind::Weights => self.left_behind.push(relative),
                    Kind::Dropped => {}
                }
            }
        }
        above.pop();
        Ok(())
    }
}

fn kind(relative: &Path) -> Kind {
    let name = relative.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let at_root = relative.components().count() == 1;
    if at_root && (name == "config.json" || name == MANIFEST) {
        return Kind::Dropped;
    }
    // `model.safetensors.index.json` and the like say in which file a tensor stands
    let named = |name: &str| {
        let extension = Path::new(name).extension().map(|e| e.to_string_lossy().into_owned());
        extension.is_some_and(|e| WEIGHT_FILES.contains(&e.as_str()))
    };
    if name.strip_suffix(".index.json").is_some_and(named) {
        return Kind::Dropped;
    }
    // `model.onnx.data`, `model.onnx_data_1`: what did not fit into the file itself
    if named(&name) || name.contains(".onnx.") || name.contains(".onnx_data") {
        return Kind::Weights;
    }
    Kind::Carried
}
