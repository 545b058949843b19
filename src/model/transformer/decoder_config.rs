use super::keys::Keys;
use super::rope::Rope;
use crate::checkpoint::Checkpoint;
use crate::kernels::activate::Activation;
use crate::model::ModelError;

/// What `config.json` says of a decoder like LLaMA.
#[allow(clippy::struct_excessive_bools)] // as config.json has them
pub(super) struct DecoderConfig {
    pub(super) model_type: String,
    pub(super) vocab_size: usize,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) heads: usize,
    pub(super) key_value_heads: usize,
    pub(super) head_dim: usize,
    pub(super) max_tokens: usize,
    pub(super) epsilon: f32,
    pub(super) activation: Activation,
    pub(super) rope: Rope,
    pub(super) tied: bool,
    pub(super) query_key_value_bias: bool,
    pub(super) output_bias: bool,
    pub(super) feed_forward_bias: bool,
    /// Whether every head's query and key is normalized.
    pub(super) query_key_norm: bool,
    /// Number of blocks.
    pub(super) blocks: usize,
    windows: Windows,
}

/// Which blocks look back only so far.
struct Windows {
    /// Tokens that a query sees, itself included.
    window: Option<usize>,
    blocks: Windowed,
}

enum Windowed {
    From(usize),
    /// One flag per block.
    Those(Vec<bool>),
}

/// The `model_type`s of decoders that share one forward pass.
pub(in crate::model) const DECODERS: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

impl DecoderConfig {
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        let keys = Keys::of(checkpoint)?;
        let model_type = keys.string_or("model_type", "")?;
        let (hidden, heads) = (keys.count("hidden_size")?, keys.count("num_attention_heads")?);
        let key_value_heads = keys.optional_count("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(key_value_heads) {
            return Err(keys.error(format!(
                "{heads} attention heads cannot share {key_value_heads} heads of keys and values evenly"
            )));
        }
        let head_dim = match keys.optional_count("head_dim")? {
            Some(head_dim) => head_dim,
            None if model_type == "qwen3" => 128,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => return Err(keys.error(format!("`hidden_size` {hidden} is no multiple of {heads} heads"))),
        };
        if !head_dim.is_multiple_of(2) {
            return Err(keys.error(format!("`head_dim` {head_dim} is odd, and rotary embeddings turn pairs")));
        }
        let blocks = keys.count("num_hidden_layers")?;
        let attention_bias = keys.flag_or("attention_bias", false)?;
        let (query_key_value_bias, output_bias) = match model_type {
            "llama" | "qwen3" => (attention_bias, attention_bias),
            "qwen2" => (true, false),
            _ => (false, false),
        };
        Ok(Self {
            model_type: model_type.to_owned(),
            vocab_size: keys.count("vocab_size")?,
            hidden,
            intermediate: keys.count("intermediate_size")?,
            heads,
            key_value_heads,
            head_dim,
            max_tokens: keys.count("max_position_embeddings")?,
            epsilon: keys.positive("rms_norm_eps")? as f32,
            activation: keys.activation("silu")?,
            rope: Rope::of(keys, head_dim)?,
            tied: keys.flag_or("tie_word_embeddings", false)?,
            query_key_value_bias,
            output_bias,
            feed_forward_bias: model_type == "llama" && keys.flag_or("mlp_bias", false)?,
            query_key_norm: model_type == "qwen3",
            windows: windows(keys, model_type, blocks)?,
            blocks,
        })
    }

    /// How many tokens a block's attention looks back, if not to the first.
    pub(super) fn window(&self, block: usize) -> Option<usize> {
        let is_windowed = match &self.windows.blocks {
            Windowed::From(first) => block >= *first,
            Windowed::Those(blocks) => blocks.get(block).copied().unwrap_or(false),
        };
        self.windows.window.filter(|_| is_windowed)
    }
}

/// Which blocks look back only so far, as each kind of model decides it.
fn windows(keys: Keys<'_>, model_type: &str, blocks: usize) -> Result<Windows, ModelError> {
    let window = match model_type {
        "mistral" => keys.optional_count("sliding_window")?,
        "qwen2" | "qwen3" if keys.flag_or("use_sliding_window", false)? => {
            keys.optional_count("sliding_window")?
        }
        _ => None,
    };
    // a window that is there is used by all blocks of a Mistral, and by a Qwen's from a certain one on
    let first = if model_type == "mistral" { 0 } else { keys.index_or("max_window_layers", 28)? };
    let Some(types) = keys.strings("layer_types")?.filter(|_| model_type != "mistral") else {
        return Ok(Windows { window, blocks: Windowed::From(first) });
    };
    if types.len() != blocks {
        return Err(keys.error(format!("`layer_types` has {} entries for {blocks} layers", types.len())));
    }
    let of = |kind: &&str| match *kind {
        "full_attention" => Ok(false),
        "sliding_attention" if window.is_some() => Ok(true),
        "sliding_attention" => {
            Err(keys.error("`layer_types` asks for sliding attention, but there is no window"))
        }
        other => Err(keys.error(format!("`layer_types` names `{other}`, which tersor does not run"))),
    };
    Ok(Windows { window, blocks: Windowed::Those(types.iter().map(of).collect::<Result<_, _>>()?) })
}
