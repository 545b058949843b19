//! `eval`, `compare` and `demo` on networks and images.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use serde_json::Value;
use tersor::{DType, Task};

use crate::args;
use crate::common::{Folder, f32s, safetensors, stored};
use crate::models::{decoder, fixtures, folder, weight};
use crate::run::{assert_contains, compressed, names, tersor};

/// An IDX file of bytes.
pub(crate) fn idx(dimensions: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, dimensions.len() as u8];
    file.extend(dimensions.iter().flat_map(|d| d.to_be_bytes()));
    file.extend_from_slice(bytes);
    file
}

fn unzipped(name: &str) -> Vec<u8> {
    let file = fs::File::open(fixtures().join("fashion-mnist").join(name)).unwrap();
    let mut bytes = Vec::new();
    GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

/// The first `n` images of the test set and their labels, not compressed.
pub(crate) fn first_images(folder: &Folder, n: u32) -> [PathBuf; 2] {
    let pixels = &unzipped("t10k-images-idx3-ubyte.gz")[16..][..n as usize * 784];
    let labels = &unzipped("t10k-labels-idx1-ubyte.gz")[8..][..n as usize];
    [
        folder.put("t10k-images-idx3-ubyte.gz", idx(&[n, 28, 28], pixels)),
        folder.put("t10k-labels-idx1-ubyte.gz", idx(&[n], labels)),
    ]
}

/// A linear layer that copies its 3 pixels, and has a fourth class that is never brighter: the label is the brightest.
fn brightest() -> Folder {
    let identity = [1., 0., 0., 0., 1., 0., 0., 0., 1., 0., 0., 0.];
    folder(&[stored("only.weight", DType::F32, &[4, 3], f32s(&identity))], None)
}

#[test]
fn eval_counts_right_answers() {
    let data = Folder::new();
    let images = data.put("images", idx(&[4, 1, 3], &[9, 0, 0, 0, 9, 8, 1, 2, 3, 7, 7, 0]));
    // right, right, wrong, and the first of two equal ones: right
    let labels = data.put("labels", idx(&[4], &[0, 1, 0, 0]));
    let model = brightest();
    let eval = |style: &str| {
        tersor(args![
            "eval",
            model.path(),
            "--task",
            "classify",
            "--images",
            images,
            "--labels",
            labels,
            style
        ])
    };
    let json = eval("--json").json();
    assert_eq!(json["scores"].as_array().unwrap().len(), 1);
    let score = &json["scores"][0];
    assert_eq!((score["task"].as_str(), score["metric"].as_str()), (Some("classify"), Some("accuracy")));
    assert_eq!((score["value"].as_f64(), score["samples"].as_u64()), (Some(75.0), Some(4)));
    // Wilson's interval for 3 of 4, by hand: (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)
    let [low, high] = [0, 1].map(|i| score["interval"][i].as_f64().unwrap());
    assert!((low - 30.064).abs() < 1e-3 && (high - 95.441).abs() < 1e-3, "{low} {high}");
    assert_contains(&eval("--csv").quietly(), &["task,metric,value", "classify,accuracy,75.00%,"]);
    assert_contains(&eval("--markdown").quietly(), &["| classify | accuracy | 75.00% |"]);
}

#[test]
fn fixture_networks_know_fashion_and_compressed_ones_too() {
    let data = Folder::new();
    let [images, labels] = first_images(&data, 500);
    for network in ["fashion-mlp", "fashion-lenet"] {
        let source = fixtures().join(network);
        let score = |model: &Path| {
            let eval =
                args!["eval", model, "--task", "classify", "--images", images, "--labels", labels, "--json"];
            let json = tersor(eval).json();
            assert_eq!(json["scores"][0]["samples"], 500);
            json["scores"][0]["value"].as_f64().unwrap()
        };
        let before = score(&source);
        assert!(before > 75.0, "{network}: {before}");
        for preset in ["int8", "int6", "fp16"] {
            let (_work, output, _) = compressed(&source, &["--preset", preset]);
            let after = score(&output);
            assert!((before - after).abs() < 5.0, "{network} {preset}: {before} → {after}");
        }
        let (_work, output, _) = compressed(&source, &["--preset", "int8"]);
        let task =
            args!["--task", "classify,latency", "--batch", "100", "--images", images, "--labels", labels];
        let compare = args!["compare", source, output, "--json"].into_iter().chain(task);
        let json = tersor(compare).json();
        let variants = json["variants"].as_array().unwrap();
        assert_eq!(variants[0]["scores"][0]["value"], before);
        let drop = before - variants[1]["scores"][0]["value"].as_f64().unwrap();
        assert_eq!(variants[1]["drops"][0], drop);
        let scores = variants[1]["scores"].as_array().unwrap();
        let throughput = scores.iter().find(|score| score["metric"] == "samples_per_second").unwrap();
        assert!(throughput["value"].as_f64().unwrap() > 0.0);
        assert!(variants[1]["weight_ratio"].as_f64().unwrap() > 3.5, "{json}");
    }
}

#[test]
fn how_many_layers_take_8_bit_activations_is_said() {
    let data = Folder::new();
    let [images, labels] = first_images(&data, 20);
    let source = fixtures().join("fashion-mlp");
    let eval = |model: &Path, options: &[&str]| {
        let task = args!["eval", model, "--task", "classify", "--images", images, "--labels", labels];
        tersor(task.into_iter().chain(options.iter().map(OsString::from)))
    };
    let (_work, int8, _) = compressed(&source, &["--preset", "int8"]);
    let asked = ["--activations", "int8"];
    assert_contains(&eval(&source, &asked).quietly(), &["no layer rounds its activations to 8 bits"]);
    assert_contains(&eval(&int8, &asked).quietly(), &["3 layers, with weights of integers, round"]);
    assert!(!eval(&int8, &[]).quietly().contains("8 bits"));
    for (model, layers) in [(&source, 0), (&int8, 3)] {
        let json = eval(model, &["--activations", "int8", "--json"]).json();
        assert_eq!(json["int8_layers"], layers, "{}", model.display());
    }
}

#[test]
fn the_demo_writes_its_report_and_can_be_repeated() {
    let fixtures_folder = Folder::new();
    for network in ["fashion-mlp", "fashion-lenet"] {
        let folder = fixtures_folder.path().join(network);
        fs::create_dir(&folder).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(fixtures().join(network).join(name), folder.join(name)).unwrap();
        }
    }
    let images = Folder::new();
    first_images(&images, 100);
    fs::rename(images.path(), fixtures_folder.path().join("fashion-mnist")).unwrap();
    let work = Folder::new();
    let output = work.path().join("new/demo");
    let demo = args!["demo", "-o", output, "--fixtures", fixtures_folder.path(), "--quiet", "--json"];
    let json = tersor(&demo).json();
    // two networks, and each in twelve ways
    assert_eq!(json["variants"].as_array().unwrap().len(), 26);
    assert_eq!(names(&output), ["models", "report.html", "report.json", "report.md"]);
    assert_eq!(names(&output.join("models")).len(), 24);
    let report: Value = serde_json::from_slice(&fs::read(output.join("report.json")).unwrap()).unwrap();
    assert_eq!(report, json);
    assert_contains(
        &fs::read_to_string(output.join("report.md")).unwrap(),
        &["100 images", "fashion-mlp-2-4-int8", "| fashion-lenet-70%-global-int4 |"],
    );

    let page = fs::read_to_string(output.join("report.html")).unwrap();
    assert_eq!(crate::report::embedded(&page), json);
    // each network has figures of its own
    assert_contains(
        &page,
        &["quality-size-1-title", "quality-size-2-title", "fashion-lenet-70%-global-int4"],
    );

    // what is not the demo's stays, and stops it
    let foreign = output.join("models/fashion-mlp-fp16");
    fs::remove_file(foreign.join("tersor.json")).unwrap();
    let line = tersor(&demo).error(1);
    assert_contains(&line, &["fashion-mlp-fp16", "already exists"]);
    assert_eq!(names(&foreign), ["config.json", "model.safetensors"]);
}

#[test]
fn a_demo_without_fixtures_says_where_they_are() {
    let empty = Folder::new();
    let output = empty.path().join("out");
    let line = tersor(args!["demo", "-o", output, "--fixtures", empty.path()]).error(1);
    assert_contains(&line, &[empty.path().to_str().unwrap(), "fashion-mlp, fashion-lenet", "--fixtures"]);
    assert_eq!(names(empty.path()), [""; 0]);
}

#[test]
fn a_model_that_cannot_be_run_is_refused() {
    let data = Folder::new();
    let images = data.put("images", idx(&[1, 1, 3], &[1, 2, 3]));
    let labels = data.put("labels", idx(&[1], &[0]));
    let eval = |model: &Path| {
        tersor(args!["eval", model, "--task", "classify", "--images", images, "--labels", labels]).error(1)
    };
    let llama = folder(&decoder(DType::F32), Some(&crate::models::architectures()));
    assert_contains(
        &eval(llama.path()),
        &[llama.path().to_str().unwrap(), "config.json", "`hidden_size` is missing"],
    );
    let mut config = crate::models::architectures();
    config["model_type"] = "mamba".into();
    let other = folder(&decoder(DType::F32), Some(&config));
    assert_contains(
        &eval(other.path()),
        &[other.path().to_str().unwrap(), "model_type `mamba`", "sequential"],
    );
    // no description, and layers that form no chain
    let unknown = folder(&decoder(DType::F32), None);
    assert_contains(&eval(unknown.path()), &[unknown.path().to_str().unwrap(), "do not form one chain"]);
    // images of another size
    let mlp = eval(&fixtures().join("fashion-mlp"));
    assert_contains(&mlp, &["3 features", "784"]);
}

/// What a network has beside its linear layers is not left out of it.
#[test]
fn a_chain_that_leaves_tensors_unexplained_is_refused() {
    let data = Folder::new();
    let images = data.put("images", idx(&[1, 1, 3], &[1, 2, 3]));
    let labels = data.put("labels", idx(&[1], &[0]));
    let eval = |model: &Path| {
        let task = args!["--task", "classify", "--images", images, "--labels", labels];
        tersor(args!["eval", model].into_iter().chain(task))
    };
    let vector = |name: &str, n: usize| stored(name, DType::F32, &[n], f32s(&vec![1.0; n]));
    let linear = [
        stored("fc1.weight", DType::F32, &[2, 3], f32s(&[1.0; 6])),
        vector("fc1.bias", 2),
        stored("fc2.weight", DType::F32, &[4, 2], f32s(&[1.0; 8])),
    ];
    eval(folder(&linear, None).path()).quietly();
    let norm = ["bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"].map(|name| vector(name, 2));
    let source = folder(&[&linear[..], &norm].concat(), None);
    let line = eval(source.path()).error(1);
    assert_contains(&line, &[source.path().to_str().unwrap(), "`bn1.weight` and 3 others", "config.json"]);
}

#[test]
fn unknown_keys_of_a_network_are_refused() {
    let source = |config: &str| {
        let model = brightest();
        model.put("config.json", config);
        model
    };
    let open = |config: &str| {
        let model = source(config);
        let checkpoint = tersor::Checkpoint::open(model.path()).unwrap();
        tersor::Sequential::open(&checkpoint).map(|_| ()).map_err(|e| e.to_string())
    };
    let layers = r#""layers": [{"type": "flatten"}, {"type": "linear", "name": "only"}, {"type": "relu"}]"#;
    let whole =
        format!(r#"{{"model_type": "sequential", "dtype": "float32", "input_shape": [3], {layers}}}"#);
    open(&whole).unwrap();
    for (from, to, parts) in [
        (
            "\"dtype\": \"float32\"",
            "\"pixel_scales\": 1.0",
            ["`pixel_scales`", "did you mean `pixel_scale`?"],
        ),
        (
            "\"name\": \"only\"",
            "\"name\": \"only\", \"nane\": 1",
            ["`nane` of layer 2", "did you mean `name`?"],
        ),
        ("\"relu\"", "\"relu\", \"slope\": 0.1", ["`slope` of layer 3", "(valid: type)"]),
    ] {
        assert_contains(&open(&whole.replace(from, to)).unwrap_err(), &parts);
    }
}

#[test]
fn broken_images_are_refused() {
    let model = brightest();
    let data = Folder::new();
    let good_images = data.put("images", idx(&[2, 1, 3], &[1, 2, 3, 4, 5, 6]));
    let good_labels = data.put("labels", idx(&[2], &[0, 1]));
    let eval = |images: &Path, labels: &Path| {
        tersor(args![
            "eval",
            model.path(),
            "--task",
            "classify",
            "--images",
            images,
            "--labels",
            labels,
            "--json"
        ])
    };
    assert_eq!(eval(&good_images, &good_labels).json()["scores"][0]["samples"], 2);

    let zipped = fs::read(fixtures().join("fashion-mnist/t10k-labels-idx1-ubyte.gz")).unwrap();
    for (name, bytes, parts) in [
        ("cut", idx(&[2, 1, 3], &[1, 2, 3, 4, 5]), &["[2, 1, 3]", "6 bytes", "fewer"][..]),
        ("long", idx(&[2, 1, 3], &[1, 2, 3, 4, 5, 6, 7]), &["6 bytes", "more"]),
        ("labels", idx(&[2], &[0, 1]), &["1 dimensions", "images have 3"]),
        ("huge", idx(&[u32::MAX, u32::MAX, u32::MAX], &[]), &["4294967295"]),
        ("head", vec![0, 0, 8, 3, 0, 0], &["cannot read"]),
        ("nothing", vec![], &["cannot read"]),
        ("text", b"not an image".to_vec(), &["begins with [6e, 6f, 74, 20]", "[00, 00, 08, dimensions]"]),
        ("zip", zipped[..zipped.len() / 2].to_vec(), &["cannot read"]),
        ("head.gz", zipped[..12].to_vec(), &["cannot read"]),
    ] {
        let path = data.put(name, bytes);
        let line = eval(&path, &good_labels).error(1);
        assert_contains(&line, parts);
        assert_contains(&line, &[path.to_str().unwrap()]);
    }
    let three = data.put("three", idx(&[3], &[0, 1, 2]));
    let line = eval(&good_images, &three).error(1);
    assert_contains(
        &line,
        &[three.to_str().unwrap(), "3 labels for 2 images", good_images.to_str().unwrap()],
    );
    let [none, no_labels] =
        [("none", idx(&[0, 1, 3], &[])), ("no labels", idx(&[0], &[]))].map(|(n, b)| data.put(n, b));
    assert_contains(&eval(&none, &no_labels).error(1), &[none.to_str().unwrap(), "holds no images"]);
    let missing = data.path().join("missing.gz");
    assert_contains(&eval(&missing, &good_labels).error(1), &[missing.to_str().unwrap(), "cannot read"]);
}

/// A configuration can ask for more memory than there is.
#[test]
fn a_network_of_absurd_size_is_refused() {
    let network = |input: &str, padding: u64| {
        let folder = Folder::new();
        let tensors = [weight("conv.weight", DType::F32, &[1, 1, 2, 2])];
        folder.put("model.safetensors", safetensors(&tensors, &[].into()));
        let layer = format!(r#"{{"type":"conv2d","name":"conv","padding":{padding}}}"#);
        let config = format!(r#"{{"model_type":"sequential","input_shape":{input},"layers":[{layer}]}}"#);
        folder.put("config.json", config);
        tersor::Sequential::open(&folder.open().unwrap()).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(network("[1,28,28]", 1), Ok(()));
    let error = network("[1,28,28]", 1_000_000).unwrap_err();
    assert!(error.contains("layer `conv`") && error.contains("values for one input"), "{error}");
    let error = network("[18446744073709551615,3]", 0).unwrap_err();
    assert!(error.contains("input_shape [18446744073709551615, 3]"), "{error}");
}

#[test]
fn images_without_pixels_are_refused() {
    let folder = Folder::new();
    folder.put("images", idx(&[10, 0, 28], &[]));
    folder.put("labels", idx(&[10], &[0; 10]));
    let error =
        tersor::ImageSet::open(folder.path().join("images"), folder.path().join("labels")).unwrap_err();
    assert!(error.to_string().contains("0 × 28 pixels"), "{error}");
}

#[test]
fn a_network_that_gives_nan_has_no_accuracy() {
    let folder = Folder::new();
    let mut values = [1.0f32; 8];
    values[5] = f32::NAN;
    let tensors = [stored("fc.weight", DType::F32, &[2, 4], f32s(&values))];
    folder.put("model.safetensors", safetensors(&tensors, &[].into()));
    folder.put(
        "config.json",
        r#"{"model_type":"sequential","input_shape":[4],"layers":[{"type":"linear","name":"fc"}]}"#,
    );
    folder.put("images", idx(&[1, 2, 2], &[9; 4]));
    folder.put("labels", idx(&[1], &[0]));
    let images = tersor::ImageSet::open(folder.path().join("images"), folder.path().join("labels")).unwrap();
    let model = tersor::Sequential::open(&folder.open().unwrap()).unwrap();
    let error = tersor::Classification { images }.score(&model).unwrap_err();
    assert!(error.to_string().contains("NaN for sample 0, class 1"), "{error}");
}
