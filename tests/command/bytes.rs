//! What `plan` announces is what `compress` writes, and what is written reads again.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;
use tersor::DType;

use crate::args;
use crate::common::{Folder, safetensors};
use crate::models::{architectures, decoder, folder, mixed, sharded};
use crate::run::{Snapshot, compressed, names, tersor, weight_bytes};

/// Presets, with a group size or none.
const PRESETS: [(&str, Option<&str>); 30] = [
    ("fp16", None),
    ("bf16", None),
    ("fp8", None),
    ("fp8", Some("64")),
    ("int8", None),
    ("int8", Some("32")),
    ("int8-asym", None),
    ("int7", None),
    ("int6", Some("16")),
    ("int5", Some("64")),
    ("int4", None),
    ("int4", Some("64")),
    ("int4", Some("32")),
    ("int4", Some("1")),
    ("int3-asym", None),
    ("int3-asym", Some("32")),
    ("int2", Some("16")),
    ("2:4", None),
    ("1:4", None),
    ("4:8", None),
    ("3:7", None),
    ("16:16", None),
    ("0%", None),
    ("50%", None),
    ("99.9%", None),
    ("90%-global", None),
    ("2:4+int8", None),
    ("1:4+fp8", None),
    ("50%+int4", Some("64")),
    ("90%-global+int3-asym", None),
];

/// Recipes with what presets do not offer.
const RECIPES: [&str; 15] = [
    "[[step]]\nprune = { method = \"rows\", sparsity = 0.25 }",
    "[[step]]\nprune = { method = \"columns\", sparsity = 0.75 }\n[[step]]\nquantize = { bits = 4, group_size = 32 }",
    "[[step]]\nprune = { method = \"magnitude\", sparsity = 0.6, layout = \"rows\" }",
    "[[step]]\nprune = { method = \"magnitude\", sparsity = 0.6, layout = \"dense\" }\n[[step]]\nquantize = { bits = 8 }",
    "[[step]]\nprune = { method = \"magnitude\", sparsity = 0.05 }\n[[step]]\nquantize = { bits = 3, symmetric = false, group_size = 16 }",
    "[[step]]\nprune = { method = \"rows\", sparsity = 0.5, layout = \"dense\" }\n[[step]]\nquantize = { type = \"bf16\" }",
    "[[step]]\nprune = { method = \"magnitude\", sparsity = 0.6, layout = \"dense\" }",
    "[[step]]\nprune = { method = \"magnitude\", sparsity = 0.1, layout = \"bitmask\" }\n[[step]]\nquantize = { bits = 3 }",
    "[[step]]\nprune = { method = \"n:m\", pattern = \"2:4\", layout = \"n:m\" }\n[[step]]\nquantize = { type = \"f16\" }",
    "[[step]]\nprune = { method = \"n:m\", pattern = \"1:16\", layout = \"rows\" }\n[[step]]\nquantize = { bits = 2, symmetric = false }",
    "[[step]]\nquantize = { bits = 8, strategy = \"tensor\", symmetric = false }",
    "[[step]]\nquantize = { bits = 5, block = [16, 64], symmetric = false, observer = \"mse\" }",
    "[[step]]\nquantize = { type = \"f8_e4m3\", block = [128, 128], observer = \"abs_max\" }",
    "[[step]]\nclasses = [\"embedding\", \"norm\", \"bias\", \"other\", \"conv\", \"linear\"]\nquantize = { bits = 8, observer = \"entropy\" }",
    "[[step]]\nclasses = [\"linear\"]\nquantize = { bits = 6, percentile = 99.5 }\n[[step]]\nclasses = [\"embedding\"]\nquantize = { type = \"bf16\" }",
];

/// Plans, compresses, and holds what was written against the plan, the source and another reader.
fn check(source: &Path, options: &[&str]) {
    let at = format!("{} {options:?}", source.display());
    let mut plan = args!["plan", source, "--json"].to_vec();
    plan.extend(options.iter().map(Into::into));
    let plan = tersor(plan).json();
    let (_work, output, report) = compressed(source, options);

    // the bytes
    let announced = plan["bytes_after"].as_u64().unwrap();
    assert_eq!(weight_bytes(&output), announced, "{at}");
    assert_eq!(report["bytes_after"].as_u64(), Some(announced), "{at}");
    for file in plan["files"].as_array().unwrap() {
        let path = output.join(file["name"].as_str().unwrap());
        let bytes = fs::read(&path).unwrap();
        assert_eq!(Some(bytes.len() as u64), file["bytes"].as_u64(), "{at}");
        // the format's own reader accepts it
        let parsed = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{at}: {e}"));
        assert!(!parsed.is_empty(), "{at}");
    }
    let files = names(&output).iter().filter(|n| n.ends_with(".safetensors")).count();
    assert_eq!(files, plan["files"].as_array().unwrap().len(), "{at}");

    // the forms, tensor by tensor
    let inspected = tersor(args!["inspect", output, "--json"]).json();
    let rows = |value: &Value, form: &str| -> Vec<(Value, String, Value)> {
        let tensors = value["tensors"].as_array().unwrap();
        let mut rows: Vec<_> = tensors
            .iter()
            .map(|t| (t["name"].clone(), t[form].to_string().to_lowercase(), t["shape"].clone()))
            .collect();
        rows.sort_by_key(|(name, ..)| name.to_string());
        rows
    };
    assert_eq!(rows(&inspected, "form"), rows(&plan, "to"), "{at}");
    assert_eq!(inspected["file_bytes"], plan["bytes_after"], "{at}");
    let compressed = plan["tensors"].as_array().unwrap().iter().filter(|t| t["compressed"] == true);
    let compressed: Vec<_> = compressed.map(|t| (&t["name"], &t["to"], &t["bytes_after"])).collect();
    let layers = report["layers"].as_array().unwrap().iter();
    let layers: Vec<_> = layers.map(|l| (&l["name"], &l["after"], &l["bytes_after"])).collect();
    assert_eq!(layers, compressed, "{at}");

    // the values
    let verified = tersor(args!["verify", source, output, "--json"]);
    assert_eq!(verified.code, Some(0), "{at}: {verified:?}");
}

fn check_all(source: &Path, presets: impl Iterator<Item = (&'static str, Option<&'static str>)>) {
    for (preset, group_size) in presets {
        match group_size {
            Some(size) => check(source, &["--preset", preset, "--group-size", size]),
            None => check(source, &["--preset", preset]),
        }
    }
}

#[test]
fn presets_on_a_file_of_f32() {
    let folder = Folder::new();
    let source = folder.put("anything.safetensors", safetensors(&mixed(DType::F32), &[].into()));
    check_all(&source, PRESETS.into_iter());
}

#[test]
fn presets_on_shards_of_f16() {
    let source = sharded(&mixed(DType::F16), None);
    check_all(source.path(), PRESETS.into_iter());
}

#[test]
fn presets_on_a_decoder_of_bf16_in_compressed_tensors() {
    let source = sharded(&decoder(DType::BF16), Some(&architectures()));
    check_all(source.path(), PRESETS.into_iter());
}

#[test]
fn recipes_on_everything() {
    let recipes = Folder::new();
    let sources = [
        folder(&mixed(DType::F32), None),
        folder(&mixed(DType::BF16), None),
        sharded(&mixed(DType::F16), None),
    ];
    for (i, recipe) in RECIPES.into_iter().enumerate() {
        let path = recipes.put(&format!("{i}.toml"), recipe);
        let source = &sources[i % sources.len()];
        check(source.path(), &["--recipe", path.to_str().unwrap()]);
    }
}

#[test]
fn every_float_is_converted_but_nothing_else() {
    let source = folder(&mixed(DType::F32), None);
    let (_work, output, _) = compressed(source.path(), &["--preset", "bf16"]);
    let inspected = tersor(args!["inspect", output, "--json"]).json();
    for tensor in inspected["tensors"].as_array().unwrap() {
        let expected = match tensor["name"].as_str().unwrap() {
            "steps" => "I64",
            "flags" => "BOOL",
            // nothing to convert
            "empty.weight" => "F32",
            _ => "bf16",
        };
        let form = tensor["form"].as_str().unwrap();
        assert_eq!(form.to_lowercase(), expected.to_lowercase(), "{tensor}");
    }
    let bytes = fs::read(output.join("model.safetensors")).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(parsed.tensor("steps").unwrap().data(), 1_234_567i64.to_le_bytes());
    assert_eq!(parsed.tensor("empty.weight").unwrap().shape(), [0, 16]);
    assert!(parsed.tensor("temperature").unwrap().shape().is_empty());
}

/// The same command gives the same files on any number of threads, and in either order of the presets.
#[test]
fn outputs_are_the_same_to_the_byte() {
    let source = crate::models::fixtures().join("fashion-lenet");
    let of = |options: &[&str]| {
        let (work, output, _) = compressed(&source, options);
        let snapshot = Snapshot::of(&output);
        let files: Vec<_> =
            snapshot.files(&output).into_iter().map(|(name, bytes)| (name, bytes.to_vec())).collect();
        drop(work);
        assert_eq!(
            files.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(),
            ["config.json", "model.safetensors", "tersor.json"]
        );
        files
    };
    for preset in ["70%-global+int4-asym", "2:4+int8", "50%+fp8", "int3"] {
        let one = of(&["--preset", preset, "--threads", "1"]);
        let two = of(&["--preset", preset, "--threads", "2", "--seed", "7"]);
        assert!(one == two, "{preset}");
    }
    assert!(of(&["--preset", "2:4+int8"]) == of(&["--preset", "int8+2:4"]));
    assert!(of(&["--preset", "int8"]) != of(&["--preset", "int8-asym"]));
}

#[test]
fn a_compressed_folder_compresses_again() {
    let source = folder(&decoder(DType::F32), Some(&architectures()));
    let (_work, int8, _) = compressed(source.path(), &["--preset", "int8"]);
    let before = Snapshot::of(&int8);
    for (preset, form) in [
        ("int4", "int4, group 128"),
        ("2:4", "2:4 × f32"),
        ("fp16", "f16"),
        ("50%+int8", "bitmask × int8, channel"),
    ] {
        check(&int8, &["--preset", preset]);
        let (_work, again, report) = compressed(&int8, &["--preset", preset]);
        let layers = report["layers"].as_array().unwrap();
        let layer = layers.iter().find(|l| l["name"] == "model.layers.0.q_proj.weight").unwrap();
        assert_eq!(layer["before"], "int8, channel", "{layer}");
        assert_eq!(layer["after"], form, "{layer}");
        let config: Value = serde_json::from_slice(&fs::read(again.join("config.json")).unwrap()).unwrap();
        let quantized = config.get("quantization_config").is_some();
        assert_eq!(quantized, preset == "int4", "{preset}: {config}");
    }
    assert_eq!(Snapshot::of(&int8), before);
    // one that stays as it is keeps its codes
    let (_work, again, _) = compressed(&int8, &["--preset", "int4", "--ignore", "*.down_proj"]);
    let parse = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
    let (old, new) = (parse(&int8), parse(&again));
    let (old, new) = (SafeTensors::deserialize(&old).unwrap(), SafeTensors::deserialize(&new).unwrap());
    for part in ["weight_packed", "weight_scale", "weight_shape"] {
        let name = format!("model.layers.0.down_proj.{part}");
        assert_eq!(old.tensor(&name).unwrap(), new.tensor(&name).unwrap());
    }
}
