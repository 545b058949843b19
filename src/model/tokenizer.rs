use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde_json::Value;
use tokenizers::{Encoding, ModelWrapper};

use crate::checkpoint::Checkpoint;
use crate::file::read_regular;

/// Why a text could not be turned into tokens, or tokens into a text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The checkpoint has no tokenizer.
    #[error(
        "{}: there is no such file, and without it text cannot become tokens: copy it there from the model's source",
        path.display()
    )]
    Missing {
        /// Where it would be.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{}: cannot read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no tokenizer, or `config.json` contradicts it.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The tokenizer cannot do what is asked of it.
    #[error("{}: {reason}", path.display())]
    Text {
        /// The tokenizer's file.
        path: PathBuf,
        /// What it cannot do.
        reason: String,
    },
}

/// Turns text into the tokens of a model, and back.
///
/// It is what `tokenizer.json` describes, except that nothing is truncated or padded unless asked for, and the random
/// dropout of merges, meant for training, is off.
///
/// Format: <https://huggingface.co/docs/tokenizers>.
///
/// ```no_run
/// use tersor::{Checkpoint, Tokenizer};
///
/// let tokenizer = Tokenizer::of(&Checkpoint::open("all-MiniLM-L6-v2")?)?;
/// let tokens = tokenizer.encode("A girl is styling her hair.", true)?;
/// assert_eq!(tokens.first(), Some(&101)); // [CLS]
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    bos: Option<u32>,
    eos: Vec<u32>,
}

impl fmt::Debug for Tokenizer {
    /// Without the vocabulary.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inner: _, path, bos, eos } = self;
        f.debug_struct("Tokenizer")
            .field("path", path)
            .field("vocab_size", &self.vocab_size())
            .field("bos", bos)
            .field("eos", eos)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` beside a checkpoint's weights.
    ///
    /// # Errors
    /// When it is missing, cannot be read, or is no tokenizer; or when the ids in `config.json` are none.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, TokenizerError> {
        let path = checkpoint.path();
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        let path = folder.join("tokenizer.json");
        let bytes = match read_regular(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(TokenizerError::Missing { path });
            }
            Err(source) => return Err(TokenizerError::Io { path, source }),
        };
        let bad = |reason: String| TokenizerError::Format { path: path.clone(), reason };
        let inner = catch(|| parse(&bytes)).map_err(|reason| bad(format!("is no tokenizer: {reason}")))?;
        let ids = |key: &str| match checkpoint.config().and_then(|config| config.get(key)) {
            None => Ok(Vec::new()),
            Some(value) => token_ids(value).ok_or_else(|| TokenizerError::Format {
                path: folder.join("config.json"),
                reason: format!("{key} is {value}, neither a token id nor a list of them"),
            }),
        };
        let bos = ids("bos_token_id")?.first().copied();
        Ok(Self { inner, bos, eos: ids("eos_token_id")?, path })
    }

    /// The tokens of a text, with those that the model wants around it (such as `[CLS]` and `[SEP]`) or without.
    ///
    /// # Errors
    /// When the tokenizer has no token for something in the text and none for the unknown.
    pub fn encode(&self, text: &str, special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.encoding(text, special_tokens)?.get_ids().to_vec())
    }

    /// As [`encode`](Self::encode) with special tokens, but no more than `max_tokens` of them all: the text's last ones
    /// are left out, the special ones stay.
    ///
    /// # Errors
    /// As there, and when the special tokens alone are as many.
    pub fn encode_truncated(&self, text: &str, max_tokens: usize) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.encoding(text, true)?;
        let special = encoding.get_special_tokens_mask();
        let specials = special.iter().filter(|special| **special == 1).count();
        if max_tokens <= specials {
            let reason = format!("{max_tokens} tokens leave no room for text beside {specials} special ones");
            return Err(self.cannot(reason));
        }
        let mut room = max_tokens - specials;
        let mut kept = Vec::with_capacity(max_tokens.min(special.len()));
        for (id, special) in encoding.get_ids().iter().zip(special) {
            if *special == 1 {
                kept.push(*id);
            } else if room > 0 {
                room -= 1;
                kept.push(*id);
            }
        }
        Ok(kept)
    }

    /// The text of some tokens, special ones left out.
    ///
    /// # Errors
    /// When one is not in the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        if let Some(position) = tokens.iter().position(|id| self.inner.id_to_token(*id).is_none()) {
            let id = tokens[position];
            return Err(self
                .cannot(format!("has no token with the id {id}, at position {position} (counted from 0)")));
        }
        catch(|| self.inner.decode(tokens, true)).map_err(|reason| self.cannot(reason))
    }

    /// Number of different tokens, added ones included. A model's may be larger: many are rounded up.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token that begins a text, if `config.json` names one (`bos_token_id`; the first of a list).
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end a text, as far as `config.json` names them (`eos_token_id`).
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    fn encoding(&self, text: &str, special_tokens: bool) -> Result<Encoding, TokenizerError> {
        catch(|| self.inner.encode_fast(text, special_tokens)).map_err(|reason| self.cannot(reason))
    }

    fn cannot(&self, reason: String) -> TokenizerError {
        TokenizerError::Text { path: self.path.clone(), reason }
    }
}

fn parse(bytes: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
    // what is no JSON makes some of the readers below panic
    let _: IgnoredAny = serde_json::from_slice(bytes)?;
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes)?;
    tokenizer.with_truncation(None)?.with_padding(None);
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        tokenizer.with_model(bpe);
    }
    Ok(tokenizer)
}

/// A number or a list of numbers; null is none.
fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(values) => values.iter().map(id).collect(),
        value => id(value).map(|id| vec![id]),
    }
}

/// The reason of a failure, be it an error or a panic: a description that contradicts itself can make the foreign code
/// panic. What it then leaves behind is dropped, or was only read.
fn catch<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| crate::one_line(error.as_ref())),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            let text = text.unwrap_or_else(|| "for no given reason".into()).replace('\n', " ");
            Err(format!("it contradicts itself ({text})"))
        }
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
