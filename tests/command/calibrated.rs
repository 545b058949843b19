//! `compress` with calibration.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::args;
use crate::common::Folder;
use crate::run::{BINARY, assert_contains, kill_and_go_on, tersor};
use crate::tasks::{network, words};

/// A tiny decoder and a text for it.
fn scene() -> (Folder, PathBuf) {
    let model = network("llama", 64);
    let text = words((0..6000u32).map(|i| (i * i * 7 + i * 13 + 5) % 64));
    let text = model.put("calibration.txt", text);
    (model, text)
}

fn bytes(folder: &Path) -> Vec<Vec<u8>> {
    ["model.safetensors", "config.json", "tersor.json"]
        .map(|file| fs::read(folder.join(file)).unwrap())
        .into()
}

#[test]
fn killed_runs_go_on_and_end_with_the_same_bytes() {
    let (model, text) = scene();
    let folder = Folder::new();
    let command = |output: &Path| {
        let mut command = Command::new(BINARY);
        command.args(args![
            "compress",
            model.path(),
            "--preset",
            "int4",
            "--group-size",
            "8",
            "--method",
            "gptq-act-order",
            "--transform",
            "rotate",
            "--reconstruct",
            "2",
            "--calibration",
            text,
            "--samples",
            "100",
            "--context",
            "60",
            "-o",
            output,
            "--quiet"
        ]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let whole = folder.path().join("whole");
    assert!(command(&whole).status().unwrap().success());
    let output = folder.path().join("out");
    // whichever block is on the disk when the process is killed
    let moments = [
        ("run.json", 0),
        ("run.json", 5),
        ("block-00002.json", 0),
        ("block-00000.json", 0),
        ("block-00000.json", 3),
    ];
    kill_and_go_on(&|| command(&output), &output, &moments);
    assert!(bytes(&output) == bytes(&whole));
}

#[test]
fn the_report_puts_the_method_beside_plain_rounding() {
    let (model, text) = scene();
    let folder = Folder::new();
    let output = folder.path().join("out");
    let base = args![
        "compress",
        model.path(),
        "--preset",
        "int3",
        "--group-size",
        "8",
        "--method",
        "gptq",
        "--calibration",
        text,
        "--context",
        "60",
        "-o",
        output
    ];
    let ran = tersor(base.into_iter().chain(args!["--markdown"]));
    assert_contains(&ran.stdout, &["output error", "plain", "damping", "| 0.01 |"]);
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(output.join("tersor.json")).unwrap()).unwrap();
    let outcome = &manifest["layers"][0]["outcomes"][0];
    assert!(outcome["method_error"].as_f64() < outcome["plain_error"].as_f64(), "{outcome}");
    assert_eq!(outcome["tokens"], 100 * 60);
}

#[test]
fn pruning_is_chosen_on_the_command_line() {
    let (model, text) = scene();
    let folder = Folder::new();
    let run = |output: &str, recipe: &[OsString]| {
        let output = folder.path().join(output);
        tersor(args!["compress", model.path(), "-o", output, "--csv"].iter().chain(recipe))
    };
    let calibration = args!["--calibration", text, "--context", "60"];
    let wanda = args!["--preset", "50%", "--pruning", "wanda", "--allocation", "erk"];
    let ran = run("wanda", &[&wanda[..], &calibration].concat());
    assert_contains(&ran.stdout, &["output error,plain,damping", "bitmask"]);
    let joint =
        args!["--preset", "2:4+int4", "--group-size", "8", "--pruning", "sparsegpt", "--method", "gptq"];
    run("joint", &[&joint[..], &calibration].concat());
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.path().join("joint/tersor.json")).unwrap()).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        assert_eq!(layer["methods"][0], "SparseGPT 2:4 jointly with GPTQ to int4, group 8");
        assert_eq!(layer["outcomes"][0]["plain"], "magnitude_and_rounding");
    }
    // what is planned on samples is what is written
    let sensitivity = args!["--preset", "60%", "--pruning", "wanda", "--allocation", "sensitivity"];
    let sensitivity = [&sensitivity[..], &calibration].concat();
    let plan = tersor(args!["plan", model.path(), "--json"].iter().chain(&sensitivity));
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
    run("sensitivity", &sensitivity);
    let written = fs::metadata(folder.path().join("sensitivity/model.safetensors")).unwrap().len();
    assert_eq!(plan["bytes_after"], written);
    let shares = |key: &str| -> Vec<u64> {
        let tensors = plan["tensors"].as_array().unwrap().iter();
        tensors.filter(|t| t["compressed"] == true).map(|t| t[key].as_u64().unwrap()).collect()
    };
    let ratios: Vec<f64> =
        shares("bytes_after").iter().zip(shares("bytes_before")).map(|(a, b)| *a as f64 / b as f64).collect();
    assert!(ratios.iter().any(|r| (r - ratios[0]).abs() > 0.01), "{ratios:?}");
    let pruned = plan["tensors"].as_array().unwrap().iter().find(|t| t["compressed"] == true).unwrap();
    let smallest = &pruned["layouts"][0];
    assert!(pruned["to"].as_str().unwrap().starts_with(smallest["layout"].as_str().unwrap()), "{pruned}");
    // beside which the file has the shape, two numbers
    assert_eq!(smallest["bytes"].as_u64().unwrap() + 16, pruned["bytes_after"].as_u64().unwrap(), "{pruned}");
    for (recipe, parts) in [
        (
            args!["--preset", "50%", "--pruning", "wanda"].to_vec(),
            &["Wanda 50%", "give calibration samples"][..],
        ),
        (args!["--preset", "int8", "--pruning", "wanda"].to_vec(), &["needs a preset that prunes"]),
        (args!["--preset", "2:4", "--allocation", "erk"].to_vec(), &["nothing to allocate"]),
        (args!["--preset", "50%-global", "--allocation", "erk"].to_vec(), &["globally"]),
        (
            [&sensitivity[..], &args!["--transform", "rotate"]].concat(),
            &["transform the model in a run before"],
        ),
        (args!["--preset", "50%", "--pruning", "wonda"].to_vec(), &["did you mean `wanda`?"]),
    ] {
        assert_contains(&run("refused", &recipe).stderr, parts);
    }
}

#[test]
fn kept_statistics_give_the_bytes_of_a_run() {
    let (model, text) = scene();
    let folder = Folder::new();
    let statistics = folder.path().join("statistics");
    let run = |method: &str, name: &str, extra: Vec<std::ffi::OsString>| {
        let output = folder.path().join(name);
        let all = args![
            "compress",
            model.path(),
            "--preset",
            "int4",
            "--group-size",
            "8",
            "--method",
            method,
            "--calibration",
            text,
            "--context",
            "60",
            "--inputs",
            "dense",
            "-o",
            output,
            "--quiet"
        ];
        let ran = tersor(all.into_iter().chain(extra));
        (ran, output)
    };
    let kept = || args!["--statistics", statistics].to_vec();
    run("autoround", "first", kept());
    assert!(statistics.join("block-00001.safetensors").exists());
    let (_, from_kept) = run("gptq", "kept", kept());
    let (_, fresh) = run("gptq", "fresh", Vec::new());
    assert!(bytes(&from_kept) == bytes(&fresh));
    // those of other samples are refused
    let (ran, _) =
        run("gptq", "other", kept().into_iter().chain(args!["--samples", "7"]).collect::<Vec<_>>());
    assert_contains(&ran.error(1), &["statistics", "other samples"]);
}

/// What flags say of a preset, a recipe says with keys.
#[test]
fn flags_are_what_recipes_say() {
    let (model, text) = scene();
    let folder = Folder::new();
    let step = "classes = [\"linear\"]\nquantize = { bits = 4, group_size = 8, method = \"gptq\", observer = \"mse\", shrinkage = 0.3 }";
    let steps = format!("[[step]]\nnames = [\"*_proj.weight\"]\n{step}\n");
    let recipe = folder.put("recipe.toml", &steps);
    let learned = folder.put("learned.toml", format!("reconstruct = 3\n{steps}"));
    let run = |name: &str, options: &[std::ffi::OsString]| {
        let output = folder.path().join(name);
        let common =
            args!["--calibration", text, "--samples", "100", "--context", "60", "-o", output, "--quiet"];
        let mut command = Command::new(BINARY);
        command.arg("compress").arg(model.path()).args(options).args(common).stdout(Stdio::null());
        assert!(command.status().unwrap().success());
        fs::read(output.join("model.safetensors")).unwrap()
    };
    let preset = args!["--preset", "int4", "--group-size", "8", "--method", "gptq"];
    let flags = [&preset[..], &args!["--observer", "mse", "--shrinkage", "0.3"]].concat();
    let by_recipe = run("recipe", &args!["--recipe", recipe]);
    assert!(run("flags", &flags) == by_recipe);
    assert!(run("neither", &preset) != by_recipe);
    let learned = run("learned-by-recipe", &args!["--recipe", learned]);
    assert!(run("learned", &[&flags[..], &args!["--reconstruct", "3"]].concat()) == learned);
    assert!(learned != by_recipe);
    assert!(run("observer", &[&preset[..], &args!["--observer", "mse"]].concat()) != by_recipe);
}

#[test]
fn wrong_options_are_refused_in_one_line() {
    let (model, text) = scene();
    let folder = Folder::new();
    let output = folder.path().join("out");
    let empty = folder.put("empty.txt", "");
    let short = folder.put("short.txt", "1 2 3");
    let lines = folder.put("lines.jsonl", "{\"text\": \"1 2 3\"}\n{\"words\": 4}\n");
    let broken = folder.put("broken.jsonl", "{\"text\": \n");
    for (options, parts) in [
        (args!["--method", "gptq"].to_vec(), &["GPTQ", "give calibration samples"][..]),
        (args!["--method", "gqtp", "--calibration", text].to_vec(), &["gqtp", "valid: nearest, gptq"]),
        (args!["--observer", "mze"].to_vec(), &["observer `mze`", "did you mean `mse`"]),
        (args!["--observer", "percentile=5o"].to_vec(), &["percentile is NaN", "above 50"]),
        (args!["--observer", "mse", "--method", "hqq"].to_vec(), &["HQQ finds its ranges itself"]),
        (args!["--shrinkage", "0.2"].to_vec(), &["--shrinkage", "`--method gptq`", "sparsegpt"]),
        (args!["--shrinkage", "1", "--method", "gptq"].to_vec(), &["--shrinkage 1", "below 1"]),
        (args!["--reconstruct", "3"].to_vec(), &["block reconstruction", "give calibration samples"]),
        (
            args!["--reconstruct", "3", "--calibration", text, "--inputs", "dense"].to_vec(),
            &["leave out dense inputs"],
        ),
        (args!["--transform", "rotat"].to_vec(), &["rotat", "did you mean `rotate`"]),
        (args!["--transform", "smooth=2", "--calibration", text].to_vec(), &["from 0 to 1"]),
        (args!["--method", "gptq", "--calibration", empty].to_vec(), &["empty.txt", "holds no text"]),
        (
            args!["--method", "gptq", "--calibration", short].to_vec(),
            &["short.txt", "fewer than the 60 tokens"],
        ),
        (
            args!["--method", "gptq", "--calibration", lines].to_vec(),
            &["lines.jsonl", "line 2", "neither `text`"],
        ),
        (args!["--method", "gptq", "--calibration", broken].to_vec(), &["broken.jsonl", "line 1"]),
        (
            args!["--method", "gptq", "--calibration", folder.path().join("nowhere")].to_vec(),
            &["nowhere", "cannot read"],
        ),
        (
            args!["--method", "gptq", "--calibration", text, "--statistics", folder.path()].to_vec(),
            &["--inputs dense"],
        ),
        (
            args!["--method", "gptq", "--calibration", text, "--samples", "1", "--context", "8", "--strict"]
                .to_vec(),
            &["say little", "strict"],
        ),
    ] {
        let base = args!["compress", model.path(), "--preset", "int4", "--group-size", "8", "-o", output];
        let has = |name: &str| options.iter().any(|option| option == name);
        let context = if has("--calibration") && !has("--context") {
            args!["--context", "60"].to_vec()
        } else {
            Vec::new()
        };
        let ran = tersor(base.into_iter().chain(options.clone()).chain(context));
        assert_contains(&ran.error(1), parts);
        assert!(!output.exists());
        assert!(!folder.path().join("out.unfinished").exists(), "{options:?}");
    }
}
