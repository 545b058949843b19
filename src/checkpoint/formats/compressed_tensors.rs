//! `quantization_config` of `config.json`, as the `compressed-tensors` package, vLLM and transformers read it.
//!
//! Source: `quant_config.py`, `quant_scheme.py` and `quant_args.py` of `compressed-tensors` 0.20.

use std::num::NonZeroUsize;
use std::path::Path;

use regex::Regex;
use serde_json::{Map, Value, json};

use super::super::{Checkpoint, CheckpointError, Entry, Stored, TensorClass};
use super::{Found, stored_shape};
use crate::dtype::{DType, FloatType, Precision};
use crate::weight::{Bits, Coding, Form, Granularity, InputForm, LayoutKind};

/// The version of the package whose layout is written.
const VERSION: &str = "0.20.0";

/// Why the format has no name for a form; `None` if it has one.
pub(crate) fn why_not(form: &Form) -> Option<String> {
    if let Some(factors) = form.low_rank() {
        return Some(format!("it has no factors of low rank, and this weight has {factors}"));
    }
    if form.layout() != LayoutKind::Dense {
        return Some(format!("it has no {} layout", form.layout()));
    }
    match form.coding() {
        Coding::Float(_) => return None,
        Coding::Codebook { .. } => return Some("it has no codebooks".into()),
        Coding::F8E4M3 { .. } | Coding::Int { .. } => {}
    }
    if form.shape().len() != 2 {
        return Some(format!("it quantizes matrices only, not shape {:?}", form.shape()));
    }
    if form.is_ragged()
        && let Some(Granularity::Group(size)) = form.coding().granularity()
    {
        let (groups, rest) = (form.cols() / size.get(), form.cols() % size.get());
        return Some(format!("{} columns are {groups} groups of {size} and {rest} left over", form.cols()));
    }
    None
}

/// The `quantization_config` for some weights (module name, class and form), given the linear modules that stay as they
/// are; `None` when no weight has a form that the format knows.
pub(crate) fn write_config<'a>(
    weights: impl Iterator<Item = (&'a str, TensorClass, &'a Form)>,
    untouched_linear: &[&str],
) -> Option<Value> {
    type Members<'a> = Vec<(&'a str, TensorClass)>;
    let mut groups: Vec<([Value; 2], &'static str, Members<'_>)> = Vec::new();
    let mut ignore: Vec<&str> = untouched_linear.to_vec();
    for (module, class, form) in weights {
        let (Some(args), None) = (arguments(form.coding()), why_not(form)) else {
            ignore.push(module);
            continue;
        };
        let args = [args, form.input().map_or(Value::Null, input_arguments)];
        let format = match form.coding() {
            Coding::F8E4M3 { .. } => "float-quantized",
            _ if form.is_bytes() => "int-quantized",
            _ => "pack-quantized",
        };
        match groups.iter_mut().find(|(a, f, _)| *a == args && *f == format) {
            Some((_, _, modules)) => modules.push((module, class)),
            None => groups.push((args, format, vec![(module, class)])),
        }
    }
    let format = match groups.as_slice() {
        [] => return None,
        [(_, first, _), rest @ ..] if rest.iter().all(|(_, f, _)| f == first) => *first,
        _ => "mixed-precision",
    };
    let single = groups.len() == 1;
    let config_groups: Map<String, Value> = groups
        .into_iter()
        .enumerate()
        .map(|(i, ([weights, inputs], format, modules))| {
            // one scheme for all is what every loader knows best: by class, with exceptions
            let (linear, others): (Vec<_>, Vec<_>) =
                modules.into_iter().partition(|(_, class)| single && *class == TensorClass::Linear);
            let class = (!linear.is_empty()).then_some("Linear");
            let targets: Vec<&str> = class.into_iter().chain(others.into_iter().map(|(m, _)| m)).collect();
            let group = json!({
                "targets": targets,
                "weights": weights,
                "input_activations": inputs,
                "output_activations": null,
                "format": format,
            });
            (format!("group_{i}"), group)
        })
        .collect();
    Some(json!({
        "version": VERSION,
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": config_groups,
        "ignore": ignore,
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
        "sparsity_config": {},
        "transform_config": {},
    }))
}

/// Quantization arguments of a coding; `None` for plain floats.
fn arguments(coding: Coding) -> Option<Value> {
    let (bits, kind, symmetric, granularity) = match coding {
        Coding::Float(_) | Coding::Codebook { .. } => return None,
        Coding::F8E4M3 { granularity, .. } => (8, "float", true, granularity),
        Coding::Int { bits, symmetric, granularity, .. } => (bits.get(), "int", symmetric, granularity),
    };
    let mut args = json!({
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "strategy": "",
        "group_size": null,
        "dynamic": false,
    });
    args["strategy"] = match granularity {
        Granularity::Tensor => "tensor",
        Granularity::Channel => "channel",
        Granularity::Group(_) => "group",
        Granularity::Block(..) => "block",
    }
    .into();
    match granularity {
        Granularity::Group(size) => args["group_size"] = size.get().into(),
        Granularity::Block(rows, cols) => args["block_structure"] = json!([rows, cols]),
        _ => {}
    }
    Some(args)
}

/// Quantization arguments of a layer's input.
fn input_arguments(input: InputForm) -> Value {
    let (dynamic, symmetric) = match input {
        InputForm::Dynamic { symmetric } => (true, symmetric),
        InputForm::Static { symmetric } => (false, symmetric),
    };
    json!({
        "num_bits": 8,
        "type": "int",
        "symmetric": symmetric,
        "strategy": if dynamic { "token" } else { "tensor" },
        "group_size": null,
        "dynamic": dynamic,
    })
}

/// How `input_activations` quantize the input of a layer; `None` for what tersor does not know.
fn read_input(arguments: &Value) -> Option<InputForm> {
    // `null` is no quantization, and lacks every key
    let arguments = arguments.as_object()?;
    let given = |key: &str| arguments.get(key).filter(|v| !v.is_null());
    let is = |key: &str, value: &str| given(key).is_none_or(|v| v == value);
    let symmetric = given("symmetric").map_or(Some(true), Value::as_bool)?;
    let dynamic = given("dynamic").map_or(Some(false), Value::as_bool)?;
    let strategy = given("strategy").and_then(Value::as_str);
    let is_int8 = given("num_bits").is_none_or(|bits| bits == 8) && is("type", "int");
    match (dynamic, strategy) {
        _ if !is_int8 || given("group_size").is_some() => None,
        (true, Some("token")) => Some(InputForm::Dynamic { symmetric }),
        (false, None | Some("tensor")) => Some(InputForm::Static { symmetric }),
        _ => None,
    }
}

/// The parts of a `quantization_config` that say how weights are stored.
pub(crate) struct QuantizationConfig {
    groups: Vec<Group>,
    ignore: Vec<Target>,
    /// Whether codes never straddle two words, as before version 0.18: that differs for 3, 5, 6 and 7 bits.
    pads_words: bool,
}

struct Group {
    targets: Vec<Target>,
    args: Arguments,
}

enum Target {
    Module(String),
    Pattern(Regex),
    /// A class of modules, such as `Linear`: which modules belong to it shows in the tensors that are there.
    Class(String),
}

#[derive(Clone, Copy)]
struct Arguments {
    int: bool,
    bits: Bits,
    symmetric: bool,
    granularity: Granularity,
    input: Option<InputForm>,
}

impl QuantizationConfig {
    /// Reads `quantization_config`; `None` when there is none or it belongs to another method.
    pub(crate) fn from_config(path: &Path, config: &Value) -> Result<Option<Self>, CheckpointError> {
        let Some(quantization) = config.get("quantization_config").filter(|q| !q.is_null()) else {
            return Ok(None);
        };
        if quantization.get("quant_method").and_then(Value::as_str) != Some("compressed-tensors") {
            return Ok(None);
        }
        let bad = |reason: String| CheckpointError::config(path, format!("quantization_config: {reason}"));
        let groups = quantization.get("config_groups").and_then(Value::as_object);
        let groups = groups.ok_or_else(|| bad("has no `config_groups`".into()))?;
        let groups = groups
            .iter()
            .filter_map(|(name, group)| {
                let weights = group.get("weights").filter(|w| !w.is_null())?;
                let read = || -> Result<Group, String> {
                    let input = group.get("input_activations").and_then(read_input);
                    let mut args = read_arguments(weights)?;
                    args.input = input.filter(|_| args.int);
                    Ok(Group { targets: read_targets(group)?, args })
                };
                Some(read().map_err(|reason| bad(format!("{name}: {reason}"))))
            })
            .collect::<Result<_, _>>()?;
        let ignore = match quantization.get("ignore").filter(|i| !i.is_null()) {
            Some(names) => {
                let names = names.as_array().ok_or_else(|| bad("`ignore` is no list".into()))?;
                read_names(names).map_err(|reason| bad(format!("`ignore`: {reason}")))?
            }
            None => Vec::new(),
        };
        let version = quantization.get("version").and_then(Value::as_str).unwrap_or_default();
        Ok(Some(Self { groups, ignore, pads_words: is_before_0_18(version) }))
    }

    /// Whether a module is named as one that stays as it is.
    fn ignores(&self, module: &str) -> bool {
        self.ignore.iter().any(|target| match target {
            Target::Module(name) => name == module,
            Target::Pattern(pattern) => pattern.is_match(module),
            Target::Class(_) => false,
        })
    }

    /// The arguments for a module: those of the group that names it, else of one whose pattern fits, else of one
    /// that names a class.
    fn arguments_of(&self, module: &str) -> Option<Arguments> {
        self.arguments_where(module, |_| true)
    }

    /// The same, where only the classes that fit count.
    fn arguments_where(&self, module: &str, is_of: impl Fn(&str) -> bool) -> Option<Arguments> {
        let rank = |target: &Target| match target {
            Target::Module(name) => (name == module).then_some(0),
            Target::Pattern(pattern) => pattern.is_match(module).then_some(1),
            Target::Class(class) => is_of(class).then_some(2),
        };
        self.groups
            .iter()
            .filter_map(|g| Some((g.targets.iter().filter_map(rank).min()?, g.args)))
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, args)| args)
    }

    /// How it misleads a loader about a matrix that is stored in `form`, or plainly; `None` when it does not.
    pub(crate) fn clash(&self, entry: &Entry) -> Option<String> {
        let module = entry.name.strip_suffix(".weight").filter(|_| entry.shape.len() == 2)?;
        let is_of = |class: &str| class == "Linear" && entry.class == TensorClass::Linear;
        let described = self.arguments_where(module, is_of).filter(|_| !self.ignores(module));
        let stored = entry.describe();
        match (&entry.stored, described) {
            (Stored::Compressed(form), Some(args)) if is_quantized(form) => {
                (!args.describes(form)).then(|| format!("config.json describes another form than {stored}"))
            }
            (Stored::Compressed(form), None) if is_quantized(form) => Some(format!(
                "it is {stored}, but no group of config.json names `{module}`, or `ignore` does"
            )),
            (_, Some(_)) => {
                Some(format!("it is {stored}, but config.json has `{module}` quantized; add it to `ignore`"))
            }
            (_, None) => None,
        }
    }
}

/// Whether a loader needs a `quantization_config` for a weight, and can have one.
pub(crate) fn is_quantized(form: &Form) -> bool {
    form.coding().granularity().is_some() && why_not(form).is_none()
}

impl Arguments {
    fn describes(&self, form: &Form) -> bool {
        self.input == form.input() && self.describes_coding(form.coding())
    }

    fn describes_coding(&self, coding: Coding) -> bool {
        match coding {
            Coding::Float(_) | Coding::Codebook { .. } => false,
            Coding::F8E4M3 { granularity, .. } => !self.int && self.granularity == granularity,
            Coding::Int { bits, symmetric, granularity, .. } => {
                self.int && (self.bits, self.symmetric, self.granularity) == (bits, symmetric, granularity)
            }
        }
    }
}

/// What a `quantization_config` says beyond the form of weights: writing it anew would drop that. Empty when there is
/// nothing of the kind. With `keeps_inputs` the quantization of inputs is written anew too, as far as it is known.
pub(crate) fn beyond_weights(quantization: &Value, keeps_inputs: bool) -> Vec<String> {
    let says = |value: &Value| match value {
        Value::Null => false,
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    };
    let mut found = Vec::new();
    for (group, scheme) in quantization.get("config_groups").and_then(Value::as_object).into_iter().flatten()
    {
        for key in ["input_activations", "output_activations"] {
            let is_kept =
                |value: &Value| keeps_inputs && key == "input_activations" && read_input(value).is_some();
            if scheme.get(key).is_some_and(|value| says(value) && !is_kept(value)) {
                found.push(format!("`{key}` of {group}"));
            }
        }
    }
    for key in ["kv_cache_scheme", "transform_config", "sparsity_config"] {
        if quantization.get(key).is_some_and(says) {
            found.push(format!("`{key}`"));
        }
    }
    found
}

/// Whether a version is known to be lower than 0.18.
fn is_before_0_18(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    matches!((parts.next(), parts.next()), (Some(Ok(0)), Some(Ok(0..18))))
}

fn read_targets(group: &Value) -> Result<Vec<Target>, String> {
    read_names(group.get("targets").and_then(Value::as_array).ok_or("has no list of `targets`")?)
}

fn read_names(names: &[Value]) -> Result<Vec<Target>, String> {
    names
        .iter()
        .map(|target| {
            let target = target.as_str().ok_or_else(|| format!("target {target} is no string"))?;
            Ok(match target.strip_prefix("re:") {
                // the package matches from the start of the name
                Some(pattern) => Target::Pattern(
                    Regex::new(&format!("^(?:{pattern})")).map_err(|e| format!("target `{target}`: {e}"))?,
                ),
                None if target.contains('.') => Target::Module(target.to_owned()),
                None if target.starts_with(char::is_uppercase) => Target::Class(target.to_owned()),
                None => Target::Module(target.to_owned()),
            })
        })
        .collect()
}

fn read_arguments(weights: &Value) -> Result<Arguments, String> {
    let given = |key: &str| weights.get(key).filter(|v| !v.is_null());
    let text = |key: &str| match given(key) {
        None => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or_else(|| format!("`{key}` cannot be {value}")),
    };
    let bits = match given("num_bits") {
        None => 8,
        Some(value) => value.as_u64().ok_or_else(|| format!("`num_bits` cannot be {value}"))?,
    };
    let kind = text("type")?.unwrap_or("int");
    let size = |v: &Value| {
        v.as_u64()
            .and_then(|n| NonZeroUsize::new(n as usize))
            .ok_or_else(|| format!("{v} is no group or block size"))
    };
    let group_size = given("group_size");
    let strategy = text("strategy")?;
    let granularity = match (strategy, group_size) {
        (Some("tensor"), _) | (None, None) => Granularity::Tensor,
        (Some("channel"), _) => Granularity::Channel,
        (None, Some(group_size)) if group_size.as_i64() == Some(-1) => Granularity::Channel,
        (Some("group") | None, Some(group_size)) => Granularity::Group(size(group_size)?),
        (Some("block"), _) => {
            match weights.get("block_structure").and_then(Value::as_array).map(Vec::as_slice) {
                Some([rows, cols]) => Granularity::Block(size(rows)?, size(cols)?),
                _ => return Err("strategy `block` needs `block_structure: [rows, cols]`".into()),
            }
        }
        (Some("group"), None) => return Err("strategy `group` needs a `group_size`".into()),
        (Some(other), _) => return Err(format!("strategy `{other}` is not supported")),
    };
    let unsupported = || format!("{kind} weights of {bits} bits are not supported");
    let bits = u8::try_from(bits).ok().and_then(Bits::new).ok_or_else(unsupported)?;
    let int = match kind {
        "int" => true,
        "float" if bits.get() == 8 => false,
        _ => return Err(unsupported()),
    };
    let symmetric = match given("symmetric") {
        None => true,
        Some(value) => value.as_bool().ok_or_else(|| format!("`symmetric` cannot be {value}"))?,
    };
    if !int && !symmetric {
        return Err("asymmetric float weights are not supported".into());
    }
    Ok(Arguments { int, bits, symmetric, granularity, input: None })
}

/// The form of the weight `name`, which has a `name_scale`; `None` when that is something else.
pub(super) fn find_form(
    checkpoint: &Checkpoint,
    name: &str,
    config: Option<&QuantizationConfig>,
) -> Result<Option<Found>, CheckpointError> {
    let scale_name = format!("{name}_scale");
    let scale = checkpoint.tensor(&scale_name)?;
    let Some(precision) = FloatType::of(scale.dtype).map(Precision::of) else { return Ok(None) };
    let packed = format!("{name}_packed");
    let shape_name = format!("{name}_shape");
    let mut tensors = vec![];
    let (shape, dtype) = if checkpoint.has_tensor(&packed) {
        let shape = checkpoint.tensor(&shape_name)?;
        tensors.extend([packed, shape_name.clone()]);
        (stored_shape(&shape, &shape_name)?, DType::I32)
    } else if checkpoint.has_tensor(name) {
        let weight = checkpoint.tensor(name)?;
        tensors.push(name.to_owned());
        (weight.shape.to_vec(), weight.dtype)
    } else {
        return Ok(None);
    };
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let args = config.and_then(|c| c.arguments_of(module));
    let bad = |reason: String| CheckpointError::tensor(scale.path, name, reason);
    if checkpoint.has_tensor(&format!("{name}_g_idx")) {
        return Err(bad(
            "has a `g_idx`: its groups follow the activations' order, which is not supported".into()
        ));
    }
    if let (DType::I32, Some(args), Some(true)) = (dtype, args, config.map(|c| c.pads_words))
        && !args.bits.get().is_power_of_two()
    {
        return Err(bad(format!(
            "was packed by a version of compressed-tensors before 0.18, which lays out {}-bit codes differently; write \
             it again with a newer one",
            args.bits.get()
        )));
    }
    let coding = match (dtype, args) {
        (DType::F8_E4M3, Some(args)) if !args.int => {
            Coding::F8E4M3 { granularity: args.granularity, scales: precision }
        }
        (DType::F8_E4M3, None) if checkpoint.has_tensor(&format!("{name}_zero_point")) => {
            return Err(bad("has zero points; asymmetric float weights are not supported".into()));
        }
        (DType::F8_E4M3, None) => {
            // no configuration: one scale, or one per row, cannot be mistaken
            let rows = shape.first().copied().unwrap_or(1);
            let granularity = match scale.shape {
                [] | [1] => Granularity::Tensor,
                [n, 1] if *n == rows => Granularity::Channel,
                other => {
                    return Err(bad(format!(
                        "its scale has shape {other:?}, which needs a quantization_config in config.json to be understood"
                    )));
                }
            };
            Coding::F8E4M3 { granularity, scales: precision }
        }
        (DType::I8 | DType::I32, Some(Arguments { int: true, bits, symmetric, granularity, .. })) => {
            Coding::Int { bits, symmetric, granularity, scales: precision }
        }
        // a float beside something that merely is called a scale
        (dtype, None) if FloatType::of(dtype).is_some() => return Ok(None),
        (dtype, Some(_)) if FloatType::of(dtype).is_some() && config.is_some_and(|c| c.ignores(module)) => {
            return Ok(None);
        }
        (dtype, None) => {
            let reason =
                format!("is quantized ({dtype:?}), but config.json has no quantization_config that says how");
            return Err(bad(reason));
        }
        (dtype, Some(_)) => {
            return Err(bad(format!(
                "holds {dtype:?}, which its group in quantization_config does not describe"
            )));
        }
    };
    tensors.push(scale_name);
    if let Coding::Int { symmetric: false, .. } = coding {
        let zero_point = format!("{name}_zero_point");
        checkpoint.tensor(&zero_point)?;
        tensors.push(zero_point);
    }
    let input = args.and_then(|args| args.input);
    if let Some(InputForm::Static { symmetric }) = input {
        for part in ["scale"].into_iter().chain((!symmetric).then_some("zero_point")) {
            let part = super::input_part(name, part);
            checkpoint.tensor(&part)?;
            tensors.push(part);
        }
    }
    let kept = shape.iter().product();
    let form = Form::new(&shape, LayoutKind::Dense, coding, kept)
        .and_then(|form| form.with_input(input))
        .map_err(CheckpointError::weight(scale.path, name))?;
    Ok(Some(Found { form, tensors }))
}
