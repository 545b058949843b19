//! Weights that `quantization_config` in `config.json` describes, as the `compressed-tensors` package writes them.

use std::ops::ControlFlow;
use std::path::PathBuf;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tersor::{Checkpoint, DType, Plan, Precision, Recipe, StoredTensor, TensorClass};

use crate::common::{File, Folder, f32s, i64s, read_all, safetensors, stored};
use crate::refused;

/// The arguments of weights, with every key that the package writes.
fn arguments(bits: u64, kind: &str, symmetric: bool, strategy: &str) -> Value {
    json!({
        "num_bits": bits, "type": kind, "symmetric": symmetric, "group_size": null, "strategy": strategy,
        "block_structure": null, "dynamic": false, "actorder": null, "scale_dtype": null, "zp_dtype": null,
        "observer": "memoryless_minmax", "observer_kwargs": {},
    })
}

/// A `config.json` with these groups (targets and arguments).
fn config(groups: &[(Value, Value)]) -> Value {
    let groups: serde_json::Map<String, Value> = groups
        .iter()
        .enumerate()
        .map(|(i, (targets, weights))| {
            let group = json!({
                "targets": targets, "weights": weights, "input_activations": null, "output_activations": null,
                "format": null,
            });
            (format!("group_{i}"), group)
        })
        .collect();
    json!({
        "model_type": "llama",
        "quantization_config": {
            "version": "0.20.0", "quant_method": "compressed-tensors", "format": "pack-quantized",
            "quantization_status": "compressed", "config_groups": groups, "ignore": ["lm_head", "re:.*gate$"],
            "kv_cache_scheme": null, "global_compression_ratio": null, "sparsity_config": {}, "transform_config": {},
        },
    })
}

fn folder(tensors: &[StoredTensor], config: &Value) -> Folder {
    let folder = Folder::new();
    folder.put("model.safetensors", safetensors(tensors, &[].into()));
    folder.put("config.json", config.to_string());
    folder
}

struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    fn load() -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden/quantize.safetensors");
        Self { bytes: std::fs::read(path).unwrap() }
    }

    fn cases(&self) -> Vec<Value> {
        let (_, metadata) = SafeTensors::read_metadata(&self.bytes).unwrap();
        serde_json::from_str(&metadata.metadata().as_ref().unwrap()["cases"]).unwrap()
    }

    fn case(&self, id: &str) -> Value {
        self.cases().into_iter().find(|c| c["id"] == id).unwrap()
    }

    fn tensor(&self, name: &str) -> StoredTensor {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).unwrap();
        stored(name, view.dtype(), view.shape(), view.data())
    }

    /// What stores the weight of a case, for the module `module`.
    fn parts(&self, id: &str, module: &str) -> Vec<StoredTensor> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let mut names: Vec<&str> = file.names();
        names.sort_unstable();
        let parts = names.iter().filter_map(|name| {
            let part = name.strip_prefix(id)?.strip_prefix(".weight")?;
            Some(StoredTensor { name: format!("{module}.weight{part}"), ..self.tensor(name) })
        });
        parts.collect()
    }

    /// The bits of what the package makes of it, widened to f32.
    fn dequantized(&self, id: &str) -> Vec<u32> {
        let tensor = self.tensor(&format!("{id}.dequantized"));
        match tensor.dtype {
            DType::F32 => tensor.bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect(),
            DType::F16 => {
                let widen = |b: &[u8; 2]| half::f16::from_le_bytes(*b).to_f32().to_bits();
                tensor.bytes.as_chunks().0.iter().map(widen).collect()
            }
            DType::BF16 => {
                tensor.bytes.as_chunks().0.iter().map(|b| u32::from(u16::from_le_bytes(*b)) << 16).collect()
            }
            other => panic!("{other:?}"),
        }
    }
}

fn arguments_of(case: &Value) -> Value {
    let mut args = arguments(0, "", true, "");
    for key in ["num_bits", "type", "symmetric", "strategy", "group_size", "block_structure"] {
        args[key] = case[key].clone();
    }
    args
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_golden_weight_dequantizes_to_the_packages_values() {
    let golden = Golden::load();
    let mut read = 0;
    for case in golden.cases() {
        let id = case["id"].as_str().unwrap();
        let parts = golden.parts(id, "model.layers.0.mlp.up_proj");
        let folder = folder(&parts, &config(&[(json!(["Linear"]), arguments_of(&case))]));
        if case["type"] == "float" && case["symmetric"] == false {
            let config = folder.path().join("config.json");
            refused!(folder.open(), Config, config, ["quantization_config: group_0", "asymmetric"]);
            continue;
        }
        let name = "model.layers.0.mlp.up_proj.weight";
        let checkpoint = folder.open().unwrap();
        let [entry] = checkpoint.entries() else { panic!("{id}: {:?}", checkpoint.entries()) };
        assert_eq!((entry.name.as_str(), entry.class), (name, TensorClass::Linear), "{id}");
        assert_eq!(json!(entry.shape), json!([case["rows"], case["cols"]]), "{id}");
        let precision = match case["dtype"].as_str().unwrap() {
            "float32" => Precision::F32,
            "float16" => Precision::F16,
            _ => Precision::Bf16,
        };
        assert_eq!(entry.precision(), Some(precision), "{id}");
        if id.contains("-asym-") && id.ends_with("f16-large") {
            // the package's own scale is infinite, and its values NaN
            let path = folder.path().join("model.safetensors");
            refused!(checkpoint.dense(name), Weight, path, [name, "scale inf at index"]);
            continue;
        }
        assert_eq!(bits(&checkpoint.dense(name).unwrap()), golden.dequantized(id), "{id}");
        read += 1;
    }
    assert_eq!(read, 99 - 7 - 2);
}

#[test]
fn names_win_over_patterns_and_patterns_over_classes() {
    let golden = Golden::load();
    let weights = [
        ("model.layers.0.q_proj", "int4-asym-group32-f16-special"),
        ("model.layers.0.down_proj", "int8-sym-channel-f32-normal"),
        ("model.layers.1.q_proj", "fp8-sym-block2x16-bf16-normal"),
        ("head", "int2-sym-tensor-f32-normal"),
    ];
    let args = |i: usize| arguments_of(&golden.case(weights[i].1));
    let mut tensors: Vec<_> = weights.iter().flat_map(|(module, id)| golden.parts(id, module)).collect();
    tensors.push(stored("lm_head.weight", DType::F32, &[2, 1], f32s(&[1.0, 2.0])));
    // by class for all, then by name for one, by a pattern that also fits that one, and a name without a dot
    let config = config(&[
        (json!(["Linear"]), args(2)),
        (json!(["model.layers.0.q_proj"]), args(0)),
        (json!(["re:.*down_proj$", "re:model\\.layers\\.0\\..*"]), args(1)),
        (json!(["head"]), args(3)),
    ]);
    let folder = folder(&tensors, &config);
    let checkpoint = folder.open().unwrap();
    let described: Vec<_> = checkpoint.entries().iter().map(|e| (e.module(), e.describe())).collect();
    let expected = [
        ("model.layers.0.q_proj", "int4 asym, group 32"),
        ("model.layers.0.down_proj", "int8, channel"),
        ("model.layers.1.q_proj", "f8 e4m3, block 2×16"),
        ("head", "int2, tensor"),
        ("lm_head", "F32"),
    ];
    assert_eq!(described, expected.map(|(module, form)| (module, form.to_owned())));
    for (module, id) in weights {
        let dense = checkpoint.dense(&format!("{module}.weight")).unwrap();
        assert_eq!(bits(&dense), golden.dequantized(id), "{id}");
    }
    assert_eq!(checkpoint.dense("lm_head.weight").unwrap(), [1.0, 2.0]);
}

#[test]
fn patterns_match_from_the_start_of_the_name() {
    let tensors = int8();
    let args = arguments(8, "int", true, "channel");
    let opens = |target: &str| folder(&tensors, &config(&[(json!([target]), args.clone())])).open().is_ok();
    assert!(opens("re:f"));
    assert!(opens("re:.*c$"));
    assert!(!opens("re:c$"));
    assert!(!opens("fc.weight"));
}

/// `fc`, two rows of three I8 codes with a scale each.
fn int8() -> Vec<StoredTensor> {
    vec![
        stored("fc.weight", DType::I8, &[2, 3], vec![1, 0xff, 7, 0x80, 0x7f, 0]),
        stored("fc.weight_scale", DType::F32, &[2, 1], f32s(&[0.5, 2.0])),
    ]
}

/// `fc`, two rows of three 4-bit codes in a word each, with a scale each.
fn packed() -> Vec<StoredTensor> {
    vec![
        stored("fc.weight_packed", DType::I32, &[2, 1], vec![0x79, 0xf, 0, 0, 0x80, 0x8, 0, 0]),
        stored("fc.weight_scale", DType::F32, &[2, 1], f32s(&[0.5, 2.0])),
        stored("fc.weight_shape", DType::I64, &[2], i64s(&[2, 3])),
    ]
}

fn linear(args: Value) -> Value {
    config(&[(json!(["Linear"]), args)])
}

fn channel(bits: u64) -> Value {
    linear(arguments(bits, "int", true, "channel"))
}

#[test]
fn codes_by_hand() {
    let folder8 = folder(&int8(), &channel(8));
    assert_eq!(folder8.open().unwrap().dense("fc.weight").unwrap(), [0.5, -0.5, 3.5, -256.0, 254.0, 0.0]);
    let folder4 = folder(&packed(), &channel(4));
    assert_eq!(folder4.open().unwrap().dense("fc.weight").unwrap(), [0.5, -0.5, 3.5, -16.0, 0.0, 0.0]);
}

#[test]
fn a_group_size_alone_tells_the_strategy() {
    let strategy = |size: Value| {
        let mut args = arguments(8, "int", true, "");
        args["strategy"] = Value::Null;
        args["group_size"] = size;
        folder(&int8(), &linear(args)).open().map(|c| c.entries()[0].describe())
    };
    assert_eq!(strategy(json!(-1)).unwrap(), "int8, channel");
    assert_eq!(strategy(json!(3)).unwrap(), "int8, group 3");
}

#[test]
fn quantized_weights_without_a_config_are_refused() {
    for tensors in [int8(), packed()] {
        let file = File::new(safetensors(&tensors, &[].into()));
        refused!(file.open(), Tensor, file.path, ["`fc.weight`", "config.json has no quantization_config"]);
    }
}

#[test]
fn another_method_describes_nothing() {
    let mut config = channel(8);
    config["quantization_config"]["quant_method"] = "gptq".into();
    let folder = folder(&int8(), &config);
    let path = folder.path().join("model.safetensors");
    refused!(folder.open(), Tensor, path, ["`fc.weight`", "no quantization_config"]);
}

#[test]
fn a_config_without_groups_is_refused() {
    for groups in [Value::Null, json!([]), json!("x")] {
        let mut config = channel(8);
        config["quantization_config"]["config_groups"] = groups;
        let folder = folder(&int8(), &config);
        let path = folder.path().join("config.json");
        refused!(folder.open(), Config, path, ["quantization_config", "`config_groups`"]);
    }
}

/// Asserts that the config with these arguments is refused.
fn refuse_arguments(args: Value, parts: &[&str]) {
    let folder = folder(&int8(), &linear(args));
    let path = folder.path().join("config.json");
    refused!(folder.open(), Config, path, ["quantization_config: group_0"]);
    let line = tersor::one_line(&folder.open().unwrap_err());
    for part in parts {
        assert!(line.contains(part), "no `{part}` in: {line}");
    }
}

fn with(mut args: Value, key: &str, value: Value) -> Value {
    args[key] = value;
    args
}

#[test]
fn an_unknown_strategy_is_refused() {
    for strategy in ["token", "tensor_group", "attn_head", "x"] {
        refuse_arguments(
            arguments(8, "int", true, strategy),
            &[&format!("strategy `{strategy}` is not supported")],
        );
    }
}

#[test]
fn a_group_strategy_without_a_size_is_refused() {
    refuse_arguments(arguments(8, "int", true, "group"), &["strategy `group`", "group_size"]);
}

#[test]
fn a_size_of_no_group_is_refused() {
    for size in [json!(0), json!(-1), json!(1.5), json!("64"), json!([64])] {
        let args = with(arguments(8, "int", true, "group"), "group_size", size.clone());
        refuse_arguments(args, &[&size.to_string(), "no group or block size"]);
    }
}

#[test]
fn a_block_without_its_structure_is_refused() {
    for block in [Value::Null, json!([2]), json!([2, 2, 2]), json!("2x2")] {
        let args = with(arguments(8, "int", true, "block"), "block_structure", block);
        refuse_arguments(args, &["`block`", "block_structure: [rows, cols]"]);
    }
    let args = with(arguments(8, "int", true, "block"), "block_structure", json!([2, 0]));
    refuse_arguments(args, &["0 is no group or block size"]);
}

#[test]
fn bits_that_are_not_supported_are_refused() {
    refuse_arguments(arguments(3, "float", true, "channel"), &["float weights of 3 bits"]);
    refuse_arguments(arguments(4, "float", true, "channel"), &["float weights of 4 bits"]);
    for bits in [0, 1, 9, 16, 256] {
        refuse_arguments(arguments(bits, "int", true, "channel"), &[&format!("int weights of {bits} bits")]);
    }
    refuse_arguments(arguments(8, "codebook", true, "channel"), &["codebook weights of 8 bits"]);
}

#[test]
fn arguments_of_another_json_type_are_refused() {
    for (key, value) in [
        ("num_bits", json!("4")),
        ("num_bits", json!(-4)),
        ("num_bits", json!(4.5)),
        ("symmetric", json!("true")),
        ("type", json!(8)),
        ("strategy", json!(["channel"])),
    ] {
        let args = with(arguments(8, "int", true, "channel"), key, value.clone());
        refuse_arguments(args, &[key, &value.to_string()]);
    }
}

#[test]
fn a_pattern_that_is_none_is_refused() {
    let folder = folder(&int8(), &config(&[(json!(["re:(fc"]), arguments(8, "int", true, "channel"))]));
    let path = folder.path().join("config.json");
    refused!(folder.open(), Config, path, ["group_0", "`re:(fc`", "unclosed group"]);
}

#[test]
fn a_pattern_too_large_to_compile_is_refused() {
    let target = "re:((a{1000}){1000}){1000}";
    let folder = folder(&int8(), &config(&[(json!([target]), arguments(8, "int", true, "channel"))]));
    let path = folder.path().join("config.json");
    refused!(folder.open(), Config, path, ["group_0", target, "size limit"]);
}

#[test]
fn targets_that_are_no_names_are_refused() {
    for targets in [json!(null), json!("Linear"), json!({})] {
        let folder = folder(&int8(), &config(&[(targets, arguments(8, "int", true, "channel"))]));
        let path = folder.path().join("config.json");
        refused!(folder.open(), Config, path, ["group_0", "no list of `targets`"]);
    }
    let folder = folder(&int8(), &config(&[(json!([7]), arguments(8, "int", true, "channel"))]));
    let path = folder.path().join("config.json");
    refused!(folder.open(), Config, path, ["group_0", "target 7 is no string"]);
}

#[test]
fn a_weight_of_another_dtype_than_its_group_is_refused() {
    let folder = folder(&int8(), &linear(arguments(8, "float", true, "channel")));
    let path = folder.path().join("model.safetensors");
    refused!(folder.open(), Tensor, path, ["`fc.weight`", "I8", "does not describe"]);
}

#[test]
fn a_group_size_that_does_not_match_the_scales_is_refused() {
    let mut tensors = packed();
    tensors[1] = stored("fc.weight_scale", DType::F32, &[2, 2], f32s(&[1.0; 4]));
    let args = with(arguments(4, "int", true, "group"), "group_size", json!(1));
    let folder = folder(&tensors, &linear(args));
    let path = folder.path().join("model.safetensors");
    refused!(folder.open(), Tensor, path, ["`fc.weight_scale`", "[2, 2]", "[2, 3]", "int4, group 1"]);
}

#[test]
fn transposed_scales_are_refused() {
    let mut tensors = packed();
    tensors[1] = stored("fc.weight_scale", DType::F32, &[3, 2], f32s(&[1.0; 6]));
    let args = with(arguments(4, "int", true, "group"), "group_size", json!(1));
    let folder = folder(&tensors, &linear(args));
    let path = folder.path().join("model.safetensors");
    refused!(folder.open(), Tensor, path, ["`fc.weight_scale`", "[3, 2]", "[2, 3]"]);
}

#[test]
fn scales_without_their_last_dimension_are_read() {
    let mut tensors = packed();
    tensors[1].shape = vec![2];
    let folder = folder(&tensors, &channel(4));
    assert_eq!(folder.open().unwrap().dense("fc.weight").unwrap(), [0.5, -0.5, 3.5, -16.0, 0.0, 0.0]);
}

#[test]
fn other_bits_than_were_packed_are_refused() {
    // three 8-bit codes fit the same single word, so take eleven columns
    let mut tensors = packed();
    tensors[0] = stored("fc.weight_packed", DType::I32, &[2, 2], [0; 16]);
    tensors[2] = stored("fc.weight_shape", DType::I64, &[2], i64s(&[2, 11]));
    let folder = folder(&tensors, &channel(8));
    let path = folder.path().join("model.safetensors");
    refused!(folder.open(), Tensor, path, ["`fc.weight_packed`", "[2, 2]", "[2, 3]", "int8, channel"]);
}

#[test]
fn codes_beyond_their_bits_are_refused() {
    let folder = folder(&int8(), &channel(4));
    let path = folder.path().join("model.safetensors");
    let checkpoint = folder.open().unwrap();
    refused!(checkpoint.weight("fc.weight"), Tensor, path, ["`fc.weight`", "-128 at index 3", "-8 to 7"]);
}

#[test]
fn zero_points_beyond_their_bits_are_refused() {
    let mut tensors = packed();
    tensors.push(stored("fc.weight_zero_point", DType::I8, &[2, 1], vec![0, 8]));
    let folder = folder(&tensors, &linear(arguments(4, "int", false, "channel")));
    let path = folder.path().join("model.safetensors");
    let checkpoint = folder.open().unwrap();
    refused!(
        checkpoint.weight("fc.weight"),
        Tensor,
        path,
        ["`fc.weight_zero_point`", "8 at index 1", "-8 to 7"]
    );
}

#[test]
fn missing_zero_points_are_refused() {
    let folder = folder(&packed(), &linear(arguments(4, "int", false, "channel")));
    refused!(folder.open(), Missing, folder.path(), ["`fc.weight_zero_point`"]);
}

#[test]
fn a_packed_weight_without_its_shape_is_refused() {
    let folder = folder(&packed()[..2], &channel(4));
    refused!(folder.open(), Missing, folder.path(), ["`fc.weight_shape`"]);
}

#[test]
fn a_shape_that_is_none_is_refused() {
    let open = |dtype, shape: &[usize], bytes: Vec<u8>| {
        let mut tensors = packed();
        tensors[2] = stored("fc.weight_shape", dtype, shape, bytes);
        let folder = folder(&tensors, &channel(4));
        let path = folder.path().join("model.safetensors");
        (read_all(folder.path()), path)
    };
    let (result, path) = open(DType::I32, &[2], vec![2, 0, 0, 0, 3, 0, 0, 0]);
    refused!(result, Tensor, path, ["`fc.weight_shape`", "I64, not I32"]);
    let (result, path) = open(DType::I64, &[2], i64s(&[-2, 3]));
    refused!(result, Tensor, path, ["`fc.weight_shape`", "-2"]);
    for huge in [[i64::MAX, 3], [1 << 40, 1 << 40]] {
        let (result, path) = open(DType::I64, &[2], i64s(&huge));
        refused!(result, Weight, path, ["`fc.weight_shape`", &huge[0].to_string(), "address"]);
    }
    let (result, path) = open(DType::I64, &[3], i64s(&[1 << 40, 1 << 40, 0]));
    refused!(result, Weight, path, ["`fc.weight_shape`", "1099511627776", "address"]);
    let (result, path) = open(DType::I64, &[2], i64s(&[1 << 40, 3]));
    refused!(result, Tensor, path, ["`fc.weight_packed`", "[2, 1]", "[1099511627776, 1]"]);
}

/// `fc`, two rows of two e4m3 codes and scales of this shape.
fn f8(scales: &[usize]) -> Vec<StoredTensor> {
    let count = scales.iter().product();
    vec![
        stored("fc.weight", DType::F8_E4M3, &[2, 2], vec![0x38, 0xb8, 0x40, 0x00]),
        stored("fc.weight_scale", DType::F32, scales, f32s(&vec![0.5; count])),
    ]
}

#[test]
fn f8_with_one_scale_or_one_a_row_needs_no_config() {
    for (scales, form) in [(&[][..], "tensor"), (&[1], "tensor"), (&[2, 1], "channel")] {
        let file = File::new(safetensors(&f8(scales), &[].into()));
        let checkpoint = file.open().unwrap();
        assert_eq!(checkpoint.entries()[0].describe(), format!("f8 e4m3, {form}"));
        assert_eq!(checkpoint.dense("fc.weight").unwrap(), [0.5, -0.5, 1.0, 0.0]);
    }
}

#[test]
fn f8_with_other_scales_needs_a_config() {
    for scales in [&[2, 2][..], &[1, 2], &[4]] {
        let file = File::new(safetensors(&f8(scales), &[].into()));
        refused!(
            file.open(),
            Tensor,
            file.path,
            ["`fc.weight`", &format!("{scales:?}"), "quantization_config"]
        );
    }
}

#[test]
fn f8_with_zero_points_is_refused() {
    let mut tensors = f8(&[1]);
    tensors.push(stored("fc.weight_zero_point", DType::F8_E4M3, &[1], [0x38]));
    let file = File::new(safetensors(&tensors, &[].into()));
    refused!(file.open(), Tensor, file.path, ["`fc.weight`", "zero points"]);
    refuse_arguments(arguments(8, "float", false, "channel"), &["asymmetric"]);
}

#[test]
fn f8_nan_codes_are_refused() {
    let mut tensors = f8(&[1]);
    tensors[0].bytes[2] = 0xff;
    let file = File::new(safetensors(&tensors, &[].into()));
    refused!(read_all(&file.path), Tensor, file.path, ["`fc.weight`", "NaN at index 2"]);
}

#[test]
fn floats_beside_something_called_a_scale_stay_floats() {
    let tensors = [
        stored("logit", DType::F32, &[1], f32s(&[3.0])),
        stored("logit_scale", DType::F32, &[1], f32s(&[4.0])),
        stored("k_scale", DType::F32, &[], f32s(&[5.0])),
    ];
    let file = File::new(safetensors(&tensors, &[].into()));
    let checkpoint = file.open().unwrap();
    assert_eq!(checkpoint.entries().len(), 3);
    assert_eq!(checkpoint.dense("logit").unwrap(), [3.0]);
}

#[test]
fn what_is_neither_float_nor_code_is_refused_beside_a_scale() {
    let tensors = [
        stored("fc.weight", DType::U8, &[1], [1]),
        stored("fc.weight_scale", DType::F32, &[1], f32s(&[1.0])),
    ];
    let file = File::new(safetensors(&tensors, &[].into()));
    refused!(file.open(), Tensor, file.path, ["`fc.weight`", "U8", "no quantization_config"]);
}

#[test]
fn a_plain_weight_beside_its_packed_self_is_refused() {
    let mut tensors = packed();
    tensors.push(stored("fc.weight", DType::F32, &[2, 3], [0; 24]));
    let folder = folder(&tensors, &channel(4));
    let path = folder.path().join("model.safetensors");
    refused!(folder.open(), Tensor, path, ["`fc.weight`", "compressed weight of the same name"]);
}

#[test]
fn the_files_own_metadata_wins_over_the_config() {
    let document = r#"{"version":1,"weights":{"fc.weight":{"shape":[2,3],"layout":"dense","kept":6,"coding":
        {"type":"int","bits":4,"symmetric":true,"strategy":"channel","scale_dtype":"F32"}}}}"#;
    let folder = Folder::new();
    let metadata = [("tersor".to_owned(), document.to_owned())].into();
    folder.put("model.safetensors", safetensors(&packed(), &metadata));
    folder.put("config.json", channel(8).to_string());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.entries()[0].describe(), "int4, channel");
}

/// Targets of the first group and `ignore` in the `config.json` that a recipe writes.
fn written_targets(tensors: &[&str], recipe: &str) -> Value {
    let tensors: Vec<_> = tensors.iter().map(|t| stored(t, DType::F32, &[4, 8], f32s(&[0.5; 32]))).collect();
    let folder = folder(&tensors, &json!({"architectures": ["A"], "model_type": "a"}));
    let (checkpoint, recipe) = (folder.open().unwrap(), Recipe::from_toml(recipe).unwrap());
    let elsewhere = Folder::new();
    let output = elsewhere.path().join("out");
    Plan::new(&checkpoint, &recipe).unwrap().run(&output, &mut |_| ControlFlow::Continue(())).unwrap();
    let config = Checkpoint::open(output).unwrap().config().unwrap()["quantization_config"].clone();
    json!([config["config_groups"]["group_0"]["targets"], config["ignore"]])
}

#[test]
fn targets_and_ignored_modules_are_those_that_a_loader_looks_for() {
    let linear = "[[step]]\nquantize = { bits = 8 }";
    let ignored = format!("ignore = [\"lm_head\"]\n{linear}");
    let embedding = "[[step]]\nclasses = [\"linear\", \"embedding\"]\nquantize = { bits = 8 }";
    let only_embedding = "[[step]]\nclasses = [\"embedding\"]\nquantize = { bits = 8 }";
    let masked = ["embed.weight", "fc.weight", "cls.predictions.transform.dense.weight"];
    let named = ["embed_in.weight", "embedding_hidden_mapping_in.weight", "fc.weight", "embed_out.weight"];
    let embedding_names = "ignore = [\"embed_out\"]\n[[step]]\nquantize = { bits = 8 }";
    let heads = json!(["embed", "re:.*lm_head$", r"re:.*cls\.predictions\.decoder$"]);
    let (tied, head) = (["embed.weight", "fc.weight"], ["embed.weight", "fc.weight", "lm_head.weight"]);
    for (tensors, recipe, expected) in [
        (&["fc.weight"][..], linear, json!([["Linear"], []])),
        (&tied, linear, json!([["Linear"], ["embed", "re:.*lm_head$"]])),
        (&head, linear, json!([["Linear"], ["embed"]])),
        (&masked, linear, json!([["Linear"], heads])),
        (&head, &ignored, json!([["Linear"], ["embed", "lm_head"]])),
        // what is no embedding, though its name sounds like one
        (&named, linear, json!([["Linear"], ["embed_in", "embedding_hidden_mapping_in"]])),
        (
            &named,
            embedding_names,
            json!([["Linear"], ["embed_in", "embedding_hidden_mapping_in", "embed_out"]]),
        ),
        (&tied, embedding, json!([["Linear", "embed"], ["re:.*lm_head$"]])),
        (&head, embedding, json!([["Linear", "embed"], []])),
        (&head, only_embedding, json!([["embed"], ["fc", "lm_head"]])),
    ] {
        assert_eq!(written_targets(tensors, recipe), expected, "{tensors:?}, {recipe}");
    }
}

/// A parameter that is no module's weight has no module that a loader could quantize.
#[test]
fn what_is_no_modules_weight_is_not_quantized_for_other_loaders() {
    let tensors = ["fc.weight", "text_projection"].map(|t| stored(t, DType::F32, &[4, 8], f32s(&[0.5; 32])));
    let folder = folder(&tensors, &json!({"architectures": ["A"], "model_type": "a"}));
    let checkpoint = folder.open().unwrap();
    let recipe = Recipe::from_toml("[[step]]\nquantize = { bits = 8 }").unwrap();
    let error = Plan::new(&checkpoint, &recipe).unwrap_err().to_string();
    for part in ["`text_projection`", "int8", "no module's `….weight`", "ignore this tensor", "`tersor`"] {
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
    let recipe = recipe.format(tersor::OutputFormat::Tersor);
    assert!(Plan::new(&checkpoint, &recipe).is_ok());
    let fp16 = Recipe::preset("fp16", tersor::PresetOptions::default()).unwrap();
    assert!(Plan::new(&checkpoint, &fp16).is_ok());
}

/// Block scales of other formats: the codes alone would be taken for values.
#[test]
fn f8_codes_under_scales_of_another_format_are_not_values() {
    for (suffix, dtype, bytes) in
        [("_scale_inv", DType::F32, f32s(&[2.0])), ("_scale", DType::F8_E8M0, vec![127])]
    {
        let scale = stored(&format!("fc.weight{suffix}"), dtype, &[1, 1], bytes);
        let tensors = [stored("fc.weight", DType::F8_E4M3, &[1, 2], [0x38, 0x40]), scale];
        let file = File::new(safetensors(&tensors, &[].into()));
        let checkpoint = file.open().unwrap();
        refused!(checkpoint.dense("fc.weight"), Tensor, file.path, ["`fc.weight`", suffix, "not supported"]);
    }
}
