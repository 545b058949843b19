//! What rooms share about errors; each room's own errors live in the room.

use std::error::Error;

/// A value that no method can work on.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{value} at index {index}")]
pub struct NonFinite {
    /// Index of the first such value, counted row-major from 0.
    pub index: usize,
    /// The value: NaN or an infinity.
    pub value: f32,
}

/// Writes an error and its causes as one line: `outer: cause: cause of the cause`.
///
/// A cause that the outer message already holds is not repeated.
pub fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = inner.source();
    }
    line.replace('\n', " ")
}

/// The most similar of some names, if one is similar at all.
pub(crate) fn nearest(name: &str, valid: &[&str]) -> Option<String> {
    valid
        .iter()
        .map(|v| (strsim::jaro_winkler(name, v), *v))
        .filter(|(similarity, _)| *similarity > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, v)| v.to_owned())
}
