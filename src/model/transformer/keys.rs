use std::path::Path;

use serde_json::{Map, Value};

use crate::checkpoint::Checkpoint;
use crate::kernels::activate::Activation;
use crate::model::ModelError;

/// Largest value of a count in a configuration: more is a mistake, not a network.
const MAX_COUNT: u64 = 1 << 24;

/// The keys of a `config.json`, or of an object in it.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    path: &'a Path,
    /// Where the object stands: empty, or `rope_scaling.`.
    place: &'static str,
    object: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    pub(super) fn of(checkpoint: &'a Checkpoint) -> Result<Self, ModelError> {
        let path = checkpoint.path();
        let config = checkpoint.config().and_then(Value::as_object);
        let object = config.ok_or_else(|| ModelError::Architecture {
            path: path.to_path_buf(),
            reason: "there is no config.json with an object".into(),
        })?;
        Ok(Self { path, place: "", object })
    }

    pub(super) fn error(&self, reason: impl std::fmt::Display) -> ModelError {
        ModelError::Architecture { path: self.path.to_path_buf(), reason: format!("config.json: {reason}") }
    }

    fn wrong(&self, key: &str, value: &Value, expected: &str) -> ModelError {
        self.error(format!("`{}{key}` is {value}, not {expected}", self.place))
    }

    /// The value of a key, if it is there and not null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, ModelError> {
        value.ok_or_else(|| self.error(format!("the key `{}{key}` is missing", self.place)))
    }

    pub(super) fn optional_count(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.get(key)
            .map(|value| match value.as_u64() {
                Some(n @ 1..=MAX_COUNT) => Ok(n as usize),
                _ => Err(self.wrong(key, value, &format!("a number from 1 to {MAX_COUNT}"))),
            })
            .transpose()
    }

    pub(super) fn count(&self, key: &str) -> Result<usize, ModelError> {
        self.required(key, self.optional_count(key)?)
    }

    /// A number that may also be 0.
    pub(super) fn index_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => match value.as_u64() {
                Some(n @ 0..=MAX_COUNT) => Ok(n as usize),
                _ => Err(self.wrong(key, value, &format!("a number from 0 to {MAX_COUNT}"))),
            },
        }
    }

    pub(super) fn optional_positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.get(key)
            .map(|value| match value.as_f64() {
                Some(x) if x > 0.0 && x.is_finite() => Ok(x),
                _ => Err(self.wrong(key, value, "a positive number")),
            })
            .transpose()
    }

    pub(super) fn positive(&self, key: &str) -> Result<f64, ModelError> {
        self.required(key, self.optional_positive(key)?)
    }

    pub(super) fn flag_or(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false")),
        }
    }

    pub(super) fn string_or<'s>(&self, key: &str, default: &'s str) -> Result<&'s str, ModelError>
    where
        'a: 's,
    {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_str().ok_or_else(|| self.wrong(key, value, "a string")),
        }
    }

    pub(super) fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let strings = value.as_array().map(|all| all.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        match strings {
            Some(Some(strings)) => Ok(Some(strings)),
            _ => Err(self.wrong(key, value, "a list of strings")),
        }
    }

    pub(super) fn object(&self, key: &str, place: &'static str) -> Result<Option<Keys<'a>>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let object = value.as_object().ok_or_else(|| self.wrong(key, value, "an object"))?;
        Ok(Some(Keys { path: self.path, place, object }))
    }

    /// The function between two linear layers.
    pub(super) fn activation(&self, default: &str) -> Result<Activation, ModelError> {
        match self.string_or("hidden_act", default)? {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => Err(self.error(format!(
                "`hidden_act` is `{other}`; tersor runs silu, gelu, gelu_new, gelu_pytorch_tanh and relu"
            ))),
        }
    }
}
