//! `distill`: a compressed model learns its scales from the original.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use crate::args;
use crate::common::Folder;
use crate::run::{BINARY, Snapshot, assert_contains, kill_and_go_on, tersor};
use crate::tasks::{network, words};

/// A tiny decoder, a text for it, and a folder with the decoder in int2.
fn scene() -> (Folder, PathBuf, Folder) {
    let model = network("llama", 64);
    let text = model.put("calibration.txt", words((0..6000u32).map(|i| (i * i * 7 + i * 13 + 5) % 64)));
    let folder = Folder::new();
    let student = folder.path().join("student");
    let options = args!["--preset", "int2-asym", "--group-size", "8", "-o", student, "--quiet"];
    tersor(args!["compress", model.path()].iter().chain(&options)).quietly();
    (model, text, folder)
}

fn distill(scene: &(Folder, PathBuf, Folder), steps: &str, output: &Path) -> Vec<OsString> {
    let (model, text, folder) = scene;
    let student = folder.path().join("student");
    let command = args!["distill", student, "--original", model.path(), "--calibration", text, "-o", output];
    let options = args!["--samples", "20", "--context", "60", "--rate", "0.05", "--steps", steps];
    command.into_iter().chain(options).collect()
}

#[test]
fn a_model_is_distilled_on_the_command_line() {
    let scene = scene();
    let (model, text, folder) = &scene;
    let student = folder.path().join("student");
    let read = || [model.path(), student.as_path()].map(Snapshot::of);
    let before = read();
    let output = folder.path().join("out");
    let said = tersor(distill(&scene, "8", &output).into_iter().chain(args!["--json"])).json();
    assert_eq!((&said["steps"], &said["samples"], &said["held_out"]), (&json!(8), &json!(18), &json!(2)));
    assert_eq!((&said["weights"], &said["left_alone"]), (&json!(14), &json!([])));
    let [learned, had] = ["after", "before"].map(|key| said[key].as_f64().unwrap());
    assert!(learned < had, "{said}");

    // what `eval` finds of both on all samples goes the same way
    let divergence = |of: &Path| {
        let task = args!["--task", "agreement", "--reference", model.path(), "--data", text];
        let ran = tersor(args!["eval", of, "--context", "60", "--json"].iter().chain(&task)).json();
        let scores = ran["scores"].as_array().unwrap().clone();
        scores.iter().find(|score| score["metric"] == "kl").unwrap()["value"].as_f64().unwrap()
    };
    assert!(divergence(&output) < divergence(&student));
    tersor(args!["verify", model.path(), output]).quietly();

    fs::remove_dir_all(&output).unwrap();
    assert!(before == read(), "inputs were changed");
    let ran = tersor(distill(&scene, "8", &output)).quietly();
    assert_contains(&ran, &["nats/token before", "2 samples (120 tokens)", "Written to"]);
    let line = tersor(distill(&scene, "8", &output)).error(1);
    assert_contains(&line, &["out", "exist"]);
}

#[test]
fn killed_runs_go_on_and_end_with_the_same_bytes() {
    let scene = scene();
    let folder = &scene.2;
    let spawn = |output: &Path| {
        let mut command = Command::new(BINARY);
        command.args(distill(&scene, "300", output)).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let whole = folder.path().join("whole");
    assert!(spawn(&whole).arg("--quiet").status().unwrap().success());
    let output = folder.path().join("out");
    kill_and_go_on(&|| spawn(&output), &output, &[0, 20, 150, 300].map(|delay| ("run.json", delay)));
    let files =
        |output: &Path| ["model.safetensors", "tersor.json"].map(|name| fs::read(output.join(name)).unwrap());
    assert!(files(&output) == files(&whole));
}

/// What Ctrl-C leaves is where the next run goes on.
#[cfg(unix)]
#[test]
fn a_stopped_run_keeps_what_it_has_learned() {
    let scene = scene();
    let output = scene.2.path().join("out");
    let unfinished = scene.2.path().join("out.unfinished");
    let steps = || -> Vec<String> {
        let entries = fs::read_dir(&unfinished).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("step-")).collect()
    };
    let child = Command::new(BINARY).args(distill(&scene, "3000", &output)).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    while !unfinished.join("run.json").exists() && child.try_wait().unwrap().is_none() {
        sleep(Duration::from_micros(200));
    }
    sleep(Duration::from_millis(300));
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(signal.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!output.exists());
    assert_eq!(steps().len(), 1, "{:?}", steps());
    // of other samples it is another run
    let line = tersor(distill(&scene, "3000", &output).into_iter().chain(args!["--seed", "1"])).error(1);
    assert_contains(&line, &["out.unfinished", "another run"]);
}

#[test]
fn wrong_input_is_refused_in_one_line() {
    let scene = scene();
    let (model, text, folder) = &scene;
    let output = folder.path().join("out");
    let student = folder.path().join("student");
    let with = |student: &Path, original: &Path, text: &Path, more: &[&str]| {
        let command = args!["distill", student, "--original", original, "--calibration", text, "-o", output];
        tersor(command.into_iter().chain(more.iter().map(Into::into)))
    };
    let missing = folder.path().join("missing");
    for (ran, parts) in [
        (with(&missing, model.path(), text, &[]), ["missing", "cannot open"]),
        (with(&student, &missing, text, &[]), ["missing", "cannot open"]),
        (with(&student, model.path(), &missing, &[]), ["missing", "cannot"]),
        (with(model.path(), model.path(), text, &["--context", "60"]), ["no linear layer", "quantize"]),
        (with(&student, model.path(), text, &["--context", "60", "--rate=-1"]), ["rate", "above 0"]),
        (with(&student, model.path(), text, &["--context", "65"]), ["65", "64"]),
        (
            with(&student, model.path(), text, &["--context", "60", "--samples", "1"]),
            ["1 samples", "too few"],
        ),
    ] {
        assert_contains(&ran.error(1), &parts);
    }
    for arguments in [&["--steps", "0"][..], &["--rate", "much"], &["--samples", "0"]] {
        assert_eq!(with(&student, model.path(), text, arguments).code, Some(2));
    }
    assert!(!output.exists());
}
