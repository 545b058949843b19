use std::fmt;

use regex::Regex;

use super::RecipeError;

/// Names tensors: `*` stands for any characters, `?` for one; or `re:` and a regular expression, matched from the start.
///
/// A pattern is held against the tensor's name and against the module's, which is the name without `.weight`.
///
/// ```
/// use tersor::Pattern;
///
/// let pattern = Pattern::new("model.layers.*.mlp.down_proj")?;
/// assert!(pattern.matches("model.layers.11.mlp.down_proj.weight"));
/// assert!(!pattern.matches("model.layers.11.mlp.up_proj.weight"));
/// assert!(Pattern::new(r"re:.*\.(q|k)_proj")?.matches("layers.0.q_proj.weight"));
/// # Ok::<(), tersor::RecipeError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// When what follows `re:` is no regular expression.
    pub fn new(text: &str) -> Result<Self, RecipeError> {
        let expression = match text.strip_prefix("re:") {
            Some(expression) => format!("^(?:{expression})"),
            None => format!("^{}$", regex::escape(text).replace(r"\*", ".*").replace(r"\?", ".")),
        };
        let regex = Regex::new(&expression).map_err(|e| RecipeError::Pattern {
            pattern: text.to_owned(),
            reason: e.to_string().lines().last().unwrap_or_default().to_owned(),
        })?;
        Ok(Self { text: text.to_owned(), regex })
    }

    /// Whether the pattern names a tensor.
    pub fn matches(&self, tensor: &str) -> bool {
        let module = tensor.strip_suffix(".weight");
        self.regex.is_match(tensor) || module.is_some_and(|m| self.regex.is_match(m))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
