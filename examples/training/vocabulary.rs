//! A smaller vocabulary for an encoder whose `tokenizer.json` holds word pieces.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Result;

/// The pieces that stay, by their old ids, ascending: a piece's place in it is its new id.
pub(crate) struct Vocabulary {
    pub(crate) kept: Vec<u32>,
    tokenizer: Value,
}

impl Vocabulary {
    /// Keeps `size` pieces of a tokenizer: those that stand for something special, single characters, so that every text still
    /// becomes tokens, and of the others those that `counts` has most often; where it has none, the first: vocabularies begin with what
    /// is frequent.
    pub(crate) fn cut(folder: &Path, counts: &HashMap<u32, usize>, size: usize) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let wrong = |what: &str| format!("{}: {what}", path.display());
        let text = fs::read_to_string(&path).map_err(|e| wrong(&format!("cannot read: {e}")))?;
        let tokenizer: Value = serde_json::from_str(&text).map_err(|e| wrong(&e.to_string()))?;
        if tokenizer["model"]["type"].as_str().unwrap_or("WordPiece") != "WordPiece" {
            return Err(wrong("only vocabularies of word pieces are cut").into());
        }
        let pieces = pieces(&tokenizer).ok_or_else(|| wrong("`model.vocab` is no table of ids"))?;
        let added: Vec<u32> = added(&tokenizer).collect();
        let rank = |piece: &str, id: u32| {
            let characters = piece.strip_prefix("##").unwrap_or(piece).chars().count();
            let unused = piece.starts_with("[unused");
            match counts.get(&id) {
                _ if added.contains(&id) => (0, 0, id),
                _ if characters == 1 => (1, 0, id),
                Some(count) => (2, usize::MAX - count, id),
                None => (3 + u8::from(unused), 0, id),
            }
        };
        let mut ranked: Vec<_> = pieces.iter().map(|(piece, id)| rank(piece, *id)).collect();
        ranked.sort_unstable();
        if ranked.iter().take_while(|(rank, ..)| *rank < 2).count() > size {
            return Err(wrong("has more special pieces and characters than pieces are to stay").into());
        }
        let mut kept: Vec<u32> = ranked.into_iter().take(size).map(|(_, _, id)| id).collect();
        kept.sort_unstable();
        Ok(Self { kept, tokenizer })
    }

    /// Writes `tokenizer.json` and `vocab.txt` of the pieces that stay.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let new: HashMap<u32, usize> = self.kept.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        let mut of_piece: Vec<(usize, String)> = pieces(&self.tokenizer)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(piece, id)| Some((*new.get(&id)?, piece)))
            .collect();
        of_piece.sort_unstable();
        let lines: Vec<&str> = of_piece.iter().map(|(_, piece)| piece.as_str()).collect();
        fs::write(folder.join("vocab.txt"), lines.join("\n") + "\n")?;

        let mut tokenizer = self.tokenizer.clone();
        let vocab: Map<String, Value> = of_piece.into_iter().map(|(id, piece)| (piece, json!(id))).collect();
        tokenizer["model"]["vocab"] = Value::Object(vocab);
        // nothing is cut or padded unless asked for
        tokenizer["truncation"] = Value::Null;
        tokenizer["padding"] = Value::Null;
        let renew = |id: &mut Value| {
            if let Some(new) = id.as_u64().and_then(|id| new.get(&(id as u32))) {
                *id = json!(new);
            }
        };
        if let Some(added) = tokenizer["added_tokens"].as_array_mut() {
            added.iter_mut().map(|token| &mut token["id"]).for_each(renew);
        }
        if let Some(special) = tokenizer["post_processor"]["special_tokens"].as_object_mut() {
            let ids = special.values_mut().filter_map(|token| token["ids"].as_array_mut());
            ids.flatten().for_each(renew);
        }
        Ok(fs::write(folder.join("tokenizer.json"), serde_json::to_string(&tokenizer)?)?)
    }
}

/// Pieces and their ids.
fn pieces(tokenizer: &Value) -> Option<Vec<(String, u32)>> {
    let pieces = tokenizer["model"]["vocab"].as_object()?.iter();
    pieces.map(|(piece, id)| Some((piece.clone(), u32::try_from(id.as_u64()?).ok()?))).collect()
}

/// The ids of special tokens.
fn added(tokenizer: &Value) -> impl Iterator<Item = u32> {
    let tokens = tokenizer["added_tokens"].as_array().into_iter().flatten();
    tokens.filter_map(|token| Some(token["id"].as_u64()? as u32))
}
