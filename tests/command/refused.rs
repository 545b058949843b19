//! Sources that cannot be compressed: said in one line, and nothing is left.

use std::fs;

use serde_json::json;
use tersor::DType;

use crate::args;
use crate::common::{Folder, f32s, i64s, info, raw, safetensors, stored};
use crate::models::{floats, folder, mixed, sharded, values, weight};
use crate::run::{Snapshot, assert_contains, compressed, refuses, tersor};

#[test]
fn files_that_are_no_safetensors() {
    let whole = safetensors(&mixed(DType::F32), &[].into());
    let header = whole.iter().position(|b| *b == b'{').unwrap();
    for (bytes, parts) in [
        (whole[..whole.len() - 1].to_vec(), &["truncated or corrupt", "`temperature`"][..]),
        (whole[..header + 100].to_vec(), &["the header claims", "only 100 follow", "truncated"]),
        (whole[..5].to_vec(), &["5 bytes are too few"]),
        (Vec::new(), &["0 bytes are too few"]),
        ([&(1u64 << 63).to_le_bytes()[..], b"{}"].concat(), &["9223372036854775808 bytes", "100000000"]),
        (vec![0; 4096], &["does not begin with `{`", "unfinished"]),
        (
            raw(format!("{{\"x.weight\":{}}}", info("F32", "[4,4]", 0, 60)), &[0; 60]),
            &["`x.weight`", "64", "60"],
        ),
        (b"PK\x03\x04 this is a zip file".to_vec(), &["no safetensors file"]),
    ] {
        let folder = Folder::new();
        let path = folder.put("model.safetensors", bytes);
        let parts: Vec<&str> = parts.iter().copied().chain([path.to_str().unwrap()]).collect();
        refuses(folder.path(), &["--preset", "int8"], &parts);
        let line = refuses(&path, &["--preset", "int8"], &parts);
        for command in [args!["inspect", path].as_slice(), &args!["plan", path, "--preset", "int8"]] {
            assert_eq!(tersor(command).error(1), line);
        }
        assert_eq!(tersor(args!["verify", path, path]).error(1), line);
        assert_eq!(tersor(args!["compare", path, path]).error(1), line);
    }
}

#[test]
fn sources_that_are_not_there() {
    let folder = Folder::new();
    let missing = folder.path().join("missing");
    for command in [
        args!["inspect", missing, "--json"].to_vec(),
        args!["plan", missing, "--preset", "int8"].to_vec(),
        args!["verify", missing, missing].to_vec(),
        args!["compress", missing, "--preset", "int8", "-o", folder.path().join("out")].to_vec(),
    ] {
        assert_contains(
            &tersor(command).error(1),
            &[missing.to_str().unwrap(), "cannot open", "No such file"],
        );
    }
    refuses(folder.path(), &["--preset", "int8"], &[folder.path().to_str().unwrap(), "model.safetensors"]);
    folder.put("a.safetensors", safetensors(&mixed(DType::F32), &[].into()));
    folder.put("b.safetensors", safetensors(&mixed(DType::F32), &[].into()));
    refuses(folder.path(), &["--preset", "int8"], &["2 .safetensors files", "name one of the files"]);
}

#[test]
fn a_shard_that_is_not_there() {
    let source = sharded(&mixed(DType::F32), None);
    fs::remove_file(source.path().join("model-00002-of-00002.safetensors")).unwrap();
    let index = source.path().join("model.safetensors.index.json");
    let parts = [index.to_str().unwrap(), "`model-00002-of-00002.safetensors`", "not a file of this folder"];
    refuses(source.path(), &["--preset", "int8"], &parts);
}

#[test]
fn a_config_that_is_no_json() {
    let source = folder(&mixed(DType::F32), None);
    for text in ["{", "[]", ""] {
        let path = source.put("config.json", text);
        refuses(source.path(), &["--preset", "int8"], &[path.to_str().unwrap(), "JSON"]);
    }
}

#[test]
fn weights_that_are_not_finite() {
    for (dtype, bad) in [
        (DType::F32, f32::NAN),
        (DType::F32, f32::INFINITY),
        (DType::F16, f32::NEG_INFINITY),
        (DType::BF16, f32::NAN),
    ] {
        let mut broken = values(8 * 16, 5);
        broken[77] = bad;
        broken[99] = bad;
        let tensors = [
            weight("good.weight", dtype, &[8, 16]),
            stored("bad.weight", dtype, &[8, 16], floats(dtype, &broken)),
        ];
        let source = folder(&tensors, None);
        let path = source.path().to_str().unwrap();
        let text = if bad.is_nan() { "NaN" } else { "inf" };
        for preset in ["int8", "int4-asym", "fp8", "2:4", "50%", "50%-global", "90%-global+int3", "2:4+int8"]
        {
            let line =
                refuses(source.path(), &["--preset", preset], &[path, "`bad.weight`", text, "index 77"]);
            assert!(!line.contains("good.weight"), "{line}");
            assert_eq!(line.matches("index 77").count(), 1, "said twice: {line}");
        }
        for step in
            ["prune = { method = \"rows\", sparsity = 0.5 }", "quantize = { bits = 4, observer = \"mse\" }"]
        {
            let recipes = Folder::new();
            let recipe = recipes.put("r.toml", format!("[[step]]\n{step}"));
            let options = ["--recipe", recipe.to_str().unwrap()];
            refuses(source.path(), &options, &[path, "`bad.weight`", text, "index 77"]);
        }
        // what is copied is copied, whatever it holds
        let (_work, output, _) = compressed(source.path(), &["--preset", "int8", "--ignore", "bad"]);
        tersor(args!["verify", source.path(), output]).quietly();
    }
    // converting is refused too
    let tensors = [stored("bad.bias", DType::F32, &[3], f32s(&[1.0, 2.0, f32::NAN]))];
    refuses(folder(&tensors, None).path(), &["--preset", "fp16"], &["`bad.bias`", "NaN", "index 2"]);
}

#[test]
fn sources_without_anything_to_compress() {
    let source = Folder::new();
    let empty = source.put("empty.safetensors", raw("{}", &[]));
    let inspected = tersor(args!["inspect", empty, "--json"]).json();
    assert_eq!(inspected["tensors"], json!([]));
    assert_eq!(inspected["file_bytes"], 10);
    tersor(args!["inspect", empty]).quietly();
    for preset in ["int8", "fp16", "50%-global"] {
        let line = refuses(&empty, &["--preset", preset], &[empty.to_str().unwrap(), "matches no tensor"]);
        assert!(line.ends_with("(there are none)"), "{line}");
    }
    let integers =
        [stored("ids", DType::I64, &[2, 2], i64s(&[1, 2, 3, 4])), stored("byte", DType::U8, &[1], [7])];
    let integers = folder(&integers, None);
    for preset in ["int8", "fp16"] {
        let parts = [integers.path().to_str().unwrap(), "step 1", "matches no tensor", "2 other"];
        refuses(integers.path(), &["--preset", preset], &parts);
    }
    let nothing = folder(&[stored("empty.weight", DType::F32, &[0, 16], [])], None);
    refuses(nothing.path(), &["--preset", "int8"], &["matches no tensor", "1 linear"]);
}

/// Names that would break a line, a table or a file of comma-separated values.
#[test]
fn strange_names_break_nothing() {
    let names = [
        "a\nb.weight",
        "tab\there.weight",
        "ünïcode|pipe.weight",
        "quote\",comma.weight",
        ".weight",
        "\u{1b}[31m.weight",
    ];
    let tensors: Vec<_> = names.iter().map(|n| weight(n, DType::F32, &[4, 8])).collect();
    let source = folder(&tensors, None);
    let (_work, output, report) = compressed(source.path(), &["--preset", "int8"]);
    let reported: Vec<_> =
        report["layers"].as_array().unwrap().iter().map(|l| l["name"].as_str().unwrap()).collect();
    assert_eq!(reported, names);
    tersor(args!["verify", source.path(), output]).quietly();
    let markdown = tersor(args!["inspect", output, "--markdown"]).quietly();
    assert_eq!(markdown.lines().count(), 2 + names.len());
    let table = tersor(args!["inspect", output, "--csv"]).quietly();
    assert_eq!(csv::Reader::from_reader(table.as_bytes()).records().count(), names.len());
    // an error about one of them is one line
    let mut tensors = tensors;
    tensors[0].bytes = f32s(&[f32::NAN; 32]);
    let source = folder(&tensors, None);
    let before = Snapshot::of(source.path());
    refuses(source.path(), &["--preset", "int8"], &["b.weight", "NaN at index 0"]);
    assert_eq!(Snapshot::of(source.path()), before);
}
