//! Running the command, and looking at what it did and left alone.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::common::Folder;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_tersor");

/// What a run of the command left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the command.
pub(crate) fn tersor<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    Ran::of(Command::new(BINARY).args(args).output().unwrap())
}

/// A list of arguments from paths and texts.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => { [$(::std::ffi::OsString::from(&$arg)),*] };
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Succeeded, and said nothing on stderr.
    pub(crate) fn quietly(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{self:?}");
        self.stdout
    }

    /// Succeeded with exactly one JSON document on stdout.
    pub(crate) fn json(self) -> Value {
        let text = self.quietly();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// Failed with this code, said nothing on stdout and one line on stderr, which is returned without `error: `.
    pub(crate) fn error(self, code: i32) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (Some(code), ""), "{self:?}");
        let line = self.stderr.strip_prefix("error: ").and_then(|rest| rest.strip_suffix('\n'));
        let Some(line) = line.filter(|line| !line.contains('\n') && !line.is_empty()) else {
            panic!("not one line `error: …`: {self:?}")
        };
        assert!(!line.contains("panicked"), "{line}");
        line.to_owned()
    }
}

/// Starts a command once for every moment, and kills it so many milliseconds after a file is in `OUTPUT.unfinished`; then lets it end.
pub(crate) fn kill_and_go_on(command: &dyn Fn() -> Command, output: &Path, moments: &[(&str, u64)]) {
    let mut unfinished = output.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = Path::new(&unfinished);
    let mut killed = 0;
    for (file, delay) in moments {
        let mut child = command().spawn().unwrap();
        while !unfinished.join(file).exists() && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_micros(200));
        }
        sleep(Duration::from_millis(*delay));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            killed += 1;
        }
        child.wait().unwrap();
        if output.exists() {
            break;
        }
    }
    assert!(killed > 0);
    if !output.exists() {
        let ended = command().output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    assert!(!unfinished.exists());
}

/// Asserts that a text holds all of some others.
pub(crate) fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

/// Everything below a path: what it is, its bytes and when it was last changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeMap<PathBuf, (&'static str, Vec<u8>, SystemTime)>);

impl Snapshot {
    pub(crate) fn of(path: &Path) -> Self {
        let mut found = BTreeMap::new();
        add(path, &mut found);
        Self(found)
    }

    /// Paths relative to the folder and bytes, of files only.
    pub(crate) fn files(&self, folder: &Path) -> BTreeMap<String, &[u8]> {
        let files = self.0.iter().filter(|(_, (kind, ..))| *kind == "file");
        let relative = |path: &PathBuf| path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
        files.map(|(path, (_, bytes, _))| (relative(path), bytes.as_slice())).collect()
    }
}

fn add(path: &Path, found: &mut BTreeMap<PathBuf, (&'static str, Vec<u8>, SystemTime)>) {
    let metadata = fs::symlink_metadata(path).unwrap();
    let (kind, bytes) = if metadata.is_symlink() {
        ("link", fs::read_link(path).unwrap().into_os_string().into_encoded_bytes())
    } else if metadata.is_dir() {
        for item in fs::read_dir(path).unwrap() {
            add(&item.unwrap().path(), found);
        }
        ("folder", Vec::new())
    } else {
        ("file", fs::read(path).unwrap())
    };
    found.insert(path.to_path_buf(), (kind, bytes, metadata.modified().unwrap()));
}

/// Names in a folder, hidden ones included.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Bytes of all safetensors files of a folder.
pub(crate) fn weight_bytes(folder: &Path) -> u64 {
    let is_weights = |name: &&String| name.ends_with(".safetensors");
    names(folder).iter().filter(is_weights).map(|n| fs::metadata(folder.join(n)).unwrap().len()).sum()
}

/// Compresses, and gives the output folder beside what `--json` printed.
pub(crate) fn compressed(source: &Path, options: &[&str]) -> (Folder, PathBuf, Value) {
    let work = Folder::new();
    let output = work.path().join("out");
    let mut args = args!["compress", source, "-o", output, "--json", "--quiet"].to_vec();
    args.extend(options.iter().map(Into::into));
    let report = tersor(args).json();
    (work, output, report)
}

/// Asserts that compressing fails with one line that holds all parts, leaves nothing behind, not even the folders above
/// the output, and does not touch the source. Returns the line.
pub(crate) fn refuses(source: &Path, options: &[&str], parts: &[&str]) -> String {
    let before = Snapshot::of(source);
    let work = Folder::new();
    let output = work.path().join("made/for/it");
    let mut args = args!["compress", source, "-o", output].to_vec();
    args.extend(options.iter().map(Into::into));
    let line = tersor(args).error(1);
    assert_contains(&line, parts);
    assert_eq!(names(work.path()), [""; 0], "left behind after: {line}");
    assert_eq!(Snapshot::of(source), before);
    line
}
