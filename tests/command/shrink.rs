//! `shrink`: plans, runs and refusals.

use serde_json::Value;

use crate::args;
use crate::common::Folder;
use crate::models::fixtures;
use crate::run::{assert_contains, names, tersor, weight_bytes};
use crate::tasks::{network, words};

#[test]
fn a_plan_says_what_becomes_of_every_tensor_and_the_run_does_it() {
    let model = network("llama", 64);
    let text = model.put("calibration.txt", words((0..3000u32).map(|i| (i * i * 7 + i * 13 + 5) % 64)));
    let options = args!["shrink", model.path(), "--neurons", "20%", "--heads", "1", "--blocks", "1"];
    let plan = tersor(options.iter().cloned().chain(args!["--json"])).json();
    let tensors = plan["tensors"].as_array().unwrap();
    let of = |name: &str| tensors.iter().find(|t| t["name"] == name).unwrap();
    let down = of("model.layers.0.mlp.down_proj.weight");
    // 40 is a multiple of 8, and so is what stays
    assert_eq!((&down["shape_before"], &down["shape_after"]), (&[32, 40].into(), &[32, 32].into()));
    assert_eq!(of("model.layers.1.mlp.down_proj.weight")["becomes"], Value::Null);
    assert_eq!(plan["blocks"], serde_json::json!({"before": 2, "after": 1}));
    assert_contains(&tersor(&options).quietly(), &["[32, 40]", "[32, 32]", "1 of 2 blocks go", "goes"]);

    let output = Folder::new();
    let out = output.path().join("out");
    let run =
        options.iter().cloned().chain(args!["--calibration", text, "--context", "40", "-o", out, "--json"]);
    let report = tersor(run).json();
    assert_eq!(report["bytes_after"], plan["bytes_after"]);
    assert_eq!(weight_bytes(&out), report["bytes_after"].as_u64().unwrap());
    let units = report["units"].as_array().unwrap();
    assert_eq!(units.len(), 2);
    for units in units {
        assert!(units["error"].as_f64() < units["naive_error"].as_f64(), "{units}");
    }
    assert!(names(&out).contains(&"tokenizer.json".to_owned()), "{:?}", names(&out));
    // it runs like any other
    let generated =
        tersor(args!["generate", out, "--prompt", words([5, 6, 7]), "--max-new-tokens", "4", "--quiet"]);
    assert_eq!(generated.code, Some(0), "{generated:?}");
    let compressed = args!["compress", out, "--preset", "int8", "-o", output.path().join("int8"), "--quiet"];
    assert_eq!(tersor(compressed).code, Some(0));
}

#[test]
fn what_is_asked_wrongly_is_said() {
    let mlp = fixtures().join("fashion-mlp");
    let output = Folder::new();
    let out = output.path().join("out");
    let wrong =
        |options: &[&str]| tersor(args!["shrink", mlp].into_iter().chain(options.iter().map(Into::into)));
    for (options, parts) in [
        (&[][..], &["--neurons"][..]),
        (&["--neurons", "0.25"], &["neither a share such as 25%"]),
        (&["--neurons", "100%"], &["below 100%"]),
        (&["--neurons", "1", "--importance", "l2"], &["wanda, activation, magnitude, reconstruction"]),
        (&["--blocks", "1", "--by", "x"], &["influence, distance"]),
    ] {
        let ran = wrong(options);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert_contains(&ran.stderr, parts);
    }
    let out_option = ["-o", out.to_str().unwrap()];
    let line = wrong(&[&["--neurons", "10%"], &out_option[..]].concat()).error(1);
    assert_contains(&line, &["fashion-mlp", "calibration samples are needed to repair"]);
    let line = wrong(&[&["--heads", "1"], &out_option[..]].concat()).error(1);
    assert_contains(&line, &["heads cannot be left out"]);
    assert!(!out.exists());
    let magnitude = ["--neurons", "50%", "--importance", "magnitude", "--no-repair", "--markdown"];
    let ran = wrong(&[&magnitude[..], &out_option[..]].concat());
    // 300 and 100 are multiples of 4
    assert_contains(&ran.quietly(), &["| fc2 | neurons | 300 | 152 |", "| fc3 | neurons | 100 | 52 |"]);
}
