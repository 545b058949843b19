use ndarray::Array2;
use rayon::prelude::*;

use super::embedding::Embedding;
use super::keys::Keys;
use super::pooling::Pooling;
use super::tensors::Tensors;
use crate::checkpoint::Checkpoint;
use crate::kernels::activate::{self, Activation};
use crate::kernels::attention::{KeyValues, Visible, attend};
use crate::kernels::in_pool;
use crate::kernels::normalize::layer_norm;
use crate::model::linear::{Linear, forward_all, names_of, observe};
use crate::model::network::{Execution, SentenceEncoder};
use crate::model::overlay::Overlay;
use crate::model::tap::ToTheEnd;
use crate::model::{ModelError, Tap};
use crate::weight::PackedWeight;

/// An encoder like BERT: learned positions, layer normalization after each part, attention to all tokens; with the pooling that
/// sentence-transformers describes beside the model.
///
/// Runs checkpoints of the `model_type` `bert`. Plain weights are used where their file is mapped, unless
/// [`PlainWeights::Packed`](crate::PlainWeights::Packed) is asked for, compressed ones in their own arithmetic. Sentences of a batch stand one after the other, without padding.
///
/// ```no_run
/// use tersor::{Checkpoint, Encoder, Execution, SentenceEncoder};
///
/// let model = Encoder::open(&Checkpoint::open("all-MiniLM-L6-v2")?, Execution::default())?;
/// let embeddings = model.embed(&[&[101, 7592, 102], &[101, 2088, 999, 102]])?;
/// assert_eq!(embeddings.dim(), (2, 384));
/// # Ok::<(), tersor::ModelError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Encoder {
    vocab_size: usize,
    max_tokens: usize,
    width: usize,
    heads: usize,
    activation: Activation,
    words: Embedding,
    positions: Embedding,
    /// The vector of the first segment, in which all tokens are.
    segment: Vec<f32>,
    norm: Norm,
    sizes: Sizes,
    blocks: Vec<Block>,
    pooling: Pooling,
}

/// What all blocks share.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    hidden: usize,
    intermediate: usize,
    epsilon: f32,
}

#[derive(Debug, Clone)]
struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

#[derive(Debug, Clone)]
struct Block {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    feed_forward_norm: Norm,
}

impl Block {
    fn linears(&self) -> [&Linear; 6] {
        let Self { query, key, value, output, up, down, .. } = self;
        [query, key, value, output, up, down]
    }
}

/// Room for what lies between the layers of a block, used again by the next.
#[derive(Debug, Default)]
struct Buffers {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    attended: Vec<f32>,
    inner: Vec<f32>,
    output: Vec<f32>,
}

impl Encoder {
    /// Builds the encoder that a checkpoint holds, with every weight in the form in which it is stored.
    ///
    /// # Errors
    /// When `config.json` lacks a key or asks for what is not supported, or a tensor is missing or misshapen.
    pub fn open(checkpoint: &Checkpoint, execution: Execution) -> Result<Self, ModelError> {
        let keys = Keys::of(checkpoint)?;
        let (hidden, heads) = (keys.count("hidden_size")?, keys.count("num_attention_heads")?);
        if !hidden.is_multiple_of(heads) {
            return Err(keys.error(format!("`hidden_size` {hidden} is no multiple of {heads} heads")));
        }
        let positions = keys.string_or("position_embedding_type", "absolute")?;
        if positions != "absolute" {
            let reason = format!("`position_embedding_type` is `{positions}`; tersor runs absolute ones");
            return Err(keys.error(reason));
        }
        for flag in ["is_decoder", "add_cross_attention"] {
            if keys.flag_or(flag, false)? {
                return Err(keys.error(format!("`{flag}` is true; tersor runs bert as an encoder")));
            }
        }
        let (vocab_size, intermediate) = (keys.count("vocab_size")?, keys.count("intermediate_size")?);
        let max_positions = keys.count("max_position_embeddings")?;
        let segments = keys.count("type_vocab_size")?;
        let epsilon = keys.optional_positive("layer_norm_eps")?.unwrap_or(1e-12) as f32;
        let activation = keys.activation("gelu")?;

        let overlay = Overlay::default();
        let tensors = Self::tensors(checkpoint, &overlay, execution);
        let words = tensors.embedding("embeddings.word_embeddings", [vocab_size, hidden])?;
        let positions = tensors.embedding("embeddings.position_embeddings", [max_positions, hidden])?;
        let mut segment = Vec::new();
        let segment_table = tensors.embedding("embeddings.token_type_embeddings", [segments, hidden])?;
        segment_table.look_up(&[0], hidden, &mut segment)?;
        let sizes = Sizes { hidden, intermediate, epsilon };
        let mut blocks = Vec::new();
        for block in 0..keys.count("num_hidden_layers")? {
            blocks.push(Block::open(&tensors, sizes, block)?);
        }
        let pooling = Pooling::of(checkpoint)?;
        Ok(Self {
            vocab_size,
            max_tokens: pooling.max_tokens.unwrap_or(max_positions).min(max_positions),
            width: hidden,
            heads,
            activation,
            words,
            positions,
            segment,
            norm: Norm::open(&tensors, "embeddings.LayerNorm", sizes)?,
            sizes,
            blocks,
            pooling,
        })
    }

    fn tensors<'a>(checkpoint: &'a Checkpoint, overlay: &'a Overlay, execution: Execution) -> Tensors<'a> {
        let prefix = Tensors::prefix(checkpoint, &["", "bert."], "embeddings.word_embeddings.weight");
        Tensors { checkpoint, overlay, execution, prefix }
    }

    /// Opens one block anew, with other tensors in the place of some.
    pub(in crate::model) fn reopen_block(
        &mut self,
        checkpoint: &Checkpoint,
        overlay: &Overlay,
        execution: Execution,
        block: usize,
    ) -> Result<(), ModelError> {
        self.blocks[block] = Block::open(&Self::tensors(checkpoint, overlay, execution), self.sizes, block)?;
        Ok(())
    }

    /// The linear layers of a block, those with the same input together.
    pub(in crate::model) fn block_layers(&self, block: usize) -> Vec<Vec<String>> {
        let Block { query, key, value, output, up, down, .. } = &self.blocks[block];
        let groups: [&[&Linear]; 4] = [&[query, key, value], &[output], &[up], &[down]];
        names_of(groups)
    }

    /// The layers whose weights are arranged for products.
    pub(in crate::model) fn packed_layers(&self) -> Vec<(&str, &PackedWeight)> {
        self.blocks.iter().flat_map(Block::linears).filter_map(Linear::packed).collect()
    }

    /// Number of different tokens.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Features of the hidden states.
    pub(in crate::model) fn hidden_size(&self) -> usize {
        self.sizes.hidden
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// What the first block takes of some sentences, one after the other.
    ///
    /// # Shapes
    /// `[tokens of all sentences, hidden]`.
    ///
    /// # Errors
    /// When a sentence has no tokens or too many, or a token is beyond the vocabulary.
    pub fn embed_tokens(&self, sentences: &[&[u32]]) -> Result<Array2<f32>, ModelError> {
        let mut hidden = Vec::new();
        let (mut words, mut positions) = (Vec::new(), Vec::new());
        self.check(sentences)?;
        for sentence in sentences {
            self.words.look_up(sentence, self.width, &mut words)?;
            let all: Vec<u32> = (0..sentence.len() as u32).collect();
            self.positions.look_up(&all, self.width, &mut positions)?;
            let tokens = words.chunks_exact(self.width).zip(positions.chunks_exact(self.width));
            for (word, position) in tokens {
                let sums = word.iter().zip(position).zip(&self.segment);
                hidden.extend(sums.map(|((word, position), segment)| word + segment + position));
            }
        }
        self.norm.apply(&mut hidden);
        Ok(Array2::from_shape_vec((hidden.len() / self.width, self.width), hidden).unwrap_or_default())
    }

    /// Runs one block on the hidden states of some sentences, one after the other.
    ///
    /// # Shapes
    /// `hidden` is `[tokens of all sentences, hidden]`; `lengths` are the sentences' numbers of tokens.
    ///
    /// # Errors
    /// When the hidden states have another width or number of tokens.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn run_block(
        &self,
        block: usize,
        hidden: &mut Array2<f32>,
        lengths: &[usize],
        mut tap: Option<&mut dyn Tap>,
    ) -> Result<(), ModelError> {
        let tokens = lengths.iter().fold(0usize, |all, length| all.saturating_add(*length));
        if hidden.ncols() != self.width {
            return Err(ModelError::Input { expected: self.width, actual: hidden.ncols() });
        }
        if hidden.nrows() != tokens {
            let reason = format!("{} hidden states for {tokens} tokens", hidden.nrows());
            return Err(ModelError::Tokens { reason });
        }
        let mut values = hidden.as_standard_layout().into_owned();
        if let Some(values) = values.as_slice_mut() {
            in_pool(|| self.blocks[block].run(self, values, lengths, &mut Buffers::default(), &mut tap))?;
        }
        *hidden = values;
        Ok(())
    }

    /// What the last block gives for some sentences, one after the other, while a tap sees the input of every linear layer.
    ///
    /// # Shapes
    /// `[tokens of all sentences, hidden]`.
    ///
    /// # Errors
    /// When a sentence has no tokens or too many, or a token is beyond the vocabulary.
    pub fn forward(
        &self,
        sentences: &[&[u32]],
        tap: Option<&mut dyn Tap>,
    ) -> Result<Array2<f32>, ModelError> {
        let mut whole = tap.map(ToTheEnd);
        let mut tap = whole.as_mut().map(|tap| tap as &mut dyn Tap);
        in_pool(|| self.run(sentences, &mut Buffers::default(), &mut tap))
    }

    fn run(
        &self,
        sentences: &[&[u32]],
        buffers: &mut Buffers,
        tap: &mut Option<&mut dyn Tap>,
    ) -> Result<Array2<f32>, ModelError> {
        let mut hidden = self.embed_tokens(sentences)?;
        let lengths: Vec<usize> = sentences.iter().map(|s| s.len()).collect();
        if let Some(hidden) = hidden.as_slice_mut() {
            for block in &self.blocks {
                block.run(self, hidden, &lengths, buffers, tap)?;
            }
        }
        Ok(hidden)
    }

    fn check(&self, sentences: &[&[u32]]) -> Result<(), ModelError> {
        for (number, sentence) in sentences.iter().enumerate() {
            let reason = match sentence.len() {
                0 => "has no tokens".to_owned(),
                n if n > self.max_tokens => {
                    format!("has {n} tokens, more than the {} that the model takes", self.max_tokens)
                }
                _ => continue,
            };
            return Err(ModelError::Tokens { reason: format!("sentence {} {reason}", number + 1) });
        }
        Ok(())
    }
}

/// Tokens that go through the blocks together.
const PART_TOKENS: usize = 512;

/// Cuts a batch where what lies between the layers would outgrow the caches.
fn parts<'s, 'a>(sentences: &'s [&'a [u32]]) -> Vec<&'s [&'a [u32]]> {
    let (mut parts, mut rest) = (Vec::new(), sentences);
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = |sentence: &&&[u32]| {
            tokens += sentence.len();
            tokens <= PART_TOKENS
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let part;
        (part, rest) = rest.split_at(count);
        parts.push(part);
    }
    parts
}

impl SentenceEncoder for Encoder {
    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn embed(&self, sentences: &[&[u32]]) -> Result<Array2<f32>, ModelError> {
        self.check(sentences)?;
        let mut embeddings = Array2::zeros((sentences.len(), self.width));
        let parts = parts(sentences);
        let mut outputs = Vec::with_capacity(parts.len());
        let mut rest = embeddings.as_slice_mut().unwrap_or_default();
        for part in &parts {
            let out;
            (out, rest) = rest.split_at_mut(part.len() * self.width);
            outputs.push(out);
        }
        let embed = |buffers: &mut Buffers, (part, out): (&&[&[u32]], &mut [f32])| {
            let hidden = self.run(part, buffers, &mut None)?;
            let mut hidden = hidden.as_slice().unwrap_or_default();
            for (sentence, embedding) in part.iter().zip(out.chunks_exact_mut(self.width)) {
                let tokens;
                (tokens, hidden) = hidden.split_at(sentence.len() * self.width);
                self.pooling.pool(tokens, embedding);
            }
            Ok::<(), ModelError>(())
        };
        let all = || parts.par_iter().zip(outputs).map_init(Buffers::default, embed).collect();
        in_pool::<Result<(), ModelError>>(all)?;
        Ok(embeddings)
    }
}

impl Norm {
    fn open(tensors: &Tensors<'_>, name: &str, sizes: Sizes) -> Result<Self, ModelError> {
        let vector = |part: &str| tensors.vector(&format!("{name}.{part}"), sizes.hidden);
        Ok(Self { weight: vector("weight")?, bias: vector("bias")?, epsilon: sizes.epsilon })
    }

    fn apply(&self, values: &mut [f32]) {
        layer_norm(values, &self.weight, &self.bias, self.epsilon);
    }
}

impl Block {
    fn open(tensors: &Tensors<'_>, sizes: Sizes, block: usize) -> Result<Self, ModelError> {
        let Sizes { hidden, intermediate, .. } = sizes;
        let at = |name: &str| format!("encoder.layer.{block}.{name}");
        let linear = |name: &str, shape| tensors.linear(&at(name), shape, true);
        Ok(Self {
            query: linear("attention.self.query", [hidden, hidden])?,
            key: linear("attention.self.key", [hidden, hidden])?,
            value: linear("attention.self.value", [hidden, hidden])?,
            output: linear("attention.output.dense", [hidden, hidden])?,
            attention_norm: Norm::open(tensors, &at("attention.output.LayerNorm"), sizes)?,
            up: linear("intermediate.dense", [intermediate, hidden])?,
            down: linear("output.dense", [hidden, intermediate])?,
            feed_forward_norm: Norm::open(tensors, &at("output.LayerNorm"), sizes)?,
        })
    }

    fn run(
        &self,
        model: &Encoder,
        hidden: &mut [f32],
        lengths: &[usize],
        buffers: &mut Buffers,
        tap: &mut Option<&mut dyn Tap>,
    ) -> Result<(), ModelError> {
        let Buffers { query, key, value, attended, inner, output } = buffers;
        if observe(tap, &[&self.query, &self.key, &self.value], hidden).is_break() {
            return Ok(());
        }
        forward_all([&self.query, &self.key, &self.value], hidden, [&mut *query, &mut *key, &mut *value])?;
        attended.resize(query.len(), 0.0);
        attend_within(model, lengths, query, key, value, attended);
        if observe(tap, &[&self.output], attended).is_break() {
            return Ok(());
        }
        self.output.forward(attended, output)?;
        activate::add(hidden, output);
        self.attention_norm.apply(hidden);

        if observe(tap, &[&self.up], hidden).is_break() {
            return Ok(());
        }
        self.up.forward(hidden, inner)?;
        activate::activate(model.activation, inner);
        if observe(tap, &[&self.down], inner).is_break() {
            return Ok(());
        }
        self.down.forward(inner, output)?;
        activate::add(hidden, output);
        self.feed_forward_norm.apply(hidden);
        Ok(())
    }
}

/// Attention of each sentence to itself.
fn attend_within(
    model: &Encoder,
    lengths: &[usize],
    query: &[f32],
    key: &[f32],
    value: &[f32],
    attended: &mut [f32],
) {
    let head_dim = model.width / model.heads;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut sentences = Vec::with_capacity(lengths.len());
    let mut start = 0;
    let mut rest = attended;
    for tokens in lengths {
        let out;
        (out, rest) = rest.split_at_mut(tokens * model.width);
        sentences.push((start..start + out.len(), out));
        start += tokens * model.width;
    }
    let new = || KeyValues::new(model.heads, head_dim);
    sentences.into_par_iter().for_each_init(new, |memory, (span, out)| {
        memory.clear();
        memory.append(&key[span.clone()], &value[span.clone()]);
        attend(&query[span], memory, 1, scale, Visible::All, out);
    });
}
