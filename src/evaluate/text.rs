use std::path::Path;

use super::DataError;
use crate::file::read_regular;

/// Reads a text in UTF-8.
///
/// # Errors
/// When the file cannot be read, is empty, or is not UTF-8; then the error says at which byte.
pub fn read_text(path: impl AsRef<Path>) -> Result<String, DataError> {
    let path = path.as_ref();
    let bad = |reason: String| DataError::Format { path: path.to_path_buf(), reason };
    let bytes = read_regular(path).map_err(|source| DataError::Io { path: path.to_path_buf(), source })?;
    if bytes.is_empty() {
        return Err(bad("holds no text".into()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        bad(format!("is not UTF-8 at byte {offset} (counted from 0): convert it first"))
    })
}

/// Two sentences, and how similar people find them.
#[derive(Debug, Clone, PartialEq)]
pub struct StsPair {
    /// The sentences.
    pub sentences: [String; 2],
    /// From 0, nothing in common, to 5, the same meaning.
    pub similarity: f64,
}

/// Reads pairs of the STS benchmark, as `sts-test.csv` has them: every line is one pair, whose fields stand between tabs
/// and are not quoted. The fifth field is the similarity, the sixth and seventh are the sentences; further ones are left
/// out, as are the first four, which say where the pair comes from.
///
/// Format: <https://ixa2.si.ehu.eus/stswiki/index.php/STSbenchmark>.
///
/// # Errors
/// As [`read_text`], and when a line is no such pair; then the error gives the number of the line.
pub fn read_sts(path: impl AsRef<Path>) -> Result<Vec<StsPair>, DataError> {
    let path = path.as_ref();
    let text = read_text(path)?;
    let pair = |(index, line): (usize, &str)| {
        sts_pair(line).map_err(|reason| DataError::Format {
            path: path.to_path_buf(),
            reason: format!("line {}: {reason}", index + 1),
        })
    };
    text.lines().enumerate().map(pair).collect()
}

fn sts_pair(line: &str) -> Result<StsPair, String> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [_, _, _, _, similarity, a, b, ..] = fields[..] else {
        return Err(format!(
            "has {} fields between tabs, but a pair of the STS benchmark has 7",
            fields.len()
        ));
    };
    let similarity = match similarity.trim().parse::<f64>() {
        Ok(value) if (0.0..=5.0).contains(&value) => value,
        _ => return Err(format!("the similarity `{similarity}` in field 5 is no number from 0 to 5")),
    };
    match [a, b].iter().position(|sentence| sentence.trim().is_empty()) {
        Some(empty) => Err(format!("the sentence in field {} is empty", 6 + empty)),
        None => Ok(StsPair { sentences: [a, b].map(str::to_owned), similarity }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<StsPair>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read_sts(file.path()).map_err(|error| {
            let line = error.to_string();
            line.strip_prefix(&format!("{}: ", file.path().display())).unwrap().to_owned()
        })
    }

    #[test]
    fn pairs_are_read_without_quoting() {
        let text =
            "g\tf\ty\t0024\t2.500\tA \"girl\" sings.\t\"Nobody sings.\r\ng\tf\ty\t7\t5\tÄ\tß\tmore\tfields\n";
        let pair = |a: &str, b: &str, similarity| StsPair { sentences: [a.into(), b.into()], similarity };
        assert_eq!(
            read(text.as_bytes()).unwrap(),
            [pair("A \"girl\" sings.", "\"Nobody sings.", 2.5), pair("Ä", "ß", 5.0)]
        );
    }

    #[test]
    fn lines_that_are_no_pairs_are_refused() {
        let good = b"g\tf\ty\t0\t1.0\ta\tb\n".as_slice();
        for (bad, reason) in [
            (&b"g\tf\ty\t0\t1.0\ta"[..], "line 2: has 6 fields between tabs"),
            (b"\n", "line 2: has 1 fields"),
            (
                b"g\tf\ty\t0\tscore\ta\tb",
                "line 2: the similarity `score` in field 5 is no number from 0 to 5",
            ),
            (b"g\tf\ty\t0\tNaN\ta\tb", "`NaN`"),
            (b"g\tf\ty\t0\t5.01\ta\tb", "`5.01`"),
            (b"g\tf\ty\t0\t-0.1\ta\tb", "`-0.1`"),
            (b"g\tf\ty\t0\t1\t \tb", "line 2: the sentence in field 6 is empty"),
            (b"g\tf\ty\t0\t1\ta\t", "line 2: the sentence in field 7 is empty"),
            (b"g\tf\ty\t0\t1\t\xff\tb", "is not UTF-8 at byte 26 "),
        ] {
            let error = read(&[good, bad].concat()).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        assert_eq!(read(b"").unwrap_err(), "holds no text");
    }
}
