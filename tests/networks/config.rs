//! `config.json` that lacks what is needed, or asks for what is not supported.

use serde_json::{Value, json};
use tersor::{Network, OutputFormat, Plan, PresetOptions, Recipe};

use crate::common::Folder;
use crate::model::{Model, open};

/// Keys without which nobody knows the network, and that count something.
const COUNTS: [(&str, &[&str]); 2] = [
    (
        "llama",
        &[
            "hidden_size",
            "num_attention_heads",
            "num_hidden_layers",
            "vocab_size",
            "intermediate_size",
            "max_position_embeddings",
        ],
    ),
    (
        "bert",
        &[
            "hidden_size",
            "num_attention_heads",
            "num_hidden_layers",
            "vocab_size",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        ],
    ),
];

#[test]
fn every_needed_key_is_named_when_it_is_missing() {
    for (case, keys) in COUNTS {
        for key in keys {
            let missing = format!("the key `{key}` is missing");
            Model::without(case, key).refused(&["config.json", &missing]);
            Model::with(case, json!({*key: null})).refused(&["config.json", &missing]);
        }
        Model::without(case, "model_type").refused(&["config.json", "model_type"]);
    }
    Model::without("llama", "rms_norm_eps").refused(&["config.json", "the key `rms_norm_eps` is missing"]);
    // a scaling without its factor
    for (kind, key) in [
        ("linear", "factor"),
        ("llama3", "factor"),
        ("llama3", "low_freq_factor"),
        ("llama3", "high_freq_factor"),
    ] {
        let mut scaling =
            json!({"rope_type": kind, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
        scaling.as_object_mut().unwrap().remove(key);
        let missing = format!("the key `rope_parameters.{key}` is missing");
        Model::with("llama", json!({"rope_parameters": scaling})).refused(&["config.json", &missing]);
    }
}

#[test]
fn every_value_of_a_wrong_type_is_named() {
    let wrong = |case: &str, key: &str, values: &[Value]| {
        for value in values {
            let says = format!("`{key}` is {value}");
            Model::with(case, json!({key: value})).refused(&["config.json", &says]);
        }
    };
    let no_count = [json!("64"), json!(-1), json!(0), json!(1.5), json!([4]), json!({}), json!(true)];
    for (case, keys) in COUNTS {
        for key in keys {
            wrong(case, key, &no_count);
        }
        wrong(case, "model_type", &[json!(5), json!(["llama"])]);
        wrong(case, "hidden_act", &[json!(5), json!(["silu"])]);
    }
    for key in ["num_key_value_heads", "head_dim"] {
        wrong("llama", key, &no_count);
    }
    wrong("mistral", "sliding_window", &no_count);
    let no_number = [json!("1e-5"), json!(0), json!(-1e-5), json!([1]), json!(true)];
    wrong("llama", "rms_norm_eps", &no_number);
    wrong("bert", "layer_norm_eps", &no_number);
    let no_flag = [json!("true"), json!(1), json!([])];
    for key in ["attention_bias", "mlp_bias", "tie_word_embeddings"] {
        wrong("llama", key, &no_flag);
    }
    wrong("bert", "is_decoder", &no_flag);
    wrong("bert", "position_embedding_type", &[json!(1), json!(false)]);
    wrong("qwen3", "layer_types", &[json!("full_attention"), json!([1, 2]), json!({})]);
    wrong("qwen3", "max_window_layers", &[json!(-1), json!("28"), json!(1.5)]);
    wrong("llama", "rope_parameters", &[json!("default"), json!([]), json!(2)]);
    wrong("llama-old", "rope_scaling", &[json!("linear"), json!(2)]);
    wrong("llama-old", "rope_theta", &no_number);
    let mut model = Model::of("llama");
    model.config["rope_parameters"]["rope_theta"] = json!("10000");
    model.refused(&["config.json", "`rope_parameters.rope_theta` is \"10000\""]);
}

/// Peak of the memory that this process had, where the system tells.
fn peak_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kibibytes| kibibytes * 1024)
}

#[test]
fn huge_counts_are_refused_before_there_is_room_for_them() {
    let before = peak_bytes();
    for (case, keys) in COUNTS {
        for key in keys {
            for value in [json!((1 << 24) + 1), json!(u64::MAX), json!(1e30)] {
                let says = format!("`{key}` is {value}, not a number from 1 to 16777216");
                Model::with(case, json!({*key: value})).refused(&["config.json", &says]);
            }
        }
    }
    for (case, key, value, parts) in [
        ("llama", "num_hidden_layers", 10_000_000, &["`model.layers.2.input_layernorm.weight`"][..]),
        ("qwen2", "num_hidden_layers", 10_000_000, &["`layer_types` has 2 entries for 10000000 layers"]),
        ("bert", "num_hidden_layers", 10_000_000, &["`encoder.layer.2.attention.self.query."]),
        ("llama", "head_dim", 1_000_000, &["q_proj", "[32, 32]", "[4000000, 32]"]),
        ("llama", "vocab_size", 1 << 24, &["`model.embed_tokens.weight`", "[64, 32]", "[16777216, 32]"]),
        ("bert", "vocab_size", 1 << 24, &["word_embeddings.weight`", "[72, 32]", "[16777216, 32]"]),
        ("llama", "intermediate_size", 1 << 24, &["gate_proj.weight`", "[40, 32]", "[16777216, 32]"]),
        ("bert", "max_position_embeddings", 1 << 24, &["position_embeddings", "[16777216, 32]"]),
        ("bert", "type_vocab_size", 1 << 24, &["token_type_embeddings", "[16777216, 32]"]),
        ("llama", "hidden_size", 1 << 24, &["embed_tokens", "[64, 16777216]"]),
        ("bert", "hidden_size", 1 << 24, &["word_embeddings", "[72, 16777216]"]),
    ] {
        Model::with(case, json!({key: value})).refused(parts);
    }
    let heads = json!({"num_attention_heads": 1 << 24, "num_key_value_heads": 1 << 24, "head_dim": 1 << 24});
    Model::with("llama", heads).refused(&["q_proj", "[32, 32]"]);
    let layers = json!({"num_hidden_layers": 10_000_000, "layer_types": null});
    Model::with("qwen2", layers).refused(&["`model.layers.2."]);
    // a window and a limit may be as long as they like: nothing is reserved for them
    let long = json!({"max_position_embeddings": 1 << 24, "sliding_window": 1 << 24});
    let logits = Model::with("mistral", long).open().language_model().unwrap().logits(&[5]).unwrap();
    assert_eq!(logits.dim(), (1, 64));
    if let (Some(before), Some(after)) = (before, peak_bytes()) {
        assert!(after - before < 1 << 26, "{} bytes", after - before);
    }
}

#[test]
fn counts_that_contradict_each_other_are_refused() {
    Model::with("llama", json!({"num_key_value_heads": 3}))
        .refused(&["4 attention heads", "3 heads of keys"]);
    // without their number, every head has keys of its own
    Model::without("llama", "num_key_value_heads").refused(&["k_proj.weight", "[16, 32]", "[32, 32]"]);
    Model::with("llama", json!({"head_dim": 7})).refused(&["config.json", "`head_dim` 7 is odd"]);
    let heads = json!({"head_dim": null, "num_attention_heads": 5, "num_key_value_heads": 5});
    Model::with("llama", heads).refused(&["`hidden_size` 32 is no multiple of 5 heads"]);
    Model::with("bert", json!({"num_attention_heads": 5}))
        .refused(&["config.json", "`hidden_size` 32 is no multiple of 5 heads"]);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let refused = |case: &str, keys: Value, parts: &[&str]| {
        Model::with(case, keys).refused(&[&["config.json"], parts].concat());
    };
    for (case, supported) in [
        ("llama", "silu, gelu, gelu_new, gelu_pytorch_tanh and relu"),
        ("bert", "silu, gelu, gelu_new, gelu_pytorch_tanh and relu"),
    ] {
        refused(case, json!({"hidden_act": "quick_gelu"}), &["`hidden_act` is `quick_gelu`", supported]);
    }
    let kinds = "default, linear, dynamic, llama3 and yarn";
    let scaled = "rotary embeddings are scaled by `longrope`";
    refused("llama", json!({"rope_parameters": {"rope_type": "longrope", "factor": 2}}), &[scaled, kinds]);
    refused("llama-old", json!({"rope_scaling": {"type": "longrope", "factor": 2}}), &[scaled, kinds]);
    let partial = "`partial_rotary_factor` is not 1";
    refused("llama", json!({"partial_rotary_factor": 0.5}), &[partial]);
    refused("llama", json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), &[partial]);
    refused(
        "bert",
        json!({"position_embedding_type": "relative_key"}),
        &["`position_embedding_type` is `relative_key`", "absolute"],
    );
    refused("bert", json!({"is_decoder": true}), &["`is_decoder` is true"]);
    refused("bert", json!({"add_cross_attention": true}), &["`add_cross_attention` is true"]);
    refused(
        "qwen3",
        json!({"layer_types": ["full_attention", "chunked_attention"]}),
        &["`layer_types` names `chunked_attention`"],
    );
    refused("qwen3", json!({"layer_types": ["full_attention"]}), &["1 entries for 2 layers"]);
    refused(
        "qwen3",
        json!({"layer_types": ["full_attention", "sliding_attention"]}),
        &["asks for sliding attention, but there is no window"],
    );
}

#[test]
fn a_network_of_another_kind_is_refused_and_can_still_be_compressed() {
    let model = Model::with("llama", json!({"model_type": "gpt_neox"}));
    model.refused(&[
        "`gpt_neox`",
        "sequential, bert, llama, mistral, qwen2, qwen3",
        "still be inspected and compressed",
    ]);
    let folder = model.folder();
    let source = folder.open().unwrap();
    let options = PresetOptions { format: Some(OutputFormat::Tersor), ..PresetOptions::default() };
    let recipe = Recipe::preset("int8", options).unwrap();
    let beside = Folder::new();
    let output = beside.path().join("out");
    let plan = Plan::new(&source, &recipe).unwrap();
    let run = plan.run(&output, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    // seven layers in each of two blocks
    assert_eq!(run.layers.len(), 14);

    // what it is not is said by each of its tasks
    let network = Model::of("bert").open();
    let error = network.language_model().err().unwrap().to_string();
    assert_eq!(error, "a network of model_type `bert` is no language model");
    let error = Model::of("qwen2").open().sentence_encoder().err().unwrap().to_string();
    assert_eq!(error, "a network of model_type `qwen2` is no sentence encoder");
}

#[test]
fn a_file_that_is_no_object_is_refused() {
    for text in ["[]", "5", "null", "\"llama\"", "{", "", "\u{feff}{}", &"[".repeat(1 << 20)] {
        let folder = Model::of("llama").folder();
        folder.put("config.json", text);
        let line = match open(&folder) {
            Ok(network) => panic!("{text:.9}: {}", network.model_type()),
            Err(error) => error.to_string(),
        };
        assert!(line.contains(&folder.path().display().to_string()), "{line}");
        assert!(line.contains("config.json"), "{line}");
    }
    // a perceptron needs no description
    let model = Model {
        config: json!({}),
        tensors: vec![crate::common::stored("fc.weight", tersor::DType::F32, &[2, 3], vec![0; 24])],
    };
    assert!(matches!(model.open(), Network::Sequential(_)));
}
