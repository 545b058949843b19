//! What an output folder holds, where it may stand, and what is left when it cannot be written.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tersor::DType;

use crate::args;
use crate::common::{Folder, f32s, safetensors, stored};
use crate::models::{architectures, decoder, folder, mixed, sharded, weight};
use crate::run::{BINARY, Ran, Snapshot, assert_contains, compressed, names, refuses, tersor};

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

#[test]
fn what_belongs_to_the_model_is_carried_along() {
    let source = folder(&decoder(DType::F32), Some(&architectures()));
    let kept =
        ["tokenizer.json", "README.md", "1_Pooling/config.json", "merges.txt", "2_Dense/deep/er/x.json"];
    let left = [
        "1_Pooling/weights.bin",
        "2_Dense/model.safetensors",
        "consolidated.safetensors",
        "model.h5",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "pytorch_model.bin",
        "rng.pkl",
        "weights.npz",
    ];
    let useless = [".gitattributes", "pytorch_model.bin.index.json", "2_Dense/model.safetensors.index.json"];
    for name in kept.into_iter().chain(left).chain(useless) {
        fs::create_dir_all(source.path().join(name).parent().unwrap()).unwrap();
        source.put(name, format!("this is {name}"));
    }
    fs::create_dir_all(source.path().join(".cache/deep")).unwrap();
    source.put(".cache/deep/x.json", "{}");
    let before = Snapshot::of(source.path());
    let (_work, output, report) = compressed(source.path(), &["--preset", "int8"]);
    let snapshot = Snapshot::of(&output);
    let files = snapshot.files(&output);
    // no weight goes without a word
    assert_eq!(report["left_behind"], json!(left));
    let plan = args!["plan", source.path(), "--preset", "int8"];
    assert_contains(
        &tersor(&plan).quietly(),
        &["left behind: `1_Pooling/weights.bin`", "2_Dense", "4 others"],
    );
    assert_eq!(tersor(plan.into_iter().chain(args!["--json"])).json()["left_behind"], json!(left));
    for name in kept {
        assert_eq!(files[name], format!("this is {name}").as_bytes());
    }
    let mut expected: Vec<_> =
        kept.into_iter().chain(["config.json", "model.safetensors", "tersor.json"]).collect();
    expected.sort_unstable();
    assert_eq!(files.keys().collect::<Vec<_>>(), expected);
    assert_eq!(Snapshot::of(source.path()), before);
    // the second generation has the same files, with its own report
    let (_work, again, _) = compressed(&output, &["--preset", "int4"]);
    assert_eq!(Snapshot::of(&again).files(&again).keys().collect::<Vec<_>>(), expected);
    assert_ne!(fs::read(again.join("tersor.json")).unwrap(), files["tersor.json"]);
}

/// A link to a folder above it is no endless tree.
#[cfg(unix)]
#[test]
fn a_folder_that_holds_itself_is_listed_once() {
    let source = folder(&decoder(DType::F32), None);
    fs::create_dir(source.path().join("sub")).unwrap();
    source.put("sub/x.json", "{}");
    std::os::unix::fs::symlink(source.path(), source.path().join("sub/around")).unwrap();
    let (_work, output, _) = compressed(source.path(), &["--preset", "bf16"]);
    assert_eq!(names(&output.join("sub")), ["x.json"]);
}

#[test]
fn config_json_says_how_weights_are_quantized() {
    let source = folder(&decoder(DType::F32), Some(&architectures()));
    let (_work, output, _) = compressed(source.path(), &["--preset", "int4", "--group-size", "64"]);
    let config = config(&output);
    for (key, value) in architectures().as_object().unwrap() {
        assert_eq!(&config[key], value);
    }
    let quantization = &config["quantization_config"];
    assert_eq!(quantization["quant_method"], "compressed-tensors");
    assert_eq!(quantization["format"], "pack-quantized");
    assert_eq!(quantization["ignore"], json!(["model.embed_tokens", "lm_head"]));
    let group = &quantization["config_groups"]["group_0"];
    assert_eq!(group["targets"], json!(["Linear"]));
    assert_eq!(group["weights"]["num_bits"], 4);
    assert_eq!(group["weights"]["group_size"], 64);
    assert_eq!(group["weights"]["strategy"], "group");
    assert_eq!(group["weights"]["symmetric"], true);
    // a source without `config.json` gets one, because other readers look there
    let bare = folder(&decoder(DType::F32), None);
    let (_work, output, _) = compressed(bare.path(), &["--preset", "fp8"]);
    assert_eq!(self::config(&output)["quantization_config"]["format"], "float-quantized");
    // nothing to say about plain floats
    let (_work, output, _) = compressed(bare.path(), &["--preset", "bf16"]);
    assert_eq!(names(&output), ["model.safetensors", "tersor.json"]);
}

#[test]
fn config_json_names_the_new_precision() {
    for key in ["torch_dtype", "dtype"] {
        let mut config = architectures();
        config.as_object_mut().unwrap().remove("torch_dtype");
        config[key] = "float32".into();
        let source = folder(&decoder(DType::F32), Some(&config));
        for (preset, ignore, expected) in [
            ("fp16", None, "float16"),
            ("bf16", None, "bfloat16"),
            // still computed in f32
            ("int8", None, "float32"),
            // not all of it
            ("fp16", Some("lm_head"), "float32"),
        ] {
            let options = ["--preset", preset].into_iter();
            let options: Vec<_> = options.chain(ignore.into_iter().flat_map(|i| ["--ignore", i])).collect();
            let (_work, output, _) = compressed(source.path(), &options);
            assert_eq!(self::config(&output)[key], expected, "{options:?}");
        }
    }
}

#[test]
fn a_model_quantized_by_another_method_is_refused() {
    let mut config = architectures();
    config["quantization_config"] = json!({"quant_method": "gptq", "bits": 4});
    let source = folder(&decoder(DType::F32), Some(&config));
    let path = source.path().join("config.json");
    refuses(source.path(), &["--preset", "int8"], &[path.to_str().unwrap(), "already quantized by `gptq`"]);
}

/// Activations, caches and rotations that a configuration describes are not dropped from it.
#[test]
fn what_a_configuration_says_beyond_weights_is_not_lost() {
    let source = folder(&decoder(DType::F32), Some(&architectures()));
    let (_work, int8, _) = compressed(source.path(), &["--preset", "int8"]);
    let path = int8.join("config.json");
    let written = config(&int8);
    let activations =
        json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true});
    for (at, value, name) in [
        ("/config_groups/group_0/input_activations", activations.clone(), "`input_activations` of group_0"),
        ("/config_groups/group_0/output_activations", activations.clone(), "`output_activations` of group_0"),
        ("/kv_cache_scheme", activations, "`kv_cache_scheme`"),
        ("/transform_config", json!({"config_groups": {"R1": {}}}), "`transform_config`"),
        ("/sparsity_config", json!({"format": "sparse-24-bitmask"}), "`sparsity_config`"),
    ] {
        let mut config = written.clone();
        *config["quantization_config"].pointer_mut(at).unwrap() = value;
        fs::write(&path, config.to_string()).unwrap();
        for preset in ["int4", "fp16"] {
            refuses(&int8, &["--preset", preset], &[path.to_str().unwrap(), name, "start from the original"]);
        }
    }
}

#[test]
fn shards_stay_shards() {
    let source = sharded(&mixed(DType::F32), None);
    let (_work, output, _) = compressed(source.path(), &["--preset", "int8"]);
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut expected = vec!["config.json", "model.safetensors.index.json", "tersor.json"];
    expected.extend(shards);
    expected.sort_unstable();
    assert_eq!(names(&output), expected);
    let index: Value =
        serde_json::from_slice(&fs::read(output.join("model.safetensors.index.json")).unwrap()).unwrap();
    let mut stored = Vec::new();
    let mut total = 0;
    for shard in shards {
        let bytes = fs::read(output.join(shard)).unwrap();
        let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, tensor) in parsed.tensors() {
            assert_eq!(index["weight_map"][&name], shard, "{name}");
            total += tensor.data().len();
            stored.push(name);
        }
    }
    assert_eq!(index["weight_map"].as_object().unwrap().len(), stored.len());
    assert_eq!(index["metadata"]["total_size"], total);
}

/// A name that somebody else's tensor has: `….weight` is no weight of three tensors, and stays readable.
#[test]
fn a_float_that_is_merely_called_a_scale_stays() {
    let mut tensors = decoder(DType::F32);
    tensors.push(weight("gate.weight", DType::F32, &[8, 128]));
    tensors.push(weight("gate.weight_scale", DType::F32, &[8]));
    let source = folder(&tensors, Some(&architectures()));
    let (_work, output, _) = compressed(source.path(), &["--preset", "int8", "--ignore", "gate"]);
    let verified = tersor(args!["verify", source.path(), output, "--json"]).json();
    assert_eq!(verified["checks"].as_array().unwrap().len(), 7);
    // compressing it would need the name
    for preset in ["int8", "fp8"] {
        refuses(
            source.path(),
            &["--preset", preset],
            &[source.path().to_str().unwrap(), "`gate.weight_scale`", "taken"],
        );
    }
    // in the other order of the file too
    let last = tensors.len() - 1;
    tensors.swap(last, last - 1);
    let source = folder(&tensors, Some(&architectures()));
    refuses(source.path(), &["--preset", "int8"], &["`gate.weight_scale`", "taken"]);
    // and f16 needs no other name
    let (_work, output, _) = compressed(source.path(), &["--preset", "fp16"]);
    tersor(args!["verify", source.path(), output]).quietly();
}

#[test]
fn ignored_tensors_stay_as_they_are() {
    let source = folder(&decoder(DType::F32), Some(&architectures()));
    let ignore = ["--ignore", "*.q_proj", "--ignore", r"re:.*down_p.*\.weight"];
    let options = ["--preset", "fp16"].into_iter().chain(ignore).collect::<Vec<_>>();
    let (_work, output, report) = compressed(source.path(), &options);
    let compressed: Vec<_> =
        report["layers"].as_array().unwrap().iter().map(|l| l["name"].as_str().unwrap()).collect();
    assert_eq!(
        compressed,
        ["model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "lm_head.weight"]
    );
    let bytes = fs::read(output.join("model.safetensors")).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for tensor in decoder(DType::F32).iter().filter(|t| t.name.contains("proj")) {
        assert_eq!(parsed.tensor(&tensor.name).unwrap().data(), tensor.bytes);
    }
}

#[test]
fn overflow_is_refused_or_clamped_and_counted() {
    let mut values = vec![0.5f32; 64];
    values[37] = -70_000.0;
    values[40] = 1e9;
    let tensors = [stored("big.weight", DType::F32, &[8, 8], f32s(&values))];
    let source = Folder::new();
    let path = source.put("big.safetensors", safetensors(&tensors, &[].into()));
    refuses(
        &path,
        &["--preset", "fp16"],
        &[path.to_str().unwrap(), "`big.weight`", "2 values", "65504", "-70000 at index 37", "clamping"],
    );
    let work = Folder::new();
    let clamp = |name: &str, quiet: &[&str]| {
        let output = work.path().join(name);
        let mut args =
            args!["compress", path, "-o", output, "--preset", "fp16", "--overflow", "clamp", "--json"]
                .to_vec();
        args.extend(quiet.iter().map(Into::into));
        tersor(args)
    };
    let ran = clamp("told", &[]);
    assert_eq!((ran.code, ran.stderr.lines().count()), (Some(0), 1), "{ran:?}");
    assert_contains(&ran.stderr, &["2 values", "clamped"]);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["layers"][0]["clamped"], 2);
    let bytes = fs::read(work.path().join("told/model.safetensors")).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = parsed.tensor("big.weight").unwrap().data().to_vec();
    // ±65504 in f16
    assert_eq!((&data[74..76], &data[80..82]), (&[0xff, 0xfb][..], &[0xff, 0x7b][..]));
    assert_eq!(clamp("quiet", &["--quiet"]).json()["layers"][0]["clamped"], 2);
    // bf16 reaches further
    let (_work, _, report) = compressed(&path, &["--preset", "bf16"]);
    assert_eq!(report["layers"][0]["clamped"], 0);
}

#[test]
fn the_format_is_chosen_by_the_source_or_by_the_user() {
    let format = |source: &Path, options: &[&str]| {
        let mut args = args!["plan", source, "--preset", "int8", "--json"].to_vec();
        args.extend(options.iter().map(Into::into));
        tersor(args).json()["format"].as_str().unwrap().to_owned()
    };
    let known = folder(&decoder(DType::F32), Some(&architectures()));
    let bare = folder(&decoder(DType::F32), None);
    assert_eq!(format(known.path(), &[]), "compressed-tensors");
    assert_eq!(format(bare.path(), &[]), "tersor");
    assert_eq!(format(known.path(), &["--format", "tersor"]), "tersor");
    assert_eq!(format(bare.path(), &["--format", "compressed-tensors"]), "compressed-tensors");
}

/// A sparse weight in a format that others load: said, not silent.
#[test]
fn what_only_tersor_reads_is_noted() {
    let source = folder(&decoder(DType::F32), Some(&architectures()));
    let work = Folder::new();
    let compress = |name: &str, more: &[&str]| {
        let output = work.path().join(name);
        let mut args = args!["compress", source.path(), "--preset", "2:4", "-o", output].to_vec();
        args.extend(more.iter().map(Into::into));
        tersor(args)
    };
    let ran = compress("noted", &[]);
    assert_eq!((ran.code, ran.stderr.lines().count()), (Some(0), 1), "{ran:?}");
    assert_contains(&ran.stderr, &["note: ", "`model.layers.0.q_proj.weight` and 1 others", "2:4"]);
    compress("quiet", &["--quiet"]).quietly();
    compress("ours", &["--format", "tersor"]).quietly();
}

#[test]
fn a_ragged_group_names_sizes_that_fit() {
    let tensors = |cols: usize| {
        vec![weight("even.weight", DType::F32, &[4, 128]), weight("odd.weight", DType::F32, &[4, cols])]
    };
    let options = ["--preset", "int4", "--group-size", "64"];
    let source = folder(&tensors(200), Some(&architectures()));
    let path = source.path().to_str().unwrap();
    let parts = [
        path,
        "`odd.weight`",
        "compressed-tensors",
        "200 columns",
        "3 groups of 64 and 8 left over",
        "(8, 4, 2)",
    ];
    refuses(source.path(), &options, &parts);
    let (_work, _, report) = compressed(source.path(), &[&options[..], &["--format", "tersor"]].concat());
    assert_eq!(report["layers"][1]["after"], "int4, group 64");
    let (_work, ..) = compressed(source.path(), &[&options[..], &["--ignore", "odd"]].concat());
    let (_work, ..) =
        compressed(source.path(), &["--preset", "int4", "--group-size", "40", "--ignore", "even"]);
    // a prime number of columns has none
    let source = folder(&tensors(97), Some(&architectures()));
    let line =
        refuses(source.path(), &options, &["`odd.weight`", "97 columns are 1 groups of 64 and 33 left over"]);
    assert!(!line.contains("()"), "{line}");
    assert_contains(&line, &["format `tersor`", "ignore this tensor"]);
}

#[test]
fn an_output_that_exists_is_never_touched() {
    let source = folder(&mixed(DType::F32), None);
    let work = Folder::new();
    work.put("file", "mine");
    fs::create_dir(work.path().join("folder")).unwrap();
    work.put("folder/x", "mine");
    fs::create_dir(work.path().join("empty")).unwrap();
    let mut taken = vec!["file", "folder", "empty", "folder/x", "folder/", "./folder", "empty/../folder"];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("nowhere", work.path().join("dangling")).unwrap();
        std::os::unix::fs::symlink("folder", work.path().join("link")).unwrap();
        taken.extend(["dangling", "link"]);
    }
    let before = [Snapshot::of(work.path()), Snapshot::of(source.path())];
    for name in taken {
        let output = work.path().join(name);
        let line = tersor(args!["compress", source.path(), "--preset", "int8", "-o", output]).error(1);
        assert_contains(&line, &[output.to_str().unwrap(), "already exists"]);
    }
    // below a file there can be nothing
    let below = work.path().join("file/out");
    let line = tersor(args!["compress", source.path(), "--preset", "int8", "-o", below]).error(1);
    assert_contains(&line, &[work.path().join("file").to_str().unwrap(), "cannot create"]);
    assert_eq!([Snapshot::of(work.path()), Snapshot::of(source.path())], before);
}

#[test]
fn an_output_inside_the_input_is_refused() {
    let place = Folder::new();
    let model = place.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("model.safetensors"), safetensors(&mixed(DType::F32), &[].into())).unwrap();
    let mut cases = vec![
        ("model", "model/out"),
        ("model", "model/new/out"),
        ("model", "model"),
        ("model", "model/../model/out"),
        ("model/model.safetensors", "model/model.safetensors/out"),
        ("model/model.safetensors", "model/model.safetensors"),
    ];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("model", place.path().join("link")).unwrap();
        std::os::unix::fs::symlink("link", place.path().join("link to link")).unwrap();
        cases.extend([("model", "link/out"), ("link", "model/out"), ("link", "link to link/new/out")]);
    }
    let before = Snapshot::of(place.path());
    for (source, output) in cases {
        let (source, output) = (place.path().join(source), place.path().join(output));
        let line = tersor(args!["compress", source, "--preset", "int8", "-o", output]).error(1);
        let real = model.canonicalize().unwrap();
        assert_contains(&line, &[output.to_str().unwrap(), "inside the input", real.to_str().unwrap()]);
        assert_eq!(Snapshot::of(place.path()), before, "{line}");
    }
    // beside a source that is a single file, there is room
    let output = model.join("out");
    let source = model.join("model.safetensors");
    tersor(args!["compress", source, "--preset", "int8", "-o", output]).quietly();
}

/// Folders above the output are made, and paths may be relative to where the command runs.
#[test]
fn folders_above_the_output_are_made() {
    let place = Folder::new();
    let model = place.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("x.safetensors"), safetensors(&mixed(DType::F32), &[].into())).unwrap();
    let compress = |output: &Path| {
        let mut command = Command::new(BINARY);
        command.args(args!["compress", "x.safetensors", "--preset", "int8", "--json", "-o", output]);
        Ran::of(command.current_dir(&model).output().unwrap()).json()["output"].clone()
    };
    let absolute = place.path().join("a/b/out");
    assert_eq!(compress(&absolute), absolute.to_str().unwrap());
    assert_eq!(names(&place.path().join("a/b")), ["out"]);
    assert_eq!(names(&absolute), ["config.json", "model.safetensors", "tersor.json"]);
    compress(Path::new("../c/out"));
    assert_eq!(names(&place.path().join("c")), ["out"]);
    compress(Path::new("out"));
    assert_eq!(names(&model), ["out", "x.safetensors"]);
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;

    use super::*;
    use crate::models::{folder, values};

    /// Runs the command in a shell, after `limits`.
    fn limited(limits: &str, args: &[std::ffi::OsString]) -> Ran {
        let script = format!("{limits}; exec \"$0\" \"$@\"");
        let output = Command::new("sh").arg("-c").arg(script).arg(BINARY).args(args).output().unwrap();
        Ran::of(output)
    }

    /// The disk refuses in the middle of the weights, in the middle of a file carried along, and at once.
    #[test]
    fn a_disk_that_refuses_leaves_nothing() {
        let tensors =
            [weight("x.weight", DType::F32, &[512, 512]), weight("y.weight", DType::F32, &[512, 512])];
        let source = folder(&tensors, None);
        source.put("tokenizer.json", vec![b' '; 2_000_000]);
        let before = Snapshot::of(source.path());
        // in blocks of 512 or, in some shells, 1024 bytes: half a megabyte of int8, two of f32
        for (limit, preset, file) in [
            (512, "50%", "model.safetensors"),
            (1536, "int8", "tokenizer.json"),
            (0, "int8", "model.safetensors"),
        ] {
            let work = Folder::new();
            let output = work.path().join("new/out");
            let args = args!["compress", source.path(), "--preset", preset, "-o", output];
            let line = limited(&format!("trap '' XFSZ; ulimit -f {limit}"), &args).error(1);
            assert_contains(&line, &[file, "cannot write", "File too large"]);
            assert_eq!(names(work.path()), [""; 0], "{line}");
        }
        assert_eq!(Snapshot::of(source.path()), before);
    }

    /// A file with holds as many bytes as no disk has room for half of: refused before anything is made.
    #[cfg(target_os = "linux")]
    #[test]
    fn an_output_larger_than_the_disk_is_refused() {
        use std::io::Write;

        let source = Folder::new();
        let stat = rustix::fs::statvfs(source.path()).unwrap();
        let rows = stat.f_bavail * stat.f_frsize / 1024;
        // 4 KiB a row, 2 of them in f16: twice what is free
        let bytes = rows * 4096;
        let info = json!({"x.weight": {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, bytes]}});
        let path = source.put("huge.safetensors", crate::common::raw(info.to_string(), &[]));
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.flush().unwrap();
        let length = file.metadata().unwrap().len() + bytes;
        if bytes >= 1 << 43 || file.set_len(length).is_err() {
            return; // more than this file system lets a file seem to have
        }
        let work = Folder::new();
        let output = work.path().join("new/out");
        let line = tersor(args!["compress", path, "--preset", "fp16", "-o", output]).error(1);
        assert_contains(&line, &[output.to_str().unwrap(), "the output takes ", "bytes, but only", "free"]);
        assert_eq!(names(work.path()), [""; 0]);
    }

    /// The command as a user who may write nothing here.
    fn unprivileged(binaries: &Path) -> Command {
        let is_root = fs::metadata(binaries).unwrap().uid() == 0;
        if !is_root {
            return Command::new(BINARY);
        }
        // root may write anywhere; nobody may not, and needs the binary in a place that everybody reads
        let binary = binaries.join("tersor");
        if !binary.exists() {
            fs::copy(BINARY, &binary).unwrap();
        }
        let mut command = Command::new(binary);
        command.uid(65534).gid(65534);
        command
    }

    #[test]
    fn what_may_not_be_read_or_written_is_said() {
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let source = folder(&mixed(DType::F32), None);
        let (binaries, work) = (Folder::new(), Folder::new());
        mode(binaries.path(), 0o755);
        mode(source.path(), 0o755);
        mode(work.path(), 0o555);
        let weights = source.path().join("model.safetensors");
        let compress = |output: &Path| {
            let mut command = unprivileged(binaries.path());
            command.args(args!["compress", source.path(), "--preset", "int8", "-o", output]);
            Ran::of(command.output().unwrap()).error(1)
        };
        let line = compress(&work.path().join("out"));
        assert_contains(&line, &[work.path().to_str().unwrap(), "cannot create", "Permission denied"]);
        let line = compress(&work.path().join("new/out"));
        assert_contains(&line, &[work.path().to_str().unwrap(), "cannot create", "Permission denied"]);
        assert_eq!(names(work.path()), [""; 0]);
        // a name too long for the file system, below folders that were made for it
        mode(work.path(), 0o777);
        let long = work.path().join("new").join("n".repeat(300)).join("out");
        let line = compress(&long);
        assert_contains(&line, &["nnnn", "cannot create"]);
        assert_eq!(names(work.path()), [""; 0]);
        // the weights themselves
        mode(&weights, 0o000);
        let line = compress(&work.path().join("out"));
        assert_contains(&line, &[weights.to_str().unwrap(), "cannot open", "Permission denied"]);
        assert_eq!(names(work.path()), [""; 0]);
        mode(&weights, 0o644);
    }

    /// The run holds one tensor at a time: of 256 MB, in 64 tensors, no more than the plan says beside the mapped source.
    ///
    /// `ulimit -d` bounds what a process may write to in its own memory, whether or not it does; files mapped for reading do
    /// not count.
    #[cfg(target_os = "linux")]
    #[test]
    fn memory_stays_within_what_the_plan_says() {
        let tensor = floats_of_one_tensor();
        let names = (0..64).map(|i| format!("layers.{i}.weight"));
        let tensors: Vec<_> =
            names.map(|n| stored(&n, DType::F32, &[1024, 1024], tensor.as_slice())).collect();
        let folder = Folder::new();
        let source = folder.put("large.safetensors", safetensors(&tensors, &[].into()));
        drop(tensors);
        for preset in ["int8", "90%+int4"] {
            let plan = tersor(args!["plan", source, "--preset", preset, "--json"]).json();
            let peak = plan["peak_memory"].as_u64().unwrap();
            assert!(peak < 128 << 20, "{peak}");
            let work = Folder::new();
            let output = work.path().join("out");
            let args =
                args!["compress", source, "--preset", preset, "-o", output, "--json", "--threads", "2"];
            // the program itself, its buffers, and the stacks of four threads
            let allowance = 24 << 20;
            let ran = limited(&format!("ulimit -d {}", (peak + allowance) / 1024), &args);
            assert_eq!(ran.json()["layers"].as_array().unwrap().len(), 64);
        }
    }

    fn floats_of_one_tensor() -> Vec<u8> {
        f32s(&values(1 << 20, 3))
    }
}

/// `nowhere/../model/out` leads into the input once `nowhere` has been made.
#[test]
fn a_detour_into_the_input_is_refused() {
    let source = folder(&mixed(DType::F32), None);
    let checkpoint = source.open().unwrap();
    let recipe = tersor::Recipe::preset("bf16", tersor::PresetOptions::default()).unwrap();
    let plan = tersor::Plan::new(&checkpoint, &recipe).unwrap();
    let output = source.path().join("nowhere/../out");
    let error = plan.run(&output, &mut |_| std::ops::ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("nowhere/../out"), "{error}");
    assert!(!source.path().join("nowhere").exists() && !source.path().join("out").exists());
}
