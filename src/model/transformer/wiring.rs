use super::decoder_config::{DECODERS, DecoderConfig};
use super::keys::Keys;
use super::tensors::Tensors;
use crate::checkpoint::Checkpoint;
use crate::model::ModelError;

/// What feeds what in a transformer, by the names in its checkpoint.
#[derive(Debug, Clone)]
pub(crate) enum Wiring {
    /// Normalized before each part, without means and biases.
    Decoder(DecoderWiring),
    /// Normalized after each part, where the residual is, too.
    Encoder(EncoderWiring),
}

/// A decoder like LLaMA.
#[derive(Debug, Clone)]
pub(crate) struct DecoderWiring {
    pub(crate) vocab_size: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) heads: Heads,
    /// The lookup table's tensor.
    pub(crate) embedding: String,
    pub(crate) blocks: Vec<DecoderBlock>,
    /// Weight of the last normalization, which feeds the head.
    pub(crate) norm: String,
    pub(crate) head: LayerNames,
    /// Whether the head multiplies with the embedding; a tensor of its own is then not read.
    pub(crate) tied: bool,
}

/// How attention divides what it works on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Heads {
    /// Of queries.
    pub(crate) count: usize,
    /// Of keys and values: heads of queries that follow each other share one.
    pub(crate) key_values: usize,
    /// Values of one head.
    pub(crate) size: usize,
}

/// One block: each part normalizes the residual, and adds to it.
#[derive(Debug, Clone)]
pub(crate) struct DecoderBlock {
    /// Weight of the normalization that feeds query, key and value.
    pub(crate) input_norm: String,
    pub(crate) query: LayerNames,
    pub(crate) key: LayerNames,
    /// Attention averages its output over tokens, and feeds the output layer.
    pub(crate) value: LayerNames,
    pub(crate) output: LayerNames,
    /// Weights of the normalizations of every head's query and key.
    pub(crate) query_key_norms: Vec<String>,
    /// Weight of the normalization that feeds gate and up.
    pub(crate) feed_forward_norm: String,
    pub(crate) gate: LayerNames,
    /// Its output, times a function of the gate's, feeds the down layer.
    pub(crate) up: LayerNames,
    pub(crate) down: LayerNames,
}

/// An encoder like BERT.
#[derive(Debug, Clone)]
pub(crate) struct EncoderWiring {
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) heads: Heads,
    pub(crate) blocks: Vec<EncoderBlock>,
}

/// One block: each part adds to the residual, which then is normalized.
#[derive(Debug, Clone)]
pub(crate) struct EncoderBlock {
    pub(crate) query: LayerNames,
    pub(crate) key: LayerNames,
    /// Attention averages its output over tokens, and feeds the output layer.
    pub(crate) value: LayerNames,
    pub(crate) output: LayerNames,
    /// A function of its output feeds the down layer.
    pub(crate) up: LayerNames,
    pub(crate) down: LayerNames,
    /// Modules of the normalizations, each with a weight and a bias.
    pub(crate) norms: [String; 2],
}

/// A linear layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerNames {
    /// Without `.weight`.
    pub(crate) name: String,
    pub(crate) has_bias: bool,
}

impl LayerNames {
    pub(crate) fn weight(&self) -> String {
        format!("{}.weight", self.name)
    }

    pub(crate) fn bias(&self) -> Option<String> {
        self.has_bias.then(|| format!("{}.bias", self.name))
    }
}

impl Wiring {
    /// How the transformer that a checkpoint holds is wired.
    ///
    /// # Errors
    /// When `config.json` describes no transformer that tersor runs, or lacks a key.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        let keys = Keys::of(checkpoint)?;
        match keys.string_or("model_type", "")? {
            "bert" => EncoderWiring::of(checkpoint, keys).map(Self::Encoder),
            name if DECODERS.contains(&name) => DecoderWiring::of(checkpoint).map(Self::Decoder),
            other => Err(keys.error(format!(
                "how the layers of the model_type `{other}` feed each other is not known; it is of bert, {}",
                DECODERS.join(", ")
            ))),
        }
    }
}

impl DecoderWiring {
    fn of(checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        let config = DecoderConfig::of(checkpoint)?;
        let prefix = Tensors::prefix(checkpoint, &["model.", ""], "embed_tokens.weight");
        let block = |block: usize| {
            let at = |name: &str| format!("{prefix}layers.{block}.{name}");
            let norm = |name: &str| at(&format!("{name}.weight"));
            let layer = |name: &str, has_bias| LayerNames { name: at(name), has_bias };
            let (of_inputs, of_feed_forward) = (config.query_key_value_bias, config.feed_forward_bias);
            let query_key_norms: &[&str] =
                if config.query_key_norm { &["self_attn.q_norm", "self_attn.k_norm"] } else { &[] };
            DecoderBlock {
                input_norm: norm("input_layernorm"),
                query: layer("self_attn.q_proj", of_inputs),
                key: layer("self_attn.k_proj", of_inputs),
                value: layer("self_attn.v_proj", of_inputs),
                output: layer("self_attn.o_proj", config.output_bias),
                query_key_norms: query_key_norms.iter().map(|name| norm(name)).collect(),
                feed_forward_norm: norm("post_attention_layernorm"),
                gate: layer("mlp.gate_proj", of_feed_forward),
                up: layer("mlp.up_proj", of_feed_forward),
                down: layer("mlp.down_proj", of_feed_forward),
            }
        };
        Ok(Self {
            vocab_size: config.vocab_size,
            hidden: config.hidden,
            intermediate: config.intermediate,
            heads: Heads { count: config.heads, key_values: config.key_value_heads, size: config.head_dim },
            embedding: format!("{prefix}embed_tokens.weight"),
            blocks: (0..config.blocks).map(block).collect(),
            norm: format!("{prefix}norm.weight"),
            head: LayerNames { name: "lm_head".into(), has_bias: false },
            tied: config.tied,
        })
    }
}

impl EncoderWiring {
    fn of(checkpoint: &Checkpoint, keys: Keys<'_>) -> Result<Self, ModelError> {
        let (hidden, heads) = (keys.count("hidden_size")?, keys.count("num_attention_heads")?);
        if !hidden.is_multiple_of(heads) {
            return Err(keys.error(format!("`hidden_size` {hidden} is no multiple of {heads} heads")));
        }
        let prefix = Tensors::prefix(checkpoint, &["", "bert."], "embeddings.word_embeddings.weight");
        let block = |block: usize| {
            let at = |name: &str| format!("{prefix}encoder.layer.{block}.{name}");
            let layer = |name: &str| LayerNames { name: at(name), has_bias: true };
            EncoderBlock {
                query: layer("attention.self.query"),
                key: layer("attention.self.key"),
                value: layer("attention.self.value"),
                output: layer("attention.output.dense"),
                up: layer("intermediate.dense"),
                down: layer("output.dense"),
                norms: ["attention.output.LayerNorm", "output.LayerNorm"].map(at),
            }
        };
        Ok(Self {
            hidden,
            intermediate: keys.count("intermediate_size")?,
            heads: Heads { count: heads, key_values: heads, size: hidden / heads },
            blocks: (0..keys.count("num_hidden_layers")?).map(block).collect(),
        })
    }
}
