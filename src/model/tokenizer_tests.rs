use serde_json::{Value, json};

use super::*;

/// `[CLS]` 1, `[SEP]` 2, a 3, b 4, ##b 5; truncated to 4 and padded to 8 by the file.
fn word_pieces() -> Value {
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let template = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let token = |id: &str, ids: u32| json!({"id": id, "ids": [ids], "tokens": [id]});
    let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "[UNK]"},
        "added_tokens": [special(1, "[CLS]"), special(2, "[SEP]")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [template("[CLS]"), sequence, template("[SEP]")],
            "pair": [template("[CLS]"), sequence, template("[SEP]"), {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": token("[CLS]", 1), "[SEP]": token("[SEP]", 2)}
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100,
                  "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4, "##b": 5}}
    })
}

/// Merges a and b to ab, or not, as chance has it.
fn dropout() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": 0.5, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    })
}

/// A checkpoint without tensors, beside these files.
fn checkpoint(files: &[(&str, &str)]) -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    let empty = [&2u64.to_le_bytes()[..], b"{}"].concat();
    std::fs::write(folder.path().join("model.safetensors"), empty).unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}

fn open(tokenizer: &str, config: &str) -> Result<Tokenizer, TokenizerError> {
    let (_folder, checkpoint) = checkpoint(&[("tokenizer.json", tokenizer), ("config.json", config)]);
    Tokenizer::of(&checkpoint)
}

#[test]
fn nothing_is_cut_or_padded_unless_asked_for() {
    let tokenizer = open(&word_pieces().to_string(), "{}").unwrap();
    assert_eq!(tokenizer.encode("a ab b abb", true).unwrap(), [1, 3, 3, 5, 4, 3, 5, 5, 2]);
    assert_eq!(tokenizer.encode("a ab b abb", false).unwrap(), [3, 3, 5, 4, 3, 5, 5]);
    assert_eq!(tokenizer.encode("a", true).unwrap(), [1, 3, 2]);
    // what is named as text stays text, and is cut like it
    assert_eq!(tokenizer.encode("a [SEP] z", false).unwrap(), [3, 2, 0]);
    assert_eq!(tokenizer.encode("", true).unwrap(), [1, 2]);
    assert_eq!(tokenizer.vocab_size(), 6);
}

#[test]
fn cut_texts_keep_their_special_tokens() {
    let tokenizer = open(&word_pieces().to_string(), "{}").unwrap();
    let cut = |text, limit| tokenizer.encode_truncated(text, limit);
    assert_eq!(cut("a ab b abb", 9).unwrap(), [1, 3, 3, 5, 4, 3, 5, 5, 2]);
    assert_eq!(cut("a ab b abb", 5).unwrap(), [1, 3, 3, 5, 2]);
    assert_eq!(cut("a [SEP] b abb", 5).unwrap(), [1, 3, 2, 4, 2]);
    assert_eq!(cut("a", usize::MAX).unwrap(), [1, 3, 2]);
    let line = cut("a", 2).unwrap_err().to_string();
    assert!(line.contains("tokenizer.json: 2 tokens leave no room for text beside 2 special ones"), "{line}");
}

#[test]
fn tokens_become_text_again() {
    let tokenizer = open(&word_pieces().to_string(), "{}").unwrap();
    assert_eq!(tokenizer.decode(&[1, 3, 3, 5, 4, 2]).unwrap(), "a ab b");
    let line = tokenizer.decode(&[3, 6]).unwrap_err().to_string();
    assert!(line.contains("no token with the id 6, at position 1"), "{line}");
}

#[test]
fn merges_are_not_left_to_chance() {
    let tokenizer = open(&dropout().to_string(), "{}").unwrap();
    assert_eq!(tokenizer.encode(&"ab".repeat(100), false).unwrap(), [2; 100]);
}

#[test]
fn config_names_where_texts_begin_and_end() {
    let ids = |config: &str| {
        let tokenizer = open(&word_pieces().to_string(), config).unwrap();
        (tokenizer.bos(), tokenizer.eos().to_vec())
    };
    assert_eq!(ids(r#"{"bos_token_id": 1, "eos_token_id": 2}"#), (Some(1), vec![2]));
    assert_eq!(ids(r#"{"bos_token_id": null, "eos_token_id": [5, 2]}"#), (None, vec![5, 2]));
    assert_eq!(ids("{}"), (None, vec![]));
    for bad in ["\"<s>\"", "-1", "1.5", "4294967296", "[1, null]", "{}"] {
        let error = open(&word_pieces().to_string(), &format!("{{\"eos_token_id\": {bad}}}")).unwrap_err();
        let line = error.to_string();
        assert!(line.contains("config.json: eos_token_id is ") && line.contains("list"), "{line}");
    }
}

#[test]
fn a_missing_tokenizer_says_what_to_do() {
    let (folder, checkpoint) = checkpoint(&[]);
    let error = Tokenizer::of(&checkpoint).unwrap_err();
    assert!(
        matches!(&error, TokenizerError::Missing { path } if *path == folder.path().join("tokenizer.json"))
    );
    assert!(error.to_string().contains("copy it there"), "{error}");
}

#[test]
fn descriptions_that_are_none_are_refused() {
    let whole = word_pieces().to_string();
    for text in
        ["", "{}", "[]", "null", "\u{feff}{}", &whole[..whole.len() - 1], &whole.replace("WordPiece", "Word")]
    {
        let error = open(text, "{}").unwrap_err();
        assert!(matches!(error, TokenizerError::Format { .. }), "{error:?}");
        let line = error.to_string();
        assert!(line.contains("tokenizer.json: is no tokenizer: ") && !line.contains('\n'), "{line}");
    }
}

/// The prefix is longer than what follows it: subtracting their lengths is left to chance by the foreign code.
#[test]
fn foreign_panics_are_errors() {
    let line = catch(|| -> tokenizers::Result<()> { panic!("no entry\nfound") }).unwrap_err();
    assert_eq!(line, "it contradicts itself (no entry found)");
    let mut prefix = dropout();
    prefix["model"]["continuing_subword_prefix"] = json!("much longer");
    let line = open(&prefix.to_string(), "{}").unwrap_err().to_string();
    assert!(line.contains("is no tokenizer: it contradicts itself ("), "{line}");
}

/// Every way to cut the file short, and bytes replaced one after the other.
#[test]
fn mutated_descriptions_never_panic() {
    for whole in [word_pieces().to_string(), dropout().to_string()] {
        for end in (0..whole.len()).step_by(7) {
            assert!(open(&whole[..end], "{}").is_err(), "{}", &whole[..end]);
        }
        for (at, other) in (0..whole.len()).step_by(3).zip("0-9{}[]\":,nx".bytes().cycle()) {
            let mut bytes = whole.clone().into_bytes();
            bytes[at] = other;
            let text = String::from_utf8(bytes).unwrap();
            let Ok(tokenizer) = open(&text, "{}") else { continue };
            // whatever comes out, tokens are those of the vocabulary or beyond it, and nothing is lost silently
            for tokens in [tokenizer.encode("a ab [SEP]", true), tokenizer.encode_truncated("a ab b", 4)] {
                let Ok(tokens) = tokens else { continue };
                let known = tokens.iter().all(|id| tokenizer.inner.id_to_token(*id).is_some());
                assert_eq!(tokenizer.decode(&tokens).is_ok(), known, "{text}: {tokens:?}");
            }
        }
    }
}
