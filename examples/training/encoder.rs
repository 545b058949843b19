//! The blocks of a BERT encoder as candle's variables, for batches of sentences of the same length.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, D, Device, Layout, Shape, Tensor, Var, bail};
use candle_nn::ops::softmax;
use tersor::Checkpoint;
use tersor::candle::tensor_of;

use super::Result;

/// The blocks, and the parameters of all of them, by tensor name.
pub(crate) struct Blocks {
    pub(crate) parameters: BTreeMap<String, Var>,
    count: usize,
    heads: usize,
    epsilon: f64,
}

impl Blocks {
    /// Takes the blocks of a checkpoint of the `model_type` `bert`.
    pub(crate) fn open(checkpoint: &Checkpoint) -> Result<Self> {
        let number = |key: &str| {
            let value = checkpoint.config().and_then(|config| config[key].as_f64());
            value.ok_or_else(|| format!("{}: config.json lacks `{key}`", checkpoint.path().display()))
        };
        let mut parameters = BTreeMap::new();
        for entry in checkpoint.entries().iter().filter(|entry| entry.name.starts_with("encoder.layer.")) {
            let values = tensor_of(&checkpoint.weight(&entry.name)?, &Device::Cpu)?;
            parameters.insert(entry.name.clone(), Var::from_tensor(&values)?);
        }
        let (count, heads) = (number("num_hidden_layers")? as usize, number("num_attention_heads")? as usize);
        Ok(Self { parameters, count, heads, epsilon: number("layer_norm_eps")? })
    }

    /// What the last block gives, of what the embedding gives for `sentences` sentences of the same length, one after the
    /// other: `[tokens, hidden]`, both.
    pub(crate) fn forward(&self, embedded: &Tensor, sentences: usize) -> candle_core::Result<Tensor> {
        (0..self.count).try_fold(embedded.clone(), |hidden, block| {
            let block = Block { all: self, prefix: format!("encoder.layer.{block}.") };
            block.forward(&hidden, sentences)
        })
    }
}

struct Block<'a> {
    all: &'a Blocks,
    prefix: String,
}

impl Block<'_> {
    fn forward(&self, hidden: &Tensor, sentences: usize) -> candle_core::Result<Tensor> {
        let attended = self.attend(hidden, sentences)?;
        let attended = self.linear("attention.output.dense", &attended)?;
        let hidden = self.norm("attention.output.LayerNorm", &(hidden + attended)?)?;
        let inner = self.linear("intermediate.dense", &hidden)?.apply_op1(Gelu::default())?;
        let outer = self.linear("output.dense", &inner)?;
        self.norm("output.LayerNorm", &(hidden + outer)?)
    }

    /// Attention of each sentence to itself.
    fn attend(&self, hidden: &Tensor, sentences: usize) -> candle_core::Result<Tensor> {
        let (tokens, width) = hidden.dims2()?;
        let (heads, size) = (self.all.heads, width / self.all.heads);
        let part = |name: &str| {
            let part = self.linear(name, hidden)?;
            part.reshape((sentences, tokens / sentences, heads, size))?.transpose(1, 2)?.contiguous()
        };
        let (query, key, value) =
            (part("attention.self.query")?, part("attention.self.key")?, part("attention.self.value")?);
        let scores = (query.matmul(&key.t()?)? * (size as f64).sqrt().recip())?;
        let attended = softmax(&scores, D::Minus1)?.matmul(&value)?;
        attended.transpose(1, 2)?.reshape((tokens, width))
    }

    fn parameter(&self, name: &str) -> &Tensor {
        &self.all.parameters[&format!("{}{name}", self.prefix)]
    }

    fn linear(&self, name: &str, x: &Tensor) -> candle_core::Result<Tensor> {
        let product = x.matmul(&self.parameter(&format!("{name}.weight")).t()?)?;
        product.broadcast_add(self.parameter(&format!("{name}.bias")))
    }

    fn norm(&self, name: &str, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
        let x = x.broadcast_div(&(variance + self.all.epsilon)?.sqrt()?)?;
        let x = x.broadcast_mul(self.parameter(&format!("{name}.weight")))?;
        x.broadcast_add(self.parameter(&format!("{name}.bias")))
    }
}

/// x · Φ(x), with its slope at hand for the way back: candle's own takes many times as long.
#[derive(Default)]
struct Gelu {
    slope: OnceLock<Tensor>,
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("gelu takes contiguous tensors") };
        let (values, slopes): (Vec<f32>, Vec<f32>) =
            x.as_slice::<f32>()?[start..end].iter().map(|x| gelu(*x)).unzip();
        // an operation is made for one tensor: nothing was kept before
        self.slope.set(Tensor::from_vec(slopes, layout.shape(), &Device::Cpu)?).ok();
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, outer: &Tensor) -> candle_core::Result<Option<Tensor>> {
        self.slope.get().map(|slope| slope * outer).transpose()
    }
}

/// Value and slope; Φ by Abramowitz and Stegun (1964), 7.1.26, which is right to 1.5e-7.
fn gelu(x: f32) -> (f32, f32) {
    let bell = (-0.5 * x * x).exp();
    let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
    let tail =
        t * (0.254_829_6 + t * (-0.284_496_74 + t * (1.421_413_7 + t * (-1.453_152 + t * 1.061_405_4))));
    let upper = 0.5 * tail * bell;
    let below = if x < 0.0 { upper } else { 1.0 - upper };
    (x * below, below + x * bell * 0.398_942_3)
}
