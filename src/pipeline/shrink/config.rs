//! What `config.json` says of the smaller network.

use serde_json::{Value, json};

use super::plan::PlannedUnits;
use crate::model::structure::Structure;
use crate::model::{SequentialConfig, UnitKind};

/// `config.json` of the output: the source's with the numbers that change.
///
/// `kept_blocks` says of every block whether it stays.
pub(super) fn shrunk_config(
    source: Option<&Value>,
    structure: &Structure,
    units: &[PlannedUnits],
    kept_blocks: &[bool],
) -> Option<Value> {
    if let Some(config) = &structure.sequential {
        // without a description, the shapes of fewer neurons might fit together in several ways
        return Some(source.cloned().unwrap_or_else(|| described(config)));
    }
    let mut config = source?.clone();
    for group in units {
        match group.kind {
            UnitKind::Neurons => config["intermediate_size"] = json!(group.after),
            UnitKind::Heads => {
                config["num_attention_heads"] = json!(group.after * group.sharing);
                config["num_key_value_heads"] = json!(group.after);
                // what the size of a head follows from where it is not said
                config["head_dim"] = json!(group.head_size);
            }
            UnitKind::Channels => {}
        }
    }
    let kept = kept_blocks.iter().filter(|kept| **kept).count();
    if kept < kept_blocks.len() {
        config["num_hidden_layers"] = json!(kept);
        if let Some(types) = config.get_mut("layer_types").and_then(Value::as_array_mut) {
            let mut blocks = kept_blocks.iter();
            types.retain(|_| blocks.next().copied().unwrap_or(true));
        }
        // the first so many blocks look back to the first token
        let first = config.get("max_window_layers").and_then(Value::as_u64).or_else(|| {
            let windowed = config.get("use_sliding_window").and_then(Value::as_bool) == Some(true);
            let listed = config.get("layer_types").is_some_and(|types| !types.is_null());
            // what it is where nothing is said
            (windowed && !listed).then_some(28)
        });
        if let Some(first) = first {
            let full = kept_blocks.iter().take(usize::try_from(first).unwrap_or(usize::MAX));
            let beyond = (first as usize).saturating_sub(kept_blocks.len());
            config["max_window_layers"] = json!(full.filter(|kept| **kept).count() + beyond);
        }
    }
    Some(config)
}

fn described(config: &SequentialConfig) -> Value {
    let mut value = json!(config);
    value["model_type"] = json!("sequential");
    value
}
