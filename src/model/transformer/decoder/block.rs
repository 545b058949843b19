use rayon::prelude::*;

use super::super::decoder_config::DecoderConfig;
use super::super::rope::Angles;
use super::super::tensors::Tensors;
use crate::kernels::activate::{self, Activation};
use crate::kernels::attention::{KeyValues, Visible, attend};
use crate::kernels::normalize::rms_norm;
use crate::model::linear::{Linear, forward_all, observe};
use crate::model::{ModelError, Tap};

/// What all blocks share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) heads: usize,
    pub(super) key_value_heads: usize,
    pub(super) head_dim: usize,
    pub(super) epsilon: f32,
    pub(super) activation: Activation,
}

/// Attention and a feed-forward layer.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) input_norm: Vec<f32>,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    /// Of every head's query and key.
    pub(super) query_key_norm: Option<[Vec<f32>; 2]>,
    pub(super) window: Option<usize>,
    pub(super) feed_forward_norm: Vec<f32>,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

impl Shape {
    /// Heads of queries that share one of keys and values.
    pub(super) fn group(&self) -> usize {
        self.heads / self.key_value_heads
    }

    /// What scores are multiplied by.
    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Room for what lies between the layers of a block, used again by the next.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    normed: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    output: Vec<f32>,
}

impl Block {
    /// Its linear layers, in the order in which they are run.
    pub(super) fn linears(&self) -> [&Linear; 7] {
        let Self { query, key, value, output, gate, up, down, .. } = self;
        [query, key, value, output, gate, up, down]
    }

    pub(super) fn open(
        tensors: &Tensors<'_>,
        config: &DecoderConfig,
        block: usize,
    ) -> Result<Self, ModelError> {
        let DecoderConfig { hidden, intermediate, head_dim, .. } = *config;
        let (queries, keys) = (config.heads * head_dim, config.key_value_heads * head_dim);
        let at = |name: &str| format!("layers.{block}.{name}");
        let norm = |name: &str, len| tensors.vector(&at(&format!("{name}.weight")), len);
        let linear = |name: &str, shape, bias| tensors.linear(&at(name), shape, bias);
        let (qkv_bias, mlp_bias) = (config.query_key_value_bias, config.feed_forward_bias);
        let query_key_norm = if config.query_key_norm {
            Some([norm("self_attn.q_norm", head_dim)?, norm("self_attn.k_norm", head_dim)?])
        } else {
            None
        };
        Ok(Self {
            input_norm: norm("input_layernorm", hidden)?,
            query: linear("self_attn.q_proj", [queries, hidden], qkv_bias)?,
            key: linear("self_attn.k_proj", [keys, hidden], qkv_bias)?,
            value: linear("self_attn.v_proj", [keys, hidden], qkv_bias)?,
            output: linear("self_attn.o_proj", [hidden, queries], config.output_bias)?,
            query_key_norm,
            window: config.window(block),
            feed_forward_norm: norm("post_attention_layernorm", hidden)?,
            gate: linear("mlp.gate_proj", [intermediate, hidden], mlp_bias)?,
            up: linear("mlp.up_proj", [intermediate, hidden], mlp_bias)?,
            down: linear("mlp.down_proj", [hidden, intermediate], mlp_bias)?,
        })
    }

    /// What queries from position `first` on see.
    pub(super) fn visible(&self, first: usize) -> Visible {
        match self.window {
            Some(window) => Visible::Window { first, window },
            None => Visible::Causal { first },
        }
    }

    /// Adds to the hidden states what attention and the feed-forward layer make of them. They are those of some sequences, one
    /// after the other, of as many tokens each, which follow those in the sequence's cache, which keeps them.
    pub(super) fn run(
        &self,
        shape: Shape,
        hidden: &mut [f32],
        angles: &Angles,
        caches: &mut [&mut KeyValues],
        buffers: &mut Buffers,
        tap: &mut Option<&mut dyn Tap>,
    ) -> Result<(), ModelError> {
        let Buffers { normed, query, key, value, attended, gate, up, output } = buffers;
        let normalize = |hidden: &[f32], weight: &[f32], normed: &mut Vec<f32>| {
            normed.clear();
            normed.extend_from_slice(hidden);
            rms_norm(normed, weight, shape.epsilon);
        };
        normalize(hidden, &self.input_norm, normed);
        if observe(tap, &[&self.query, &self.key, &self.value], normed).is_break() {
            return Ok(());
        }
        forward_all([&self.query, &self.key, &self.value], normed, [&mut *query, &mut *key, &mut *value])?;
        if let Some([of_query, of_key]) = &self.query_key_norm {
            rms_norm(query, of_query, shape.epsilon);
            rms_norm(key, of_key, shape.epsilon);
        }
        angles.rotate(query, shape.heads * shape.head_dim);
        angles.rotate(key, shape.key_value_heads * shape.head_dim);
        attended.resize(query.len(), 0.0);
        self.attend(shape, caches, [query, key, value], attended);
        if observe(tap, &[&self.output], attended).is_break() {
            return Ok(());
        }
        self.output.forward(attended, output)?;
        activate::add(hidden, output);

        normalize(hidden, &self.feed_forward_norm, normed);
        if observe(tap, &[&self.gate, &self.up], normed).is_break() {
            return Ok(());
        }
        forward_all([&self.gate, &self.up], normed, [&mut *gate, &mut *up])?;
        activate::activate_gate(shape.activation, gate, up);
        if observe(tap, &[&self.down], gate).is_break() {
            return Ok(());
        }
        self.down.forward(gate, output)?;
        activate::add(hidden, output);
        Ok(())
    }

    /// Attention of every sequence's tokens to those in its cache and to themselves.
    fn attend(
        &self,
        shape: Shape,
        caches: &mut [&mut KeyValues],
        [query, key, value]: [&[f32]; 3],
        attended: &mut [f32],
    ) {
        let of_each = |values: usize| (values / caches.len().max(1)).max(1);
        let (of_query, of_key) = (of_each(query.len()), of_each(key.len()));
        let inputs = query.par_chunks(of_query).zip(key.par_chunks(of_key)).zip(value.par_chunks(of_key));
        let all = inputs.zip(attended.par_chunks_mut(of_query)).zip(caches);
        all.for_each(|((((query, key), value), attended), cache)| {
            let first = cache.len();
            cache.append(key, value);
            attend(query, cache, shape.group(), shape.scale(), self.visible(first), attended);
        });
    }
}
