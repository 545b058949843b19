//! The command line of an example.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use tersor::one_line;

use super::Result;

/// Options `--name value`, switches `--name`, and what stands without a name.
pub(crate) struct Arguments {
    usage: &'static str,
    options: BTreeMap<String, String>,
    switches: Vec<String>,
    pub(crate) plain: Vec<PathBuf>,
}

impl Arguments {
    /// Reads the process's command line: these options, these switches, and at most `plain` other words.
    pub(crate) fn read(
        usage: &'static str,
        options: &[&str],
        switches: &[&str],
        plain: usize,
    ) -> Result<Self> {
        let mut read = Self { usage, options: BTreeMap::new(), switches: Vec::new(), plain: Vec::new() };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            if options.contains(&word.as_str()) {
                let value = words.next().ok_or_else(|| format!("{word} needs a value\n{usage}"))?;
                read.options.insert(word, value);
            } else if switches.contains(&word.as_str()) {
                read.switches.push(word);
            } else if word.starts_with('-') || read.plain.len() == plain {
                return Err(format!("{word} was not expected\n{usage}").into());
            } else {
                read.plain.push(word.into());
            }
        }
        Ok(read)
    }

    /// Whether a switch was given.
    pub(crate) fn has(&self, switch: &str) -> bool {
        self.switches.iter().any(|given| given == switch)
    }

    /// The value of an option, if it was given.
    pub(crate) fn text(&self, option: &str) -> Option<&str> {
        self.options.get(option).map(String::as_str)
    }

    /// The whole number of an option, if it was given.
    pub(crate) fn number(&self, option: &str) -> Result<Option<u64>> {
        let number = |text: &str| -> Result<u64> {
            let wrong =
                |_: std::num::ParseIntError| format!("{option} {text} is not a whole number\n{}", self.usage);
            Ok(text.parse().map_err(wrong)?)
        };
        self.text(option).map(number).transpose()
    }
}

/// Runs an example, and says what went wrong.
pub(crate) fn report(run: impl FnOnce() -> Result<()>) -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Mean and standard deviation, as `12.3 ± 0.4`; of one value that value.
pub(crate) fn spread(values: &[f64], digits: usize) -> String {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    if values.len() < 2 {
        return format!("{mean:.digits$}");
    }
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (count - 1.0);
    format!("{mean:.digits$} ± {:.digits$}", variance.sqrt())
}
