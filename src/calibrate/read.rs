use std::path::Path;

use ndarray::Array2;
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
#[cfg(feature = "text")]
use serde_json::Value;

use super::samples::Kind;
use super::{CalibrateError, Samples};
use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
use crate::evaluate::DataError;
#[cfg(feature = "text")]
use crate::evaluate::read_text;
#[cfg(feature = "text")]
use crate::model::Tokenizer;

/// How many samples are taken of a file, and how long they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Samples; all there are if there are fewer.
    pub samples: usize,
    /// Most tokens of one.
    pub context: usize,
    /// Which of them are taken when there are more.
    pub seed: u64,
}

impl Cut {
    /// Of `count`, the numbers of those that are taken, in order.
    fn choose(self, count: usize) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut chosen = index::sample(&mut rng, count, self.samples.min(count)).into_vec();
        chosen.sort_unstable();
        chosen
    }
}

impl Samples {
    /// Samples from a file, by the ending of its name:
    ///
    /// * `.safetensors`: a tensor `input_ids` of integers, `[samples, tokens]`, or `inputs` of floats, `[samples, features]`;
    /// * `.jsonl`: on every line an object with `input_ids`, a list of tokens, or `text`;
    /// * anything else: UTF-8 text. For a `decoder` it is cut into pieces of [`Cut::context`] tokens, without special ones; for an
    ///   encoder every line is a sample, with the tokens that the model wants around it.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no sample; for texts also without a tokenizer.
    #[cfg(feature = "text")]
    pub fn read(
        path: impl AsRef<Path>,
        cut: Cut,
        decoder: bool,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Self, CalibrateError> {
        let path = path.as_ref();
        let needs_tokenizer = || {
            let reason = "holds text, but the model has no tokenizer.json beside it; give token ids";
            tokenizer.ok_or_else(|| bad(path, reason.into()))
        };
        let encode = |tokenizer: &Tokenizer, text: &str| {
            if decoder {
                let mut tokens = tokenizer.encode(text, false)?;
                tokens.truncate(cut.context);
                Ok::<_, CalibrateError>(tokens)
            } else {
                Ok(tokenizer.encode_truncated(text, cut.context)?)
            }
        };
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            Some("safetensors") => Self::read_tensors(path, cut),
            Some("jsonl") => {
                let lines = read_lines(path)?;
                let chosen: Vec<&(usize, Value)> =
                    cut.choose(lines.len()).into_iter().map(|i| &lines[i]).collect();
                let mut sequences = Vec::with_capacity(chosen.len());
                for (line, value) in chosen {
                    let tokens = match (token_ids(value), value.get("text").and_then(Value::as_str)) {
                        (Some(tokens), _) => tokens.into_iter().take(cut.context).collect(),
                        (None, Some(text)) => encode(needs_tokenizer()?, text)?,
                        (None, None) => {
                            let reason = format!("line {line} has neither `text` nor a list of `input_ids`");
                            return Err(bad(path, reason));
                        }
                    };
                    if tokens.is_empty() {
                        return Err(bad(path, format!("line {line} has no tokens")));
                    }
                    sequences.push(tokens);
                }
                Self::of_file(path, sequences)
            }
            _ => {
                let text = read_text(path)?;
                let tokenizer = needs_tokenizer()?;
                let sequences: Vec<Vec<u32>> = if decoder {
                    let tokens = tokenizer.encode(&text, false)?;
                    let pieces: Vec<&[u32]> = tokens.chunks_exact(cut.context.max(1)).collect();
                    cut.choose(pieces.len()).into_iter().map(|i| pieces[i].to_vec()).collect()
                } else {
                    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
                    let chosen = cut.choose(lines.len()).into_iter();
                    chosen.map(|i| encode(tokenizer, lines[i])).collect::<Result<_, _>>()?
                };
                if sequences.is_empty() {
                    let reason = format!("holds fewer than the {} tokens of one sample", cut.context);
                    return Err(bad(path, reason));
                }
                Self::of_file(path, sequences)
            }
        }
    }

    /// Samples from the tensors of a safetensors file, as [`read`](Self::read) describes them.
    ///
    /// # Errors
    /// When the file cannot be read, or has neither tensor, or one of another type or shape.
    pub fn read_tensors(path: impl AsRef<Path>, cut: Cut) -> Result<Self, CalibrateError> {
        let path = path.as_ref();
        let file = Checkpoint::open(path).map_err(crate::model::ModelError::from)?;
        if let Ok(ids) = file.tensor("input_ids") {
            let [samples, tokens] = ids.shape else {
                return Err(bad(
                    path,
                    format!("`input_ids` has the shape {:?}, not [samples, tokens]", ids.shape),
                ));
            };
            let wide = |bytes: &[u8]| match ids.dtype {
                DType::I64 => {
                    bytes.as_chunks::<8>().0.iter().map(|x| i64::from_le_bytes(*x)).collect::<Vec<_>>()
                }
                DType::I32 => {
                    bytes.as_chunks::<4>().0.iter().map(|x| i32::from_le_bytes(*x).into()).collect()
                }
                _ => bytes.as_chunks::<4>().0.iter().map(|x| u32::from_le_bytes(*x).into()).collect(),
            };
            if !matches!(ids.dtype, DType::I64 | DType::I32 | DType::U32) {
                return Err(bad(path, format!("`input_ids` is {:?}, not I64, I32 or U32", ids.dtype)));
            }
            let row_bytes = ids.bytes.len().checked_div(*samples).unwrap_or(0);
            let mut sequences = Vec::new();
            for sample in cut.choose(*samples) {
                let row = wide(&ids.bytes[sample * row_bytes..(sample + 1) * row_bytes]);
                let tokens: Result<Vec<u32>, _> =
                    row.iter().take(cut.context).map(|id| u32::try_from(*id)).collect();
                sequences.push(tokens.map_err(|_| {
                    bad(path, format!("`input_ids` has no token in sample {sample}: negative or too large"))
                })?);
            }
            if sequences.is_empty() || *tokens == 0 {
                return Err(bad(path, "`input_ids` holds no tokens".into()));
            }
            return Self::of_file(path, sequences);
        }
        let Ok(entry) = file.entry("inputs") else {
            return Err(bad(path, "has neither a tensor `input_ids` nor `inputs`".into()));
        };
        let [samples, features] = entry.shape[..] else {
            return Err(bad(
                path,
                format!("`inputs` has the shape {:?}, not [samples, features]", entry.shape),
            ));
        };
        let values = file.dense("inputs").map_err(crate::model::ModelError::from)?;
        let chosen = cut.choose(samples);
        let inputs = Array2::from_shape_fn((chosen.len(), features), |(row, feature)| {
            values[chosen[row] * features + feature]
        });
        let samples = Self::features(inputs).map_err(|error| bad(path, error.to_string()))?;
        Ok(Self { path: Some(path.to_path_buf()), ..samples })
    }

    fn of_file(path: &Path, sequences: Vec<Vec<u32>>) -> Result<Self, CalibrateError> {
        let samples = Self::tokens(sequences).map_err(|error| bad(path, error.to_string()))?;
        debug_assert!(matches!(samples.kind, Kind::Tokens(_)));
        Ok(Self { path: Some(path.to_path_buf()), ..samples })
    }
}

fn bad(path: &Path, reason: String) -> CalibrateError {
    DataError::Format { path: path.to_path_buf(), reason }.into()
}

/// The objects of a file of JSON lines, with the numbers of their lines.
#[cfg(feature = "text")]
fn read_lines(path: &Path) -> Result<Vec<(usize, Value)>, CalibrateError> {
    let text = read_text(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(index, line): (usize, &str)| {
        let value = serde_json::from_str(line);
        value.map(|value| (index + 1, value)).map_err(|e| bad(path, format!("line {}: {e}", index + 1)))
    };
    lines.map(parse).collect()
}

#[cfg(feature = "text")]
fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    value.get("input_ids")?.as_array()?.iter().map(id).collect()
}
