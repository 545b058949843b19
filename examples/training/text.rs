//! Sentences of plain text, and where text is looked for.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::Result;

/// A file or folder of test data: `given`, or `name` in the folder that `TERSOR_ZOO` names. `needs` says where else to get it.
pub(crate) fn find(given: Option<&str>, name: &str, option: &str, needs: &str) -> Result<PathBuf> {
    let zoo = std::env::var_os("TERSOR_ZOO").map(|zoo| Path::new(&zoo).join(name));
    let path = match (given, zoo) {
        (Some(given), _) => PathBuf::from(given),
        (None, Some(place)) => place,
        (None, None) => {
            return Err(format!(
                "say {option} PATH, or set TERSOR_ZOO to a folder with {name} in it: {needs}"
            )
            .into());
        }
    };
    if path.exists() { Ok(path) } else { Err(format!("{} does not exist: {needs}", path.display()).into()) }
}

/// The different sentences of some files, in alphabetical order. A paragraph ends at an empty line or, in WikiText, at every line;
/// a sentence at a full stop, question mark or exclamation mark before a space.
pub(crate) fn sentences(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut found = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).map_err(|e| format!("{}: cannot read: {e}", file.display()))?;
        // WikiText sets spaces and signs of its own inside words and numbers
        let (text, paragraphs) = if text.contains(" @-@ ") {
            (text.replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", "."), "\n")
        } else {
            (text, "\n\n")
        };
        for paragraph in text.split(paragraphs) {
            let words: Vec<&str> = paragraph.split_whitespace().collect();
            let ends = |word: &&str| word.trim_end_matches(['"', '\'']).ends_with(['.', '!', '?']);
            for sentence in words.split_inclusive(ends) {
                let sentence = sentence.join(" ");
                if sentence.len() > 8 {
                    found.insert(sentence);
                }
            }
        }
    }
    Ok(found.into_iter().collect())
}
