use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::{Checkpoint, TensorClass};
use crate::error::nearest;
use crate::model::ModelError;

/// Scale of a pixel when the configuration names none: Caffe's 1/256.
const PIXEL_SCALE: f32 = 1.0 / 256.0;

/// A network as a list of layers: `config.json` with `"model_type": "sequential"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SequentialConfig {
    /// Shape of one input: `[channels, height, width]`, or `[features]`.
    pub input_shape: Vec<usize>,
    /// What an 8-bit pixel is multiplied by.
    #[serde(default = "default_pixel_scale")]
    pub pixel_scale: f32,
    /// The layers, first to last.
    pub layers: Vec<LayerConfig>,
}

fn default_pixel_scale() -> f32 {
    PIXEL_SCALE
}

/// One layer of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum LayerConfig {
    /// `y = x · Wᵀ + b`, with tensors `NAME.weight` `[out, in]` and, if there is one, `NAME.bias`.
    Linear {
        /// Name of the layer's tensors.
        name: String,
    },
    /// Cross-correlation with `NAME.weight` `[out, in, height, width]`.
    #[serde(rename = "conv2d")]
    Conv2d {
        /// Name of the layer's tensors.
        name: String,
        /// Zeros around the image.
        #[serde(default)]
        padding: usize,
        /// Distance between neighbouring windows.
        #[serde(default = "one")]
        stride: usize,
    },
    /// `max(x, 0)`.
    Relu,
    /// Largest value of every `size × size` window, windows side by side; what is left over at the edge is dropped.
    #[serde(rename = "max_pool2d")]
    MaxPool2d {
        /// Side of the window.
        size: usize,
    },
    /// From `[channels, height, width]` to `[features]`.
    Flatten,
}

fn one() -> usize {
    1
}

/// Keys that every `config.json` may have, and that say nothing about how the network runs.
const COMMON_KEYS: [&str; 9] = [
    "model_type",
    "architectures",
    "quantization_config",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "_name_or_path",
    "id2label",
    "label2id",
];

/// A key that is not understood may change what the network computes.
fn check_keys(config: &Value) -> Result<(), String> {
    let unknown = |value: &Value, valid: &[&str], silent: &[&str], place: &str| {
        let keys = value.as_object().into_iter().flat_map(serde_json::Map::keys);
        let mut keys = keys.filter(|key| !valid.contains(&key.as_str()) && !silent.contains(&key.as_str()));
        let Some(key) = keys.next() else { return Ok(()) };
        let suggestion = match nearest(key, valid) {
            Some(nearest) => format!("; did you mean `{nearest}`?"),
            None => String::new(),
        };
        Err(format!("unknown key `{key}`{place}{suggestion} (valid: {})", valid.join(", ")))
    };
    unknown(config, &["input_shape", "pixel_scale", "layers"], &COMMON_KEYS, "")?;
    let layers = config.get("layers").and_then(Value::as_array);
    for (i, layer) in layers.into_iter().flatten().enumerate() {
        let valid: &[&str] = match layer.get("type").and_then(Value::as_str) {
            Some("linear") => &["type", "name"],
            Some("conv2d") => &["type", "name", "padding", "stride"],
            Some("max_pool2d") => &["type", "size"],
            Some("relu" | "flatten") => &["type"],
            // the reader says which types there are
            _ => continue,
        };
        unknown(layer, valid, &[], &format!(" of layer {}", i + 1))?;
    }
    Ok(())
}

impl SequentialConfig {
    /// The network of a checkpoint: as `config.json` describes it, or, without a description, the only chain in which
    /// its linear layers fit together, with ReLU between.
    ///
    /// # Errors
    /// When the description is malformed, has a key that is unknown or is for another kind of model, or there is no such
    /// chain, or it leaves tensors unexplained (those of a normalization, say).
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        let bad = |reason: String| ModelError::Architecture { path: checkpoint.path().to_path_buf(), reason };
        let model_type = checkpoint.config().and_then(|c| c.get("model_type"));
        match (checkpoint.config(), model_type.and_then(|t| t.as_str())) {
            (Some(config), Some("sequential")) => {
                check_keys(config).map_err(|reason| bad(format!("config.json: {reason}")))?;
                serde_json::from_value(config.clone()).map_err(|e| bad(format!("config.json: {e}")))
            }
            (_, Some(other)) => Err(bad(format!(
                "config.json says model_type `{other}`; tersor runs `sequential` (its tensors can still be inspected and compressed)"
            ))),
            (_, None) => {
                let chain = Self::chain(checkpoint).ok_or_else(|| {
                    bad("there is no config.json with `model_type: sequential`, and the linear layers do not form one \
                         chain from input to output".into())
                })?;
                let unexplained = chain.unexplained(checkpoint);
                let Some(first) = unexplained.first() else { return Ok(chain) };
                let others = match unexplained.len() - 1 {
                    0 => String::new(),
                    n => format!(" and {n} others"),
                };
                Err(bad(format!(
                    "there is no config.json with `model_type: sequential`, and the chain of its linear layers does not \
                     explain the tensor `{first}`{others}; describe the network in config.json, if it has no other \
                     layers than tersor runs"
                )))
            }
        }
    }

    /// The tensors that are no weight or bias of a layer.
    fn unexplained<'a>(&self, checkpoint: &'a Checkpoint) -> Vec<&'a str> {
        let belongs = |tensor: &str| {
            self.layers.iter().any(|layer| match layer {
                LayerConfig::Linear { name } | LayerConfig::Conv2d { name, .. } => {
                    tensor.strip_prefix(name.as_str()).is_some_and(|part| matches!(part, ".weight" | ".bias"))
                }
                _ => false,
            })
        };
        checkpoint.entries().iter().map(|e| e.name.as_str()).filter(|name| !belongs(name)).collect()
    }

    /// Linear layers in the only order in which every layer takes what the one before gives.
    fn chain(checkpoint: &Checkpoint) -> Option<Self> {
        let mut left: Vec<(&str, usize, usize)> = checkpoint
            .entries()
            .iter()
            .filter(|e| e.class == TensorClass::Linear && e.name.ends_with(".weight"))
            .map(|e| (e.module(), e.shape[0], e.shape[1]))
            .collect();
        if checkpoint.entries().iter().any(|e| e.class == TensorClass::Conv) {
            return None;
        }
        // the first layer is the only one whose input no layer gives
        let mut firsts = (0..left.len()).filter(|i| left.iter().all(|(_, out, _)| *out != left[*i].2));
        let first = firsts.next().filter(|_| firsts.next().is_none())?;
        let features = left[first].2;
        let mut width = features;
        let mut layers = vec![LayerConfig::Flatten];
        while !left.is_empty() {
            let mut fitting = (0..left.len()).filter(|i| left[*i].2 == width);
            let next = fitting.next().filter(|_| fitting.next().is_none())?;
            let (name, out, _) = left.swap_remove(next);
            layers.push(LayerConfig::Linear { name: name.to_owned() });
            layers.push(LayerConfig::Relu);
            width = out;
        }
        layers.pop();
        Some(Self { input_shape: vec![features], pixel_scale: PIXEL_SCALE, layers })
    }
}
