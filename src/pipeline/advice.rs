//! What the output format cannot hold, and what to do about it.

use serde_json::Value;

use super::plan::compressible;
use crate::checkpoint::{Checkpoint, Entry};
use crate::dtype::Precision;
use crate::recipe::{Decision, Recipe};
use crate::weight::{Coding, Form, Granularity};

/// Whether a weight is one of the `[in_features, out_features]` ones of the first GPT models.
pub(super) fn is_transposed(checkpoint: &Checkpoint, entry: &Entry) -> bool {
    let model_type = checkpoint.config().and_then(|c| c.get("model_type")).and_then(Value::as_str);
    let layer = entry.module().rsplit('.').next();
    matches!(model_type, Some("gpt2" | "openai-gpt"))
        && matches!(layer, Some("c_attn" | "q_attn" | "c_proj" | "c_fc"))
}

/// What to do about a form that the format cannot hold.
pub(super) fn advice(checkpoint: &Checkpoint, recipe: &Recipe, form: &Form) -> String {
    let other = "ignore this tensor, or choose the format `tersor`, which only tersor reads";
    let Some(Granularity::Group(size)) = form.coding().granularity().filter(|_| form.is_ragged()) else {
        return other.to_owned();
    };
    // a size that serves every layer in groups, not only this one
    let grouped = checkpoint.entries().iter().filter(|e| {
        let decision = recipe.decide(&e.name, e.class);
        let Ok(Decision::Apply { written: Some((_, written)), .. }) = decision else { return false };
        let granularity = written.method().coding(Coding::Float(Precision::F32)).granularity();
        compressible(e).is_ok() && matches!(granularity, Some(Granularity::Group(_)))
    });
    let common = grouped.fold(form.cols(), |common, e| gcd(common, e.shape.iter().skip(1).product()));
    let sizes = (2..=size.get().min(common)).rev().filter(|d| common.is_multiple_of(*d)).take(3);
    let sizes: Vec<String> = sizes.map(|d| d.to_string()).collect();
    if sizes.is_empty() {
        return format!("no smaller group size divides the columns of every layer: {other}");
    }
    format!("choose a group size that divides the columns of every layer ({}), {other}", sizes.join(", "))
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
