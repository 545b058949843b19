use std::fmt;

use crate::dtype::{DType, FloatType};

/// What a tensor is to the network, judged from its name, rank and element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorClass {
    /// Weight of a linear layer, `[out_features, in_features]`.
    Linear,
    /// Weight of a convolution, `[out, in, …]`.
    Conv,
    /// Lookup table, `[entries, features]`.
    Embedding,
    /// Scale or shift of a normalization.
    Norm,
    /// Added to a layer's output.
    Bias,
    /// Everything else: buffers, positions, statistics.
    Other,
}

impl TensorClass {
    /// All classes, in the order in which they are listed.
    pub const ALL: [Self; 6] =
        [Self::Linear, Self::Conv, Self::Embedding, Self::Norm, Self::Bias, Self::Other];

    /// Judges a tensor. `embedding_rows` are the numbers of entries that the model's configuration gives its lookup
    /// tables (vocabulary, positions, token types).
    pub(crate) fn of(name: &str, dtype: DType, shape: &[usize], embedding_rows: &[usize]) -> Self {
        if FloatType::of(dtype).is_none() {
            return Self::Other;
        }
        let lower = name.to_ascii_lowercase();
        let last = lower.rsplit('.').next().unwrap_or(&lower);
        let names_norm = lower.split('.').any(|part| {
            part.contains("norm") || part.starts_with("ln_") || part.starts_with("bn") || part == "ln"
        });
        let parts = || lower.split('.').filter(|part| *part != "weight");
        // GPT-NeoX calls its output layer so
        let is_head = parts().next_back() == Some("embed_out");
        let names_embedding = lower.contains("embed")
            || parts().any(|part| matches!(part, "wte" | "wpe" | "shared" | "position_ids"))
            || parts().next_back().is_some_and(|part| {
                part == "emb" || part.ends_with("_emb") || part == "relative_attention_bias"
            });
        match shape.len() {
            1 if last.ends_with("bias") || last == "beta" => Self::Bias,
            1 if names_norm || last == "gamma" => Self::Norm,
            2 if names_norm => Self::Norm,
            2 if is_head => Self::Linear,
            2 if names_embedding && !lower.ends_with("proj.weight") => Self::Embedding,
            2 if last.ends_with("bias") => Self::Bias,
            2 if lower.contains("token_type") && embedding_rows.contains(&shape[0]) => Self::Embedding,
            2 => Self::Linear,
            3..=5 if !names_norm && !last.ends_with("bias") => Self::Conv,
            _ => Self::Other,
        }
    }

    /// The class of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.to_string() == name)
    }
}

impl fmt::Display for TensorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Linear => "linear",
            Self::Conv => "conv",
            Self::Embedding => "embedding",
            Self::Norm => "norm",
            Self::Bias => "bias",
            Self::Other => "other",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_common_architectures() {
        let class = |name: &str, shape: &[usize]| TensorClass::of(name, DType::F32, shape, &[30522, 512, 2]);
        for (name, shape, expected) in [
            ("model.layers.0.self_attn.q_proj.weight", &[64, 64][..], TensorClass::Linear),
            ("model.layers.0.self_attn.q_proj.bias", &[64], TensorClass::Bias),
            ("model.layers.0.input_layernorm.weight", &[64], TensorClass::Norm),
            ("model.embed_tokens.weight", &[512, 64], TensorClass::Embedding),
            ("lm_head.weight", &[512, 64], TensorClass::Linear),
            ("embeddings.token_type_embeddings.weight", &[2, 384], TensorClass::Embedding),
            ("embeddings.LayerNorm.weight", &[384], TensorClass::Norm),
            ("embeddings.LayerNorm.bias", &[384], TensorClass::Bias),
            ("transformer.wte.weight", &[50257, 768], TensorClass::Embedding),
            ("conv1.weight", &[6, 1, 5, 5], TensorClass::Conv),
            ("bn1.weight", &[64], TensorClass::Norm),
            ("ip1.weight", &[300, 784], TensorClass::Linear),
            ("embed_out.weight", &[512, 64], TensorClass::Linear),
            ("gpt_neox.embed_in.weight", &[512, 64], TensorClass::Embedding),
            ("tok_emb.weight", &[512, 64], TensorClass::Embedding),
            ("pos_emb", &[512, 64], TensorClass::Embedding),
            ("rwkv.emb.weight", &[512, 64], TensorClass::Embedding),
            ("time_emb_proj.weight", &[512, 64], TensorClass::Linear),
            (
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                &[32, 8],
                TensorClass::Embedding,
            ),
            ("scalar", &[], TensorClass::Other),
            ("model.layers.0.self_attn.rotary_emb.inv_freq", &[32], TensorClass::Other),
        ] {
            assert_eq!(class(name, shape), expected, "{name}");
        }
        assert_eq!(TensorClass::of("x.weight", DType::I64, &[3, 3], &[]), TensorClass::Other);
    }
}
