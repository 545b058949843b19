use std::collections::HashMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::Value;

use super::TransformError;
use super::error::{check_finite, check_length};
use crate::checkpoint::Checkpoint;
use crate::kernels::hadamard::Hadamard;
use crate::model::{DecoderWiring, LayerNames, Wiring};

/// A decoder whose blocks work in a rotated space.
///
/// Before a layer multiplies, outliers of its input are spread over all channels, so that fewer bits express both; the network
/// computes the same. As in `QuaRot` (Ashkboos et al., 2024, section 4, stage 1) and with the names of `SpinQuant` (Liu et al.,
/// 2024, section 3):
///
/// - the weights γ of the normalizations become 1; the layers that they feed are multiplied by them instead;
/// - R₁ rotates the residual: `E·R₁` for the embedding, `W·diag(γ)·R₁` for what reads the residual, `R₁ᵀ·W` and
///   `b·R₁` for what adds to it;
/// - R₂ rotates every head of a block's values: `R₂ᵀ·W` for the value layer, `W·R₂` for the output layer.
///
/// Each is `diag(s)·H/√n` with random signs `s` and a [`Hadamard`] matrix `H`. Rotations that would have to be computed while
/// the network runs (R₃ of queries and keys, R₄ before the down layer) are not made. A head that shares the embedding gets a
/// tensor of its own, because γ of the last normalization goes into the head only.
///
/// ```no_run
/// use tersor::transform::{Rotation, RotationOptions, TransformError};
/// use tersor::Checkpoint;
///
/// let checkpoint = Checkpoint::open("SmolLM2-135M")?;
/// let rotation = Rotation::new(&checkpoint, RotationOptions::default())?;
/// for entry in checkpoint.entries() {
///     let rotated = rotation.tensor(&entry.name, |name| {
///         checkpoint.dense(name).map_err(TransformError::from)
///     })?;
///     println!("{}: {}", entry.name, if rotated.is_some() { "rotated" } else { "as it was" });
/// }
/// # Ok::<(), TransformError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Rotation {
    residual: Turn,
    /// Of a head's values, one for every block.
    values: Vec<Turn>,
    changes: HashMap<String, Change>,
    added: Vec<AddedTensor>,
    config: Vec<(&'static str, Value)>,
}

/// How a decoder is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RotationOptions {
    /// Of the random signs.
    pub seed: u64,
    /// Whether to rotate the heads' values (R₂), too.
    pub values: bool,
}

impl Default for RotationOptions {
    /// Seed 0, values rotated.
    fn default() -> Self {
        Self { seed: 0, values: true }
    }
}

/// A tensor that the rotated model has and the original has not.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AddedTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The tensor of the original that it is made of, which has its precision.
    pub like: String,
}

/// `diag(s)·H/√n`.
#[derive(Debug, Clone)]
struct Turn {
    hadamard: Hadamard,
    signs: Vec<f32>,
}

/// What becomes of a tensor.
#[derive(Debug, Clone)]
enum Change {
    Nothing,
    /// So many ones.
    Ones(usize),
    Rotated(Rotated),
}

/// A product with rotations.
#[derive(Debug, Clone)]
struct Rotated {
    /// The tensor of the original that takes part in it.
    source: String,
    rows: usize,
    cols: usize,
    /// The weight of a normalization, which its columns are multiplied by.
    norm: Option<String>,
    /// Rotations on the side of the rows and of the columns.
    sides: [Option<Space>; 2],
}

/// What is rotated.
#[derive(Debug, Clone, Copy)]
enum Space {
    Residual,
    ValuesOf(usize),
}

impl Rotation {
    /// Plans the rotation of the decoder that a checkpoint holds; no tensor is read.
    ///
    /// # Errors
    /// When the network is no decoder, no Hadamard matrix of its sizes is known, or the checkpoint has a tensor that such
    /// a network has not.
    pub fn new(checkpoint: &Checkpoint, options: RotationOptions) -> Result<Self, TransformError> {
        let wiring = match Wiring::of(checkpoint)? {
            Wiring::Decoder(wiring) => wiring,
            Wiring::Encoder(_) => {
                return Err(TransformError::NotRotatable {
                    model_type: "bert".into(),
                    reason: "its normalizations stand on the residual, and subtract a mean and multiply channels, \
                             which a rotated residual does not allow",
                });
            }
        };
        let residual = Turn::new(wiring.hidden, options.seed, 0).ok_or(TransformError::Order {
            what: "`hidden_size`",
            order: wiring.hidden,
            advice: "",
        })?;
        let mut values = Vec::new();
        if options.values {
            for block in 0..wiring.blocks.len() {
                let turn = Turn::new(wiring.heads.size, options.seed, 1 + block as u64);
                values.push(turn.ok_or(TransformError::Order {
                    what: "`head_dim`",
                    order: wiring.heads.size,
                    advice: "; the rotation of values can be left out",
                })?);
            }
        }
        let head = wiring.head.weight();
        let (mut added, mut config) = (Vec::new(), Vec::new());
        if wiring.tied {
            config.push(("tie_word_embeddings", Value::Bool(false)));
            if checkpoint.entry(&head).is_err() {
                let (shape, like) = (vec![wiring.vocab_size, wiring.hidden], wiring.embedding.clone());
                added.push(AddedTensor { name: head, shape, like });
            }
        }
        let changes = changes(&wiring, options.values);
        // a buffer of the rotary embedding that older checkpoints have and nobody reads
        let is_known = |name: &str| changes.contains_key(name) || name.ends_with(".rotary_emb.inv_freq");
        if let Some(entry) = checkpoint.entries().iter().find(|entry| !is_known(&entry.name)) {
            return Err(TransformError::Unknown { name: entry.name.clone() });
        }
        Ok(Self { residual, values, changes, added, config })
    }

    /// Whether a tensor of the original changes.
    pub fn changes(&self, name: &str) -> bool {
        !matches!(self.changes.get(name), None | Some(Change::Nothing))
    }

    /// Tensors that only the rotated model has; [`tensor`](Self::tensor) gives their values, too.
    pub fn added(&self) -> &[AddedTensor] {
        &self.added
    }

    /// Keys of `config.json` that get another value.
    pub fn config(&self) -> &[(&'static str, Value)] {
        &self.config
    }

    /// What becomes of a tensor; `None` if it stays as it is. `read` gives the values of the original's tensors: of this one, or
    /// of the embedding for a head that shares it, and of a normalization's weight.
    ///
    /// The values depend on neither the number of threads nor the instruction level.
    ///
    /// # Shapes
    /// The values are row-major, in the shape that the tensor had.
    ///
    /// # Errors
    /// When a tensor cannot be read, has another number of values than its layer, or holds NaN or an infinity.
    pub fn tensor<E: From<TransformError>>(
        &self,
        name: &str,
        mut read: impl FnMut(&str) -> Result<Vec<f32>, E>,
    ) -> Result<Option<Vec<f32>>, E> {
        let rotated = match self.changes.get(name) {
            None | Some(Change::Nothing) => return Ok(None),
            Some(Change::Ones(len)) => return Ok(Some(vec![1.0; *len])),
            Some(Change::Rotated(rotated)) => rotated,
        };
        let Rotated { source, rows, cols, norm, sides: [left, right] } = rotated;
        let mut checked = |name: &str, len: usize| -> Result<Vec<f32>, E> {
            let values = read(name)?;
            check_length(name, &values, len)?;
            check_finite(name, &values)?;
            Ok(values)
        };
        let mut values = checked(source, rows * cols)?;
        if let Some(norm) = norm {
            let norm = checked(norm, *cols)?;
            for row in values.chunks_exact_mut(*cols) {
                row.iter_mut().zip(&norm).for_each(|(value, norm)| *value *= norm);
            }
        }
        if let Some(Turn { hadamard, signs }) = right.and_then(|space| self.turn(space)) {
            hadamard.rotate_rows(&mut values, signs);
        }
        if let Some(Turn { hadamard, signs }) = left.and_then(|space| self.turn(space)) {
            hadamard.rotate_columns(&mut values, *cols, signs);
        }
        check_finite(name, &values)?;
        Ok(Some(values))
    }

    fn turn(&self, space: Space) -> Option<&Turn> {
        match space {
            Space::Residual => Some(&self.residual),
            Space::ValuesOf(block) => self.values.get(block),
        }
    }
}

impl Turn {
    /// With signs of their own for every stream of a seed.
    fn new(order: usize, seed: u64, stream: u64) -> Option<Self> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream);
        let signs = (0..order).map(|_| if random.next_u32() & 1 == 0 { 1.0 } else { -1.0 }).collect();
        Some(Self { hadamard: Hadamard::new(order)?, signs })
    }
}

/// What becomes of every tensor of a decoder.
fn changes(wiring: &DecoderWiring, with_values: bool) -> HashMap<String, Change> {
    let DecoderWiring { hidden, intermediate, heads, .. } = *wiring;
    let (queries, keys) = (heads.count * heads.size, heads.key_values * heads.size);
    let mut changes = HashMap::new();
    let rotated = |source: &str, [rows, cols]: [usize; 2], norm: Option<&str>, sides| {
        let (source, norm) = (source.to_owned(), norm.map(str::to_owned));
        Change::Rotated(Rotated { source, rows, cols, norm, sides })
    };
    let residual = Some(Space::Residual);
    let tensor = &wiring.embedding;
    let shape = [wiring.vocab_size, hidden];
    changes.insert(tensor.clone(), rotated(tensor, shape, None, [None, residual]));
    let source = if wiring.tied { tensor.clone() } else { wiring.head.weight() };
    let head = rotated(&source, shape, Some(&wiring.norm), [None, residual]);
    changes.insert(wiring.head.weight(), head);
    changes.insert(wiring.norm.clone(), Change::Ones(hidden));

    for (index, block) in wiring.blocks.iter().enumerate() {
        let values = with_values.then_some(Space::ValuesOf(index));
        let mut layer = |layer: &LayerNames, shape: [usize; 2], norm: Option<&str>, sides: [_; 2]| {
            let weight = layer.weight();
            let change = rotated(&weight, shape, norm, sides);
            changes.insert(weight, change);
            if let Some(bias) = layer.bias() {
                // added to the output, it turns with it
                let change = match sides[0] {
                    None => Change::Nothing,
                    space => rotated(&bias, [1, shape[0]], None, [None, space]),
                };
                changes.insert(bias, change);
            }
        };
        let norm = Some(block.input_norm.as_str());
        layer(&block.query, [queries, hidden], norm, [None, residual]);
        layer(&block.key, [keys, hidden], norm, [None, residual]);
        layer(&block.value, [keys, hidden], norm, [values, residual]);
        layer(&block.output, [hidden, queries], None, [residual, values]);
        let norm = Some(block.feed_forward_norm.as_str());
        layer(&block.gate, [intermediate, hidden], norm, [None, residual]);
        layer(&block.up, [intermediate, hidden], norm, [None, residual]);
        layer(&block.down, [hidden, intermediate], None, [residual, None]);
        for norm in [&block.input_norm, &block.feed_forward_norm] {
            changes.insert(norm.clone(), Change::Ones(hidden));
        }
        for norm in &block.query_key_norms {
            changes.insert(norm.clone(), Change::Nothing);
        }
    }
    changes
}
