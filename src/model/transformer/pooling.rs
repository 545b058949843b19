use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value};

use crate::checkpoint::Checkpoint;
use crate::file::read_regular;
use crate::model::ModelError;

/// How the vectors of a sentence's tokens become one, as sentence-transformers describes it beside the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pooling {
    how: How,
    /// Whether the result is divided by its Euclidean norm.
    normalize: bool,
    /// Most tokens of a sentence, if the model says so.
    pub(super) max_tokens: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// The vector of the first token.
    First,
    Mean,
    /// The largest of each value.
    Max,
    /// The sum, divided by the root of the number of tokens.
    MeanOfRoot,
}

impl Pooling {
    /// Reads `modules.json`, the pooling module's `config.json` and `sentence_bert_config.json`. Without them, tokens are
    /// averaged and the result is not normalized, as sentence-transformers does it.
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        let mut pooling = Self { how: How::Mean, normalize: false, max_tokens: None };
        let folder = checkpoint.path();
        if !folder.is_dir() {
            return Ok(pooling);
        }
        let path = folder.join("sentence_bert_config.json");
        if let Some(config) = read(&path)? {
            pooling.max_tokens = match config.get("max_seq_length") {
                None | Some(Value::Null) => None,
                Some(value) => match value.as_u64() {
                    Some(n @ 1..) => Some(n as usize),
                    _ => return Err(error(&path, format!("`max_seq_length` is {value}"))),
                },
            };
        }
        let path = folder.join("modules.json");
        let modules = match read(&path)? {
            None => return Ok(pooling),
            Some(Value::Array(modules)) => modules,
            Some(_) => return Err(error(&path, "is no list of modules".into())),
        };
        for module in &modules {
            let text = |key: &str| module.get(key).and_then(Value::as_str);
            let (Some(kind), Some(place)) = (text("type"), text("path")) else {
                return Err(error(&path, "has a module without `type` and `path`".into()));
            };
            match kind.rsplit('.').next().unwrap_or(kind) {
                "Transformer" => {}
                "Pooling" => pooling.how = how(&folder.join(place).join("config.json"))?,
                "Normalize" => pooling.normalize = true,
                other => {
                    let reason = format!(
                        "has a module `{other}`, which tersor does not run (Transformer, Pooling, Normalize)"
                    );
                    return Err(error(&path, reason));
                }
            }
        }
        Ok(pooling)
    }

    /// The vector of a sentence.
    ///
    /// # Shapes
    /// `tokens` is `[tokens, out.len()]`, with at least one token.
    pub(super) fn pool(&self, tokens: &[f32], out: &mut [f32]) {
        let mut rows = tokens.chunks_exact(out.len().max(1));
        let count = rows.len() as f32;
        out.copy_from_slice(rows.next().unwrap_or_default());
        if self.how != How::First {
            for row in rows {
                for (out, x) in out.iter_mut().zip(row) {
                    match self.how {
                        // a comparison, because `max` would lose NaN
                        How::Max => *out = if *x > *out || x.is_nan() { *x } else { *out },
                        _ => *out += x,
                    }
                }
            }
        }
        match self.how {
            How::First | How::Max => {}
            How::Mean => out.iter_mut().for_each(|x| *x /= count),
            How::MeanOfRoot => out.iter_mut().for_each(|x| *x /= count.sqrt()),
        }
        if self.normalize {
            let norm = out.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            // as the reference does for vectors of zeros
            let norm = norm.max(1e-12) as f32;
            for x in out {
                *x /= norm;
            }
        }
    }
}

fn how(path: &Path) -> Result<How, ModelError> {
    const FLAGS: [(&str, How); 4] = [
        ("pooling_mode_cls_token", How::First),
        ("pooling_mode_mean_tokens", How::Mean),
        ("pooling_mode_max_tokens", How::Max),
        ("pooling_mode_mean_sqrt_len_tokens", How::MeanOfRoot),
    ];
    let Some(config) = read(path)? else {
        return Err(error(path, "is missing, though modules.json names it".into()));
    };
    let none = Map::new();
    let config = config.as_object().unwrap_or(&none);
    let is_set = |value: &Value| value == &Value::Bool(true);
    let mut set = config.iter().filter(|(key, value)| key.starts_with("pooling_mode_") && is_set(value));
    let (name, more) = match (config.get("pooling_mode").and_then(Value::as_str), set.next()) {
        (Some("cls"), _) => return Ok(How::First),
        (Some("mean"), _) => return Ok(How::Mean),
        (Some("max"), _) => return Ok(How::Max),
        (Some("mean_sqrt_len_tokens"), _) => return Ok(How::MeanOfRoot),
        (Some(other), _) => (other, None),
        (None, Some((name, _))) => (name.as_str(), set.next()),
        (None, None) => return Err(error(path, "names no way of pooling".into())),
    };
    match (FLAGS.iter().find(|(flag, _)| *flag == name), more) {
        (Some((_, how)), None) => Ok(*how),
        (_, Some((more, _))) => {
            Err(error(path, format!("asks for `{name}` and `{more}`; tersor joins none")))
        }
        (None, None) => Err(error(path, format!("pools by `{name}`, which tersor does not"))),
    }
}

fn read(path: &Path) -> Result<Option<Value>, ModelError> {
    let bytes = match read_regular(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(|e| error(path, format!("cannot read: {e}")))?,
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| error(path, e.to_string()))
}

fn error(path: &Path, reason: String) -> ModelError {
    ModelError::Architecture { path: path.to_path_buf(), reason }
}
