mod block;
mod trained;
mod trained_head;

use ndarray::{Array2, ArrayView2};

use self::block::{Block, Buffers, Shape};
pub(crate) use self::trained::{GradientSums, TrainedBlock};
pub(crate) use self::trained_head::TrainedHead;
use super::cache::Cache;
use super::decoder_config::DecoderConfig;
use super::embedding::Embedding;
use super::tensors::Tensors;
use crate::checkpoint::Checkpoint;
use crate::kernels::attention::KeyValues;
use crate::kernels::in_pool;
use crate::kernels::normalize::rms_norm;
use crate::model::linear::{Linear, names_of, observe};
use crate::model::network::{Execution, LanguageModel};
use crate::model::overlay::Overlay;
use crate::model::tap::ToTheEnd;
use crate::model::{ModelError, Tap};
use crate::weight::PackedWeight;

/// A decoder like LLaMA: RMS normalization, rotary embeddings, grouped-query attention, a gated feed-forward layer.
///
/// Runs checkpoints of the `model_type`s `llama` (also SmolLM2), `mistral`, `qwen2` and `qwen3`. Plain weights are used where
/// their file is mapped, unless [`PlainWeights::Packed`](crate::PlainWeights::Packed) is asked for, compressed ones in their own
/// arithmetic.
///
/// ```no_run
/// use tersor::{Checkpoint, Decoder, Execution, LanguageModel};
///
/// let model = Decoder::open(&Checkpoint::open("SmolLM2-135M-int8")?, Execution::default())?;
/// let logits = model.logits(&[504, 253, 1234])?;
/// assert_eq!(logits.dim(), (3, model.vocab_size()));
/// # Ok::<(), tersor::ModelError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Decoder {
    model_type: String,
    vocab_size: usize,
    max_tokens: usize,
    width: usize,
    epsilon: f32,
    shape: Shape,
    rope: super::rope::Rope,
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: Vec<f32>,
    head: Linear,
}

/// Where blocks keep the keys and values of the tokens that they have seen.
enum Memory<'a> {
    /// Of one sequence; nobody needs them after the block that made them.
    OfOneBlock(&'a mut KeyValues),
    /// Of some sequences.
    OfAllBlocks(&'a mut [Cache]),
}

impl Memory<'_> {
    /// Those of every sequence.
    fn of(&mut self, block: usize) -> Vec<&mut KeyValues> {
        match self {
            Self::OfOneBlock(memory) => {
                memory.clear();
                vec![memory]
            }
            Self::OfAllBlocks(caches) => caches.iter_mut().map(|cache| &mut cache.blocks[block]).collect(),
        }
    }
}

impl Decoder {
    /// Builds the decoder that a checkpoint holds, with every weight in the form in which it is stored.
    ///
    /// # Errors
    /// When `config.json` lacks a key or asks for what is not supported, or a tensor is missing or misshapen.
    pub fn open(checkpoint: &Checkpoint, execution: Execution) -> Result<Self, ModelError> {
        Self::open_over(checkpoint, &Overlay::default(), execution)
    }

    /// As [`open`](Self::open), with other tensors in the place of some.
    pub(in crate::model) fn open_over(
        checkpoint: &Checkpoint,
        overlay: &Overlay,
        execution: Execution,
    ) -> Result<Self, ModelError> {
        let config = DecoderConfig::of(checkpoint)?;
        let tensors = Self::tensors(checkpoint, overlay, execution);
        let prefix = tensors.prefix;
        let embedding = tensors.embedding("embed_tokens", [config.vocab_size, config.hidden])?;
        let mut blocks = Vec::new();
        for block in 0..config.blocks {
            blocks.push(Block::open(&tensors, &config, block)?);
        }
        let norm = tensors.vector("norm.weight", config.hidden)?;
        let head = if config.tied {
            let matrix = tensors.head_of("embed_tokens", &embedding)?;
            Linear { name: format!("{prefix}embed_tokens"), matrix, bias: None }
        } else {
            let whole = Tensors { prefix: "", ..tensors };
            whole.linear("lm_head", [config.vocab_size, config.hidden], false)?
        };
        Ok(Self {
            model_type: config.model_type,
            vocab_size: config.vocab_size,
            max_tokens: config.max_tokens,
            width: config.hidden,
            epsilon: config.epsilon,
            shape: Shape {
                heads: config.heads,
                key_value_heads: config.key_value_heads,
                head_dim: config.head_dim,
                epsilon: config.epsilon,
                activation: config.activation,
            },
            rope: config.rope,
            embedding,
            blocks,
            norm,
            head,
        })
    }

    fn tensors<'a>(checkpoint: &'a Checkpoint, overlay: &'a Overlay, execution: Execution) -> Tensors<'a> {
        let prefix = Tensors::prefix(checkpoint, &["model.", ""], "embed_tokens.weight");
        Tensors { checkpoint, overlay, execution, prefix }
    }

    /// Opens one block anew.
    pub(in crate::model) fn reopen_block(
        &mut self,
        checkpoint: &Checkpoint,
        overlay: &Overlay,
        execution: Execution,
        block: usize,
    ) -> Result<(), ModelError> {
        let config = DecoderConfig::of(checkpoint)?;
        self.blocks[block] = Block::open(&Self::tensors(checkpoint, overlay, execution), &config, block)?;
        Ok(())
    }

    /// The linear layers of a block, those with the same input together.
    pub(crate) fn block_layers(&self, block: usize) -> Vec<Vec<String>> {
        let Block { query, key, value, output, gate, up, down, .. } = &self.blocks[block];
        let groups: [&[&Linear]; 4] = [&[query, key, value], &[output], &[gate, up], &[down]];
        names_of(groups)
    }

    /// A block whose linear layers are to be trained, from the weights on that `weight` gives by the layers' names.
    pub(crate) fn trained_block<E>(
        &self,
        block: usize,
        weight: impl FnMut(&str) -> Result<Vec<f32>, E>,
    ) -> Result<TrainedBlock<'_>, E> {
        TrainedBlock::new(&self.blocks[block], self.shape, &self.rope, weight)
    }

    /// Its end, for training what is before it; the head's weight is read once more from the checkpoint that it was opened from.
    ///
    /// # Errors
    /// When that has changed.
    pub(crate) fn trained_head(&self, checkpoint: &Checkpoint) -> Result<TrainedHead<'_>, ModelError> {
        Ok(TrainedHead::new(self, &checkpoint.dense(&format!("{}.weight", self.head.name))?))
    }

    /// The layers whose weights are arranged for products.
    pub(in crate::model) fn packed_layers(&self) -> Vec<(&str, &PackedWeight)> {
        self.blocks.iter().flat_map(Block::linears).chain([&self.head]).filter_map(Linear::packed).collect()
    }

    /// What kind of network it is, in the words of `config.json`.
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// Features of the hidden states.
    pub(in crate::model) fn hidden_size(&self) -> usize {
        self.width
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The embeddings of some tokens: what the first block takes.
    ///
    /// # Shapes
    /// `[tokens, hidden]`.
    ///
    /// # Errors
    /// When there are no tokens or too many, or one is beyond the vocabulary.
    pub fn embed(&self, tokens: &[u32]) -> Result<Array2<f32>, ModelError> {
        self.check(tokens.len(), 0)?;
        let mut hidden = Vec::new();
        self.embedding.look_up(tokens, self.width, &mut hidden)?;
        Ok(Array2::from_shape_vec((tokens.len(), self.width), hidden).unwrap_or_default())
    }

    /// Runs one block on the hidden states of one sequence, from its first token on.
    ///
    /// # Shapes
    /// `hidden` is `[tokens, hidden]`, as [`embed`](Self::embed) or the block before gave it.
    ///
    /// # Errors
    /// When the hidden states have another width.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn run_block(
        &self,
        block: usize,
        hidden: &mut Array2<f32>,
        mut tap: Option<&mut dyn Tap>,
    ) -> Result<(), ModelError> {
        if hidden.ncols() != self.width {
            return Err(ModelError::Input { expected: self.width, actual: hidden.ncols() });
        }
        let angles = self.rope.angles(0..hidden.nrows());
        let mut values = hidden.as_standard_layout().into_owned();
        let mut cache = KeyValues::new(self.shape.key_value_heads, self.shape.head_dim);
        if let Some(values) = values.as_slice_mut() {
            let block = &self.blocks[block];
            let mut buffers = Buffers::default();
            in_pool(|| block.run(self.shape, values, &angles, &mut [&mut cache], &mut buffers, &mut tap))?;
        }
        *hidden = values;
        Ok(())
    }

    /// Logits from the hidden states that the last block gave.
    ///
    /// # Shapes
    /// `[tokens, hidden]` → `[tokens, vocab_size]`.
    ///
    /// # Errors
    /// When the hidden states have another width.
    pub fn head(
        &self,
        hidden: ArrayView2<'_, f32>,
        mut tap: Option<&mut dyn Tap>,
    ) -> Result<Array2<f32>, ModelError> {
        if hidden.ncols() != self.width {
            return Err(ModelError::Input { expected: self.width, actual: hidden.ncols() });
        }
        let mut normed: Vec<f32> = hidden.as_standard_layout().iter().copied().collect();
        rms_norm(&mut normed, &self.norm, self.epsilon);
        // nothing comes after it but what was asked for
        let _ = observe(&mut tap, &[&self.head], &normed);
        let mut logits = Vec::new();
        self.head.forward(&normed, &mut logits)?;
        Ok(Array2::from_shape_vec((hidden.nrows(), self.vocab_size), logits).unwrap_or_default())
    }

    /// What the last block gives for a sequence.
    ///
    /// # Shapes
    /// `[tokens, hidden]`.
    ///
    /// # Errors
    /// When there are no tokens or too many, or one is beyond the vocabulary.
    pub(crate) fn states(&self, tokens: &[u32]) -> Result<Array2<f32>, ModelError> {
        self.check(tokens.len(), 0)?;
        let positions: Vec<usize> = (0..tokens.len()).collect();
        let mut cache = KeyValues::new(self.shape.key_value_heads, self.shape.head_dim);
        in_pool(|| self.hidden(tokens, &positions, Memory::OfOneBlock(&mut cache), &mut None))
    }

    /// Logits after every token, while a tap sees the input of every linear layer.
    ///
    /// # Shapes
    /// `[tokens, vocab_size]`.
    ///
    /// # Errors
    /// When there are no tokens or too many, or one is beyond the vocabulary.
    pub fn forward(&self, tokens: &[u32], tap: Option<&mut dyn Tap>) -> Result<Array2<f32>, ModelError> {
        self.check(tokens.len(), 0)?;
        let positions: Vec<usize> = (0..tokens.len()).collect();
        let mut whole = tap.map(ToTheEnd);
        in_pool(|| {
            let mut tap = whole.as_mut().map(|tap| tap as &mut dyn Tap);
            let mut cache = KeyValues::new(self.shape.key_value_heads, self.shape.head_dim);
            let hidden = self.hidden(tokens, &positions, Memory::OfOneBlock(&mut cache), &mut tap)?;
            self.head(hidden.view(), tap)
        })
    }

    /// An empty cache for this decoder.
    pub fn cache(&self) -> Cache {
        let of_block = || KeyValues::new(self.shape.key_value_heads, self.shape.head_dim);
        Cache { blocks: self.blocks.iter().map(|_| of_block()).collect(), len: 0 }
    }

    /// Goes on from the tokens in the cache with some more, which the cache keeps, and gives the logits after the last.
    ///
    /// # Shapes
    /// The result has `vocab_size` values.
    ///
    /// # Errors
    /// When there are no tokens, one is beyond the vocabulary, or there are too many together with those in the cache; or the
    /// cache is of a decoder of another shape. The cache then is as before.
    pub fn extend(&self, cache: &mut Cache, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
        let logits = self.extend_all(std::slice::from_mut(cache), tokens)?;
        Ok(logits.into_raw_vec_and_offset().0)
    }

    /// Goes on with several texts at the same time, from the tokens in a cache each, with one token each: what reads all weights
    /// once reads them for all texts.
    ///
    /// # Shapes
    /// As many tokens as caches; the result is `[caches, vocab_size]`.
    ///
    /// # Errors
    /// As for [`extend`](Self::extend), or when there are not as many tokens as caches. All caches then are as before.
    pub fn extend_each(&self, caches: &mut [Cache], tokens: &[u32]) -> Result<Array2<f32>, ModelError> {
        if caches.len() != tokens.len() {
            let reason = format!("{} tokens for {} caches: give one for each", tokens.len(), caches.len());
            return Err(ModelError::Tokens { reason });
        }
        self.extend_all(caches, tokens)
    }

    /// Goes on with every cache by as many of the tokens, and gives the logits after the last of each.
    fn extend_all(&self, caches: &mut [Cache], tokens: &[u32]) -> Result<Array2<f32>, ModelError> {
        let is_ours =
            |memory: &KeyValues| memory.shape() == [self.shape.key_value_heads, self.shape.head_dim];
        if caches.iter().any(|c| c.blocks.len() != self.blocks.len() || !c.blocks.iter().all(is_ours)) {
            let reason = "the cache is of another decoder: its blocks or heads are others; use that of `Decoder::cache`";
            return Err(ModelError::Tokens { reason: reason.into() });
        }
        if caches.is_empty() {
            return Ok(Array2::zeros((0, self.vocab_size)));
        }
        let each = tokens.len() / caches.len();
        caches.iter().try_for_each(|cache| self.check(each, cache.len))?;
        let positions: Vec<usize> = caches.iter().flat_map(|cache| cache.len..cache.len + each).collect();
        in_pool(|| {
            let hidden = self.hidden(tokens, &positions, Memory::OfAllBlocks(caches), &mut None)?;
            for cache in caches.iter_mut() {
                cache.len += each;
            }
            let last = hidden.slice(ndarray::s![each - 1..;each, ..]);
            self.head(last, None)
        })
    }

    /// What the last block gives for tokens at these positions.
    fn hidden(
        &self,
        tokens: &[u32],
        positions: &[usize],
        mut memory: Memory<'_>,
        tap: &mut Option<&mut dyn Tap>,
    ) -> Result<Array2<f32>, ModelError> {
        let mut hidden = Vec::new();
        self.embedding.look_up(tokens, self.width, &mut hidden)?;
        let angles = self.rope.angles(positions.iter().copied());
        let mut buffers = Buffers::default();
        for (index, block) in self.blocks.iter().enumerate() {
            block.run(self.shape, &mut hidden, &angles, &mut memory.of(index), &mut buffers, tap)?;
        }
        Ok(Array2::from_shape_vec((tokens.len(), self.width), hidden).unwrap_or_default())
    }

    /// Whether so many tokens can follow those before.
    fn check(&self, tokens: usize, before: usize) -> Result<(), ModelError> {
        let reason = match tokens {
            0 => "a sequence needs at least one token".to_owned(),
            n if n > self.max_tokens - before.min(self.max_tokens) => {
                format!("{} tokens are more than the {} that the model takes", before + n, self.max_tokens)
            }
            _ => return Ok(()),
        };
        Err(ModelError::Tokens { reason })
    }
}

impl LanguageModel for Decoder {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn logits(&self, tokens: &[u32]) -> Result<Array2<f32>, ModelError> {
        self.forward(tokens, None)
    }
}
