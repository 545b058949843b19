//! Runs that end early.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use tersor::DType;

use crate::args;
use crate::common::{Folder, safetensors, stored};
use crate::models::{floats, values};
use crate::run::{BINARY, Ran, Snapshot, assert_contains, names, tersor};

/// 64 MB in 16 tensors, and a recipe that takes its time with them.
struct Scene {
    _folder: Folder,
    source: PathBuf,
    recipe: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let folder = Folder::new();
        let bytes = floats(DType::F32, &values(1 << 20, 9));
        let tensors: Vec<_> = (0..16)
            .map(|i| stored(&format!("layers.{i}.weight"), DType::F32, &[1024, 1024], bytes.as_slice()))
            .collect();
        let source = folder.put("large.safetensors", safetensors(&tensors, &[].into()));
        let recipe = folder.put(
            "slow.toml",
            "[[step]]\nquantize = { bits = 8, observer = \"mse\", group_size = 64, symmetric = false }",
        );
        Self { _folder: folder, source, recipe }
    }

    fn compress(&self, output: &Path) -> Command {
        let mut command = Command::new(BINARY);
        command.args(args!["compress", self.source, "--recipe", self.recipe, "-o", output, "--threads", "1"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// The hidden folder that a run writes to, once `ready` holds of it.
fn partial(parent: &Path, child: &mut Child, ready: impl Fn(&Path) -> bool) -> PathBuf {
    for _ in 0..60_000 {
        if let Ok(items) = fs::read_dir(parent) {
            let mut found = items.map(|item| item.unwrap().path()).filter(|p| p.is_dir() && ready(p));
            if let Some(found) = found.next() {
                return found;
            }
        }
        assert!(child.try_wait().unwrap().is_none(), "ended before it could be stopped");
        sleep(Duration::from_millis(1));
    }
    panic!("nothing appeared in {}", parent.display())
}

fn kill(signal: &str, child: &Child) {
    let script = format!("kill -{signal} {}", child.id());
    assert!(Command::new("sh").arg("-c").arg(script).status().unwrap().success());
}

#[test]
fn ctrl_c_leaves_nothing_and_exits_with_130() {
    let scene = Scene::new();
    let before = Snapshot::of(&scene.source);
    for signal in ["INT", "TERM"] {
        let work = Folder::new();
        let parent = work.path().join("new");
        let mut child = scene.compress(&parent.join("out")).spawn().unwrap();
        let found = partial(&parent, &mut child, |_| true);
        let name = found.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with(".out.partial-"), "{name}");
        kill(signal, &child);
        let line = Ran::of(child.wait_with_output().unwrap()).error(130);
        assert_contains(&line, &["stopped", "nothing was written"]);
        assert_eq!(names(work.path()), [""; 0], "{signal}");
    }
    assert_eq!(Snapshot::of(&scene.source), before);
}

/// What cannot be caught leaves a hidden folder that nothing takes for a checkpoint, and that is in nobody's way.
#[test]
fn a_killed_run_leaves_nothing_that_looks_finished() {
    let scene = Scene::new();
    let before = Snapshot::of(&scene.source);
    let work = Folder::new();
    let output = work.path().join("out");
    let mut child = scene.compress(&output).spawn().unwrap();
    let written = |folder: &Path| {
        fs::metadata(folder.join("model.safetensors")).is_ok_and(|metadata| metadata.len() > 4096)
    };
    let left = partial(work.path(), &mut child, written);
    kill("KILL", &child);
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.stdout.as_str()), (None, ""));
    assert!(!output.exists());
    let left_name = left.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(left_name.starts_with(".out.partial-"), "{left_name}");
    assert_eq!(names(work.path()), [left_name.as_str()]);
    assert_eq!(names(&left), ["model.safetensors"]);
    let weights = left.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    assert_eq!(bytes[..8], [0; 8]);
    assert!(safetensors::SafeTensors::deserialize(&bytes).is_err());
    for path in [&left, &weights] {
        let line = tersor(args!["inspect", path]).error(1);
        assert_contains(&line, &[weights.to_str().unwrap(), "unfinished"]);
    }
    // once more, with something quicker
    tersor(args!["compress", scene.source, "--preset", "int8", "-o", output, "--quiet"]).quietly();
    tersor(args!["verify", scene.source, output]).quietly();
    assert_eq!(names(work.path()), [left_name.as_str(), "out"]);
    assert_eq!(Snapshot::of(&scene.source), before);
}
