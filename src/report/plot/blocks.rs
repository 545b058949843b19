//! Layers of a transformer by their names: which block, and which of its parts.

/// What a block is called in the names of common architectures.
const BLOCKS: [&str; 5] = ["layers", "layer", "h", "blocks", "block"];

/// Parts of a block whose names have a shorter form.
const KINDS: [(&str, &str); 13] = [
    ("self_attn.q_proj", "q"),
    ("self_attn.k_proj", "k"),
    ("self_attn.v_proj", "v"),
    ("self_attn.o_proj", "o"),
    ("mlp.gate_proj", "gate"),
    ("mlp.up_proj", "up"),
    ("mlp.down_proj", "down"),
    ("attention.self.query", "query"),
    ("attention.self.key", "key"),
    ("attention.self.value", "value"),
    ("attention.output.dense", "dense"),
    ("intermediate.dense", "intermediate"),
    ("output.dense", "output"),
];

/// Number of the block, and kind of the weight in it; `None` of what is no weight of a block.
pub(super) fn block_and_kind(name: &str) -> Option<(usize, String)> {
    let module = name.strip_suffix(".weight")?;
    let parts: Vec<&str> = module.split('.').collect();
    let at = parts.windows(2).position(|pair| BLOCKS.contains(&pair[0]) && number(pair[1]).is_some())?;
    let rest = parts.get(at + 2..).filter(|rest| !rest.is_empty())?.join(".");
    let kind = KINDS.iter().find(|(long, _)| *long == rest).map_or(rest.as_str(), |(_, short)| short);
    Some((number(parts[at + 1])?, kind.to_owned()))
}

/// Where a kind stands in the order in which data goes through a block; those that are not known come last.
pub(super) fn rank(kind: &str) -> usize {
    KINDS.iter().position(|(_, short)| *short == kind).unwrap_or(KINDS.len())
}

fn number(text: &str) -> Option<usize> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_common_architectures() {
        for (name, expected) in [
            ("model.layers.11.self_attn.q_proj.weight", Some((11, "q"))),
            ("model.layers.0.mlp.down_proj.weight", Some((0, "down"))),
            ("encoder.layer.3.attention.self.key.weight", Some((3, "key"))),
            ("encoder.layer.3.attention.output.dense.weight", Some((3, "dense"))),
            ("encoder.layer.3.output.dense.weight", Some((3, "output"))),
            ("transformer.h.5.attn.c_attn.weight", Some((5, "attn.c_attn"))),
            ("model.layers.0.self_attn.q_proj.bias", None),
            ("model.embed_tokens.weight", None),
            ("layers.0.weight", None),
            ("layers.99999999999999999999999.fc.weight", None),
            ("layers.+1.fc.weight", None),
        ] {
            assert_eq!(block_and_kind(name), expected.map(|(n, kind)| (n, kind.to_owned())), "{name}");
        }
    }
}
