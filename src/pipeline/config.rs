//! What `config.json` says about the output.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::PipelineError;
use super::plan::PlannedTensor;
use crate::checkpoint::formats::{self, compressed_tensors};
use crate::checkpoint::{Checkpoint, CheckpointError, Stored, TensorClass};
use crate::dtype::{FloatType, Precision};
use crate::weight::{Coding, Form};

/// The form of a tensor that is stored as more or other than a plain tensor.
pub(super) fn described<'a>(tensor: &'a PlannedTensor<'_>) -> Option<&'a Form> {
    let form = tensor.form()?;
    (!form.is_plain()).then_some(form)
}

/// `config.json` of the output, if it has one: the source's, with how the weights are stored.
pub(super) fn plan_config(
    checkpoint: &Checkpoint,
    tensors: &[PlannedTensor<'_>],
    entropy: bool,
) -> Result<Option<Value>, PipelineError> {
    // only a weight has a module of its name, which a loader could find
    let modules = || tensors.iter().filter(|t| t.entry.name.ends_with(".weight"));
    let weights = modules().filter_map(|t| Some((t.entry.module(), t.entry.class, described(t)?)));
    // whatever its name, a matrix may be a linear module to whoever loads the model
    let mut untouched: Vec<&str> = modules()
        .filter(|t| t.entry.shape.len() == 2 && described(t).is_none())
        .map(|t| t.entry.module())
        .collect();
    // a head that shares the embedding's weight has no tensor here, but is a linear module to whoever loads the model
    let has_embedding = tensors.iter().any(|t| t.entry.class == TensorClass::Embedding);
    let has = |part: &str| tensors.iter().any(|t| t.entry.module().contains(part));
    if has_embedding && !has("lm_head") && !has("embed_out") {
        untouched.push("re:.*lm_head$");
    }
    if has_embedding && has("cls.predictions.") && !has("cls.predictions.decoder") {
        untouched.push(r"re:.*cls\.predictions\.decoder$");
    }
    // nobody else reads coded tensors
    let quantization = if entropy { None } else { compressed_tensors::write_config(weights, &untouched) };
    let mut config = checkpoint.config().cloned();
    let foreign =
        config.as_ref().and_then(|c| c.get("quantization_config")).and_then(|q| q.get("quant_method"));
    if let Some(method) = foreign.and_then(Value::as_str)
        && method != "compressed-tensors"
        && tensors.iter().any(PlannedTensor::is_compressed)
    {
        let path: PathBuf = checkpoint.path().join("config.json");
        let reason = format!("the model is already quantized by `{method}`; start from the original model");
        return Err(CheckpointError::Config { path, reason }.into());
    }
    let theirs = config.as_ref().and_then(|c| c.get("quantization_config"));
    if let Some(theirs) = theirs.filter(|q| foreign_is_ours(Some(q)))
        && let beyond = compressed_tensors::beyond_weights(theirs, keeps_inputs(tensors))
        && !beyond.is_empty()
    {
        let reason = format!(
            "quantization_config has {}, which the output would lose: tersor writes how weights are stored, and nothing \
             else; start from the original model",
            beyond.join(", ")
        );
        return Err(CheckpointError::config(&checkpoint.path().join("config.json"), reason).into());
    }
    if let Some(quantization) = quantization {
        config.get_or_insert_with(|| json!({}))["quantization_config"] = quantization;
    } else if let Some(Value::Object(config)) = &mut config
        && foreign_is_ours(config.get("quantization_config"))
    {
        config.remove("quantization_config");
    }
    if let (Some(config), Some(dtype)) = (&mut config, common_dtype(tensors)) {
        for key in ["torch_dtype", "dtype"] {
            if config.get(key).is_some_and(Value::is_string) {
                config[key] = dtype.into();
            }
        }
    }
    Ok(config)
}

/// Whether layers' inputs are quantized, and stay so.
fn keeps_inputs(tensors: &[PlannedTensor<'_>]) -> bool {
    let mut inputs = tensors.iter().filter_map(|t| match &t.entry.stored {
        Stored::Compressed(before) => Some((before.input()?, t.form().and_then(Form::input))),
        Stored::Plain(_) => None,
    });
    let mut any = false;
    inputs.all(|(before, after)| {
        any = true;
        after == Some(before)
    }) && any
}

fn foreign_is_ours(quantization: Option<&Value>) -> bool {
    let method = quantization.and_then(|q| q.get("quant_method")).and_then(Value::as_str);
    method == Some("compressed-tensors")
}

/// The name that `config.json` has for the dtype of all floats, if they have been converted to one.
fn common_dtype(tensors: &[PlannedTensor<'_>]) -> Option<&'static str> {
    let converted = tensors
        .iter()
        .any(|t| t.is_compressed() && t.form().is_some_and(|f| matches!(f.coding(), Coding::Float(_))));
    let mut precisions = tensors.iter().filter(|t| t.entry.elements() > 0).filter_map(|t| match t.form() {
        Some(form) => Some(Some(formats::precision_of(form.coding()))),
        None => match t.entry.stored {
            Stored::Plain(dtype) => FloatType::of(dtype).map(|f| (f.size() < 8).then(|| Precision::of(f))),
            Stored::Compressed(_) => None,
        },
    });
    let first = precisions.next()??;
    (converted && precisions.all(|p| p == Some(first))).then_some(match first {
        Precision::F32 => "float32",
        Precision::F16 => "float16",
        Precision::Bf16 => "bfloat16",
    })
}
