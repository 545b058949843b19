//! Every subcommand in every style of output, and what the command line refuses.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;
use tersor::DType;

use crate::args;
use crate::common::{Folder, safetensors};
use crate::models::{folder, mixed, weight};
use crate::run::{BINARY, Ran, assert_contains, compressed, names, tersor};

/// Records of RFC 4180, the first being the headings.
fn csv(text: &str) -> Vec<Vec<String>> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
    reader.records().map(|r| r.unwrap().iter().map(str::to_owned).collect()).collect()
}

/// Cells of a Markdown table, the first row being the headings.
fn markdown(text: &str) -> Vec<Vec<String>> {
    let row = |line: &str| {
        let line = line.strip_prefix("| ").and_then(|l| l.strip_suffix(" |")).unwrap();
        line.split(" | ").map(|cell| cell.trim().to_owned()).collect()
    };
    let mut rows: Vec<Vec<String>> = text.lines().map(row).collect();
    let rule = rows.remove(1);
    assert!(rule.iter().all(|cell| cell == "---" || cell == "---:"), "{text}");
    assert!(rows.iter().all(|row| row.len() == rule.len()), "{text}");
    rows
}

#[test]
fn inspect_says_the_same_in_every_style() {
    let source = folder(&mixed(DType::F32), None);
    let source = source.path();
    let json = tersor(args!["inspect", source, "--json"]).json();
    let tensors = json["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 11);
    let find = |name: &str| tensors.iter().find(|t| t["name"] == name).unwrap();
    let fc1 = find("layers.0.fc1.weight");
    assert_eq!((&fc1["class"], &fc1["dtype"]), (&"linear".into(), &"F32".into()));
    assert_eq!(fc1["shape"], serde_json::json!([33, 128]));
    assert_eq!(fc1["bytes"], 33 * 128 * 4);
    assert_eq!(fc1["compressed"], false);
    assert_eq!(find("conv.weight")["class"], "conv");
    assert_eq!(find("embed_tokens.weight")["class"], "embedding");
    assert_eq!(find("norm.weight")["class"], "norm");
    assert_eq!(find("layers.0.fc1.bias")["class"], "bias");
    assert_eq!(find("steps")["class"], "other");
    let size = fs::metadata(source.join("model.safetensors")).unwrap().len();
    assert_eq!(json["file_bytes"], size);
    let linear = json["classes"].as_array().unwrap().iter().find(|c| c["class"] == "linear").unwrap();
    assert_eq!(linear["tensors"], 4); // `empty.weight` is one
    assert_eq!(linear["elements"], 33 * 128 + 17 * 200 + 20 * 48);

    let rows = csv(&tersor(args!["inspect", source, "--csv"]).quietly());
    assert_eq!(rows[0], ["tensor", "class", "shape", "stored as", "bytes"]);
    assert_eq!(rows[2], ["layers.0.fc1.weight", "linear", "[33, 128]", "F32", "16896"]);
    assert_eq!(rows.len(), 12);
    let rows = markdown(&tersor(args!["inspect", source, "--markdown"]).quietly());
    assert_eq!(rows[2], ["layers.0.fc1.weight", "linear", "[33, 128]", "F32", "16,896"]);
    let text = tersor(args!["inspect", source]).quietly();
    assert_contains(&text, &["layers.0.fc1.weight", "16,896", "11 tensors", "in 1 file\n"]);
}

#[test]
fn plan_says_the_same_in_every_style_and_writes_nothing() {
    let source = folder(&mixed(DType::F32), None);
    let plan = |style: &str| {
        let mut args = args!["plan", source.path(), "--preset", "2:4+int8"].to_vec();
        args.extend((!style.is_empty()).then(|| style.into()));
        tersor(args).quietly()
    };
    let json: Value = serde_json::from_str(&plan("--json")).unwrap();
    assert_eq!(json["format"], "tersor");
    assert_eq!(json["bytes_before"], fs::metadata(source.path().join("model.safetensors")).unwrap().len());
    let tensors = json["tensors"].as_array().unwrap();
    let find = |name: &str| tensors.iter().find(|t| t["name"] == name).unwrap();
    let fc1 = find("layers.0.fc1.weight");
    assert_eq!(fc1["to"], "2:4 × int8, channel");
    assert_eq!(fc1["reason"], "linear: step 1 and 2");
    assert_eq!(fc1["methods"].as_array().unwrap().len(), 2);
    // 33 rows of 64 codes, 2 bits a position, 33 scales, the shape
    assert_eq!(fc1["bytes_after"], 33 * 64 + 33 * 64 * 2 / 8 + 33 * 4 + 16);
    assert_eq!(find("lm_head.weight")["reason"], "ignored by `*lm_head`");
    assert_eq!(find("norm.weight")["reason"], "norm: no step names it");
    assert_eq!(find("empty.weight")["reason"], "it has no elements");
    assert_eq!(find("lm_head.weight")["bytes_after"], 20 * 48 * 4);

    let rows = csv(&plan("--csv"));
    assert_eq!(rows[0], ["tensor", "shape", "from", "to", "bytes", "bytes out", "methods", "why"]);
    let row = rows.iter().find(|r| r[0] == "layers.0.fc1.weight").unwrap();
    assert_eq!(row[3..6], ["2:4 × int8, channel".to_owned(), "16896".into(), fc1["bytes_after"].to_string()]);
    let row = rows.iter().find(|r| r[0] == "norm.weight").unwrap();
    assert_eq!((row[3].as_str(), row[7].as_str()), ("kept", "norm: no step names it"));
    assert_eq!(markdown(&plan("--markdown")).len(), rows.len());
    let after = json["bytes_after"].to_string();
    assert_contains(&plan(""), &[&format!("exactly {after} bytes"), "3 of 11 tensors compressed"]);
    assert_eq!(names(source.path()), ["model.safetensors"]);
}

#[test]
fn compress_and_verify_in_every_style() {
    let source = folder(&mixed(DType::F32), None);
    let source = source.path();
    let work = Folder::new();
    let compress = |name: &str, style: &[&str]| {
        let output = work.path().join(name);
        let mut args = args!["compress", source, "--preset", "int4", "--output", output].to_vec();
        args.extend(style.iter().map(Into::into));
        tersor(args).quietly()
    };
    let rows = csv(&compress("csv", &["--csv"]));
    assert_eq!(rows[0][..4], ["tensor", "form", "bytes", "bytes out"]);
    assert_eq!(rows.len(), 1 + 3);
    let rows = markdown(&compress("markdown", &["--markdown", "--quiet"]));
    assert_eq!(rows[1][..3], ["layers.0.fc1.weight", "int4, group 128", "16,896"]);
    assert_contains(&compress("terminal", &[]), &["smaller) in ", "terminal", "int4, group 128"]);
    assert_eq!(names(work.path()), ["csv", "markdown", "terminal"]);
    // the report is also in the folder
    let manifest: Value =
        serde_json::from_slice(&fs::read(work.path().join("csv/tersor.json")).unwrap()).unwrap();
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 3);
    assert_eq!(manifest["format"], "tersor");

    let output = work.path().join("csv");
    let json = tersor(args!["verify", source, output, "--json"]).json();
    let checks = json["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 11);
    for check in checks {
        assert!(check["failure"].is_null(), "{check}");
        assert!(check["relative_error"].as_f64() <= check["bound"].as_f64(), "{check}");
    }
    let rows = csv(&tersor(args!["verify", source, output, "--csv"]).quietly());
    assert!(rows[1..].iter().all(|row| row[4] == "ok"), "{rows:?}");
    assert_contains(&tersor(args!["verify", source, output]).quietly(), &["all 11 tensors"]);
}

#[test]
fn verify_tells_what_differs_and_exits_with_3() {
    let source = folder(&mixed(DType::F32), None);
    let (_work, output, _) = compressed(source.path(), &["--preset", "int4"]);
    let verify = |options: &[&str]| {
        let mut args = args!["verify", source.path(), output].to_vec();
        args.extend(options.iter().map(Into::into));
        tersor(args)
    };
    // a bound that no int4 weight keeps
    let strict = verify(&["--max-relative-error", "1e-3", "--json"]);
    assert_eq!((strict.code, strict.stderr.as_str()), (Some(3), ""));
    let json: Value = serde_json::from_str(&strict.stdout).unwrap();
    let failed: Vec<&str> = json["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|c| !c["failure"].is_null())
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(failed, ["layers.0.fc1.weight", "layers.0.fc2.weight", "conv.weight"]);
    // one bit of a tensor that was to be copied: the last, which has one element
    let path = output.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let ran = verify(&[]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(3), ""));
    assert_contains(&ran.stdout, &["its bytes differ", "1 of 11 tensors differ"]);
    let row = ran.stdout.lines().find(|line| line.contains("differ")).unwrap();
    assert_contains(row, &["temperature"]);
    // another model altogether
    let other = folder(&[weight("x.weight", DType::F32, &[4, 4])], None);
    let ran = tersor(args!["verify", source.path(), other.path()]);
    assert_eq!(ran.code, Some(3));
    assert_contains(&ran.stdout, &["it is missing from the output", "the source has no such tensor"]);
}

#[test]
fn compare_puts_checkpoints_side_by_side() {
    let source = folder(&mixed(DType::F32), None);
    let (_work, int8, _) = compressed(source.path(), &["--preset", "int8"]);
    let json = tersor(args!["compare", source.path(), int8, "--json"]).json();
    let variants = json["variants"].as_array().unwrap();
    assert_eq!(variants.len(), 2);
    let size = |folder: &std::path::Path| fs::metadata(folder.join("model.safetensors")).unwrap().len();
    let (before, after) = (size(source.path()), size(&int8));
    assert_eq!((&variants[0]["file_bytes"], &variants[1]["file_bytes"]), (&before.into(), &after.into()));
    assert_eq!(variants[0]["file_ratio"], 1.0);
    assert_eq!(variants[1]["file_ratio"], before as f64 / after as f64);
    assert!(variants[0]["worst_layer"].is_null());
    assert!(variants[1]["worst_layer"]["name"].is_string());
    assert_eq!(variants[1]["name"], "out");
    let rows = csv(&tersor(args!["compare", source.path(), int8, int8, "--csv"]).quietly());
    assert_eq!(rows.len(), 4);
    assert_eq!(rows[2][1], after.to_string());
    assert_eq!(markdown(&tersor(args!["compare", source.path(), int8, "--markdown"]).quietly()).len(), 3);
}

/// A tensor that has no counterpart is named, not passed over.
#[test]
fn compare_says_what_it_could_not_compare() {
    let tensor = |name: &str, shape: &[usize]| crate::models::weight(name, DType::F32, shape);
    let source = folder(
        &[tensor("a.weight", &[4, 8]), tensor("b.weight", &[4, 8]), tensor("c.weight", &[2, 2])],
        None,
    );
    let other = folder(
        &[tensor("b.weight", &[8, 4]), tensor("c.weight", &[2, 2]), tensor("d.weight", &[2, 2])],
        None,
    );
    let compare = args!["compare", source.path(), other.path()];
    let json = tersor(compare.clone().into_iter().chain(args!["--json"])).json();
    assert_eq!(json["variants"][0]["not_compared"], serde_json::json!([]));
    assert_eq!(
        json["variants"][1]["not_compared"],
        serde_json::json!([
            {"name": "a.weight", "reason": "it is missing"},
            {"name": "b.weight", "reason": "shape [4, 8] became [8, 4]"},
            {"name": "d.weight", "reason": "the reference has no such tensor"},
        ])
    );
    let text = tersor(compare).quietly();
    assert_contains(&text, &["3 not compared", "`a.weight` (it is missing) and 2 others"]);
}

#[test]
fn help_has_examples_for_every_subcommand() {
    for subcommand in ["inspect", "plan", "compress", "eval", "compare", "verify", "demo"] {
        for flag in ["--help", "-h"] {
            let help = tersor([subcommand, flag]).quietly();
            assert_contains(&help, &["\nExample", &format!("Usage: tersor {subcommand}"), "--json"]);
        }
    }
    let help = tersor(["--help"]).quietly();
    assert_contains(
        &help,
        &["Exit codes:", "inspect", "plan", "compress", "eval", "compare", "verify", "demo"],
    );
    assert_contains(&tersor(["compress", "--help"]).quietly(), &["2:4+int8", "int4-asym", "S%-global"]);
    assert_eq!(tersor(["--version"]).quietly(), format!("tersor {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_exits_with_2_and_touches_nothing() {
    let source = folder(&mixed(DType::F32), None);
    let source = source.path().to_str().unwrap();
    let work = Folder::new();
    let out = work.path().join("out");
    let out = out.to_str().unwrap();
    for args in [
        &[][..],
        &["frobnicate"],
        &["inspect"],
        &["inspect", source, "--frobnicate"],
        &["inspect", source, "--json", "--csv"],
        &["inspect", source, "--threads", "0"],
        &["inspect", source, "--threads", "many"],
        &["plan", source],
        &["plan", source, "--preset", "int4", "--recipe", "r.toml"],
        &["compress", source, "--preset", "int4"],
        &["compress", source, "-o", out],
        &["compress", source, "-o", out, "--preset", "int4", "--group-size", "0"],
        &["compress", source, "-o", out, "--preset", "int4", "--group-size", "-1"],
        &["compress", source, "-o", out, "--preset", "int4", "--format", "gguf"],
        &["compress", source, "-o", out, "--preset", "fp16", "--overflow", "wrap"],
        &["compress", source, "-o", out, "--recipe", "r.toml", "--group-size", "64"],
        &["compress", source, "-o", out, "--recipe", "r.toml", "--overflow", "clamp"],
        &["compress", source, "-o", "", "--preset", "int8"],
        // a value that begins with a dash needs `=`
        &["compress", source, "-o", out, "--preset", "-5%"],
        &["eval", source],
        &["eval", source, "--task", "classify"],
        &["eval", source, "--task", "classify", "--images", "i.gz"],
        &["compare", source],
        &["compare", source, source, "--images", "i.gz", "--labels", "l.gz"],
        &["compare", source, source, "--volume", "1e9"],
        &["compare", source, source, "--price-per-hour", "-1"],
        &["compare", source, source, "--keep", "101%"],
        &["verify", source],
        &["verify", source, source, "--max-relative-error=-1"],
        &["verify", source, source, "--max-relative-error", "NaN"],
    ] {
        let ran = tersor(args);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{args:?}: {ran:?}");
        assert_contains(&ran.stderr, &["--help"]);
        assert!(!ran.stderr.contains("panicked"), "{ran:?}");
    }
    assert_eq!(names(work.path()), [""; 0]);
}

/// Zeros that are stored like other values are told from a fault by the report in the folder, and by nothing else.
#[test]
fn verify_knows_what_was_pruned() {
    let source = folder(&mixed(DType::F32), None);
    let recipe = source.put(
        "r.toml",
        "[[step]]\nprune = { method = \"magnitude\", sparsity = 0.6, layout = \"dense\" }\nnames = [\"*.fc1\"]",
    );
    let (_work, output, report) = compressed(source.path(), &["--recipe", recipe.to_str().unwrap()]);
    assert_eq!(report["layers"].as_array().unwrap().len(), 1);
    assert_eq!(report["layers"][0]["pruned"], true);
    let verify = || tersor(args!["verify", source.path(), output, "--csv"]);
    verify().quietly();
    // a kept value that is another one: the largest, so that it was surely kept
    let path = output.join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let tensor = parsed.tensor("layers.0.fc1.weight").unwrap();
    let start = tensor.data().as_ptr() as usize - whole.as_ptr() as usize;
    let values = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    let (largest, _) = values.enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).unwrap();
    let mut bytes = whole.clone();
    bytes[start + 4 * largest + 3] ^= 0x80;
    fs::write(&path, bytes).unwrap();
    let ran = verify();
    assert_eq!(ran.code, Some(3));
    assert_contains(&ran.stdout, &["is beyond"]);
    fs::write(&path, whole).unwrap();
    verify().quietly();
    fs::remove_file(output.join("tersor.json")).unwrap();
    assert_eq!(verify().code, Some(3));
}

/// `tersor inspect … | head -1`, and the same for everything that goes to stderr.
#[test]
fn a_closed_pipe_is_no_panic() {
    // more than any pipe holds
    let tensors: Vec<_> = (0..3000).map(|i| weight(&format!("layer.{i}.bias"), DType::F32, &[1])).collect();
    let folder = Folder::new();
    let source = folder.put("many.safetensors", safetensors(&tensors, &[].into()));
    for style in ["--json", "--csv", "--markdown", "--quiet"] {
        let mut child = Command::new(BINARY)
            .args(args!["inspect", source, style])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{style}");
    }
    // no reader of stderr, and an error or a usage message to write
    for (code, command) in [(1, &["inspect", "/nonexistent"][..]), (2, &["inspect"])] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status =
            Command::new(BINARY).args(command).stderr(writer).stdout(Stdio::null()).status().unwrap();
        assert_eq!(status.code(), Some(code), "{command:?}");
    }
    // differences are differences even when nobody reads about them
    let other = folder.put("other.safetensors", safetensors(&tensors[..2999], &[].into()));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = Command::new(BINARY).args(args!["verify", source, other]).stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(3));
}

/// Results that cannot be printed are an error.
#[cfg(target_os = "linux")]
#[test]
fn a_full_stdout_is_an_error() {
    let source = folder(&mixed(DType::F32), None);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Command::new(BINARY).args(args!["inspect", source.path()]).stdout(full).output().unwrap();
    let line = Ran::of(output).error(1);
    assert_contains(&line, &["standard output", "No space left"]);
}
