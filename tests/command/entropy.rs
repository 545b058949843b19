//! `--entropy`, from the plan to a score, and coded files that were damaged.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::args;
use crate::common::Folder;
use crate::common::damage::Random;
use crate::models::fixtures;
use crate::networks::first_images;
use crate::run::{assert_contains, compressed, tersor};

const OPTIONS: [&str; 2] = ["--preset", "int4"];

fn source() -> PathBuf {
    fixtures().join("fashion-mlp")
}

/// A network, entropy coded.
fn coded() -> (Folder, PathBuf, Value) {
    compressed(&source(), &[&OPTIONS[..], &["--entropy"]].concat())
}

fn weights(folder: &Path) -> PathBuf {
    folder.join("model.safetensors")
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no number `{key}` in {value}"))
}

#[test]
fn plan_report_files_and_inspection_agree() {
    let plan = |style: &str| tersor(args!["plan", source(), "--preset", "int4", "--entropy", style]);
    let (_work, output, report) = coded();
    let (_work, plain, of_plain) = compressed(&source(), &OPTIONS);

    // a plan knows what the plain weights take: no more than that
    let planned = plan("--json").json();
    assert_eq!(planned["entropy_coded"], true);
    assert_eq!(number(&planned, "bytes_after"), number(&of_plain, "bytes_after"));
    assert_contains(&plan("--markdown").quietly(), &["bytes out, at most"]);
    assert_contains(
        &tersor(args!["plan", source(), "--preset", "int4", "--entropy"]).quietly(),
        &["at most"],
    );
    let bytes = fs::metadata(weights(&output)).unwrap().len();
    assert!(bytes < fs::metadata(weights(&plain)).unwrap().len() * 9 / 10);

    let inspected = tersor(args!["inspect", output, "--json"]).json();
    assert_eq!((number(&report, "bytes_after"), number(&inspected, "file_bytes")), (bytes, bytes));
    for layer in report["layers"].as_array().unwrap() {
        let find = |all: &Value| -> Value {
            all.as_array().unwrap().iter().find(|tensor| tensor["name"] == layer["name"]).unwrap().clone()
        };
        let (coded, before) = (&layer["entropy"], find(&of_plain["layers"]));
        assert_eq!(number(coded, "plain_bytes"), number(&before, "bytes_after"));
        assert_eq!(number(coded, "bytes"), number(layer, "bytes_after"));
        assert_eq!(find(&inspected["tensors"])["bytes"], layer["bytes_after"]);
        assert_contains(find(&inspected["tensors"])["form"].as_str().unwrap(), &["int4", "entropy coded"]);
        // what is lost was lost by rounding
        assert_eq!(layer["relative"], before["relative"]);
        // codes within the bound, plus what every file needs; bits are those of the bytes
        let elements: u64 = layer["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
        let (bits, bound) = (&coded["bits_per_weight"], &coded["bound_bits_per_weight"]);
        let (bits, bound) = (bits.as_f64().unwrap(), bound.as_f64().unwrap());
        assert!((bits - 8.0 * number(coded, "bytes") as f64 / elements as f64).abs() < 1e-9);
        assert!(bound > 1.0 && bound < bits && bits < bound * 1.02 + 500.0 / elements as f64, "{layer}");
    }
}

#[test]
fn the_bound_stands_beside_the_size() {
    let work = Folder::new();
    let output = work.path().join("out");
    let ran =
        tersor(args!["compress", source(), "-o", output, "--preset", "int4", "--entropy", "--markdown"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_contains(&ran.stdout, &["plain bytes", "bits/weight", "bound", "| coded |"]);
    let plain = tersor(args![
        "compress",
        source(),
        "-o",
        work.path().join("plain"),
        "--preset",
        "int4",
        "--markdown"
    ]);
    assert!(!plain.stdout.contains("bound"), "{}", plain.stdout);
}

#[test]
fn a_coded_network_is_verified_and_scores_as_the_plain_one() {
    let (_work, output, _) = coded();
    let (_work, plain, _) = compressed(&source(), &OPTIONS);
    let data = Folder::new();
    let [images, labels] = first_images(&data, 300);
    let score = |model: &Path| {
        tersor(args!["eval", model, "--task", "classify", "--images", images, "--labels", labels, "--json"])
            .json()["scores"]
            .clone()
    };
    assert_eq!(score(&output), score(&plain));
    assert_contains(
        &tersor(args!["verify", source(), output]).quietly(),
        &["all 6 tensors are as they should be"],
    );

    // what is there, coded afterwards, is the same file; the coded one written plainly is the plain one
    let (_work, again, _) = compressed(&plain, &["--entropy"]);
    assert!(fs::read(weights(&again)).unwrap() == fs::read(weights(&output)).unwrap());
}

#[test]
fn a_recipe_asks_for_it_too() {
    let folder = Folder::new();
    let recipe =
        folder.put("recipe.toml", "entropy = true\n[[step]]\nquantize = { bits = 4, group_size = 128 }\n");
    let (_work, output, _) = coded();
    let (_work, by_recipe, _) = compressed(&source(), &["--recipe", recipe.to_str().unwrap()]);
    assert!(fs::read(weights(&by_recipe)).unwrap() == fs::read(weights(&output)).unwrap());
    // a format that cannot hold it
    let work = Folder::new();
    let format = ["--preset", "int4", "--entropy", "--format", "compressed-tensors"];
    let line = tersor(
        [
            args!["compress", source(), "-o", work.path().join("out")].to_vec(),
            format.map(Into::into).to_vec(),
        ]
        .concat(),
    )
    .error(1);
    assert_contains(&line, &["compressed-tensors holds no entropy-coded weights", "`tersor`"]);
}

/// Every command that reads weights refuses the file, in one line that names it.
fn refused(folder: &Path) -> String {
    let data = Folder::new();
    let [images, labels] = first_images(&data, 2);
    let lines = [
        tersor(args!["eval", folder, "--task", "classify", "--images", images, "--labels", labels]).error(1),
        tersor(args!["verify", source(), folder]).error(1),
    ];
    for line in &lines {
        assert_contains(line, &["model.safetensors"]);
    }
    lines[0].clone()
}

#[test]
fn damaged_codes_are_named_errors() {
    let (_work, output, _) = coded();
    let path = weights(&output);
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;

    // cut off
    fs::write(&path, &whole[..whole.len() - 100]).unwrap();
    let line = tersor(args!["inspect", output]).error(1);
    assert_contains(&line, &["model.safetensors"]);
    refused(&output);

    // a coded tensor whose first bytes, which say how it was coded, are something else
    let text: Value = serde_json::from_slice(&whole[8..header]).unwrap();
    let start = header + text["fc1.weight_coded"]["data_offsets"][0].as_u64().unwrap() as usize;
    let mut spoiled = whole.clone();
    spoiled[start..start + 16].fill(0xff);
    fs::write(&path, &spoiled).unwrap();
    assert_contains(&refused(&output), &["fc1.weight"]);

    // random bytes: refused by name, or decoded to something; never a panic
    let mut random = Random(11);
    for _ in 0..12 {
        let mut spoiled = whole.clone();
        for _ in 0..8 {
            let at = start + random.below(109_000);
            spoiled[at] ^= 1 << random.below(8);
        }
        fs::write(&path, &spoiled).unwrap();
        let ran = tersor(args!["verify", source(), output]);
        match ran.code {
            // what is decoded lies beyond the bounds, or changed next to nothing
            Some(0 | 3) => {}
            _ => assert_contains(&ran.error(1), &["model.safetensors", "fc1.weight"]),
        }
    }
}
