use crate::error::nearest;
use crate::layer::MethodError;

/// What can be wrong with a recipe.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The TOML is malformed.
    #[error("recipe: {reason}")]
    Syntax {
        /// What the parser says, with the line.
        reason: String,
    },
    /// A key that does not exist.
    #[error("recipe: unknown key `{key}` in {place}{}", suggest(nearest.as_ref(), valid))]
    UnknownKey {
        /// The key.
        key: String,
        /// The table it stands in.
        place: String,
        /// The most similar valid key.
        nearest: Option<String>,
        /// All valid keys.
        valid: String,
    },
    /// A name of something that does not exist: a preset, class, method, observer and so on.
    #[error("recipe: unknown {what} `{name}`{}", suggest(nearest.as_ref(), valid))]
    UnknownName {
        /// What it should name.
        what: &'static str,
        /// The name.
        name: String,
        /// The most similar valid name.
        nearest: Option<String>,
        /// All valid names.
        valid: String,
    },
    /// A value outside its range.
    #[error("recipe: {place}: {reason}")]
    Value {
        /// The key.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A pattern that is no regular expression.
    #[error("recipe: pattern `{pattern}`: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What the parser says.
        reason: String,
    },
    /// A tensor would be pruned after its codes have been fixed.
    #[error(
        "tensor `{tensor}`: step {prune} prunes what step {quantize} already quantized; put the pruning step first"
    )]
    PruneAfterQuantize {
        /// The tensor.
        tensor: String,
        /// The pruning step, counted from 1.
        prune: usize,
        /// The quantizing step, counted from 1.
        quantize: usize,
    },
    /// A tensor would be pruned and made a product of factors, which has no zeros.
    #[error(
        "tensor `{tensor}`: step {prune} prunes it and step {factorize} factorizes it, which leaves no zeros; choose one of them"
    )]
    PruneAndFactorize {
        /// The tensor.
        tensor: String,
        /// The pruning step, counted from 1.
        prune: usize,
        /// The factorizing step, counted from 1.
        factorize: usize,
    },
    /// An option of a method outside its range.
    #[error("recipe: {0}")]
    Method(#[from] MethodError),
}

fn suggest(nearest: Option<&String>, valid: &str) -> String {
    match nearest {
        Some(nearest) => format!("; did you mean `{nearest}`? (valid: {valid})"),
        None => format!(" (valid: {valid})"),
    }
}

impl RecipeError {
    pub(crate) fn unknown_name(what: &'static str, name: &str, valid: &[&str]) -> Self {
        Self::UnknownName {
            what,
            name: name.to_owned(),
            nearest: nearest(name, valid),
            valid: valid.join(", "),
        }
    }

    pub(crate) fn unknown_key(key: &str, place: &str, valid: &[&str]) -> Self {
        Self::UnknownKey {
            key: key.to_owned(),
            place: place.to_owned(),
            nearest: nearest(key, valid),
            valid: valid.join(", "),
        }
    }

    pub(crate) fn value(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Value { place: place.into(), reason: reason.into() }
    }
}
