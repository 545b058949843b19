//! What a worker tells `run`, one JSON object a line.

use std::collections::BTreeMap;

use serde::Serialize;

/// The answer to a case: every contender stands ready.
#[derive(Debug, Serialize)]
pub(crate) struct Ready<'a> {
    pub(crate) unit: &'static str,
    pub(crate) work: f64,
    pub(crate) floor_seconds: Option<f64>,
    pub(crate) limits: &'a BTreeMap<String, f64>,
}

/// The answer to the end of a case.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) results: Vec<Measured>,
}

/// How one contender did.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) name: String,
    /// Median over all runs of all rounds.
    pub(crate) seconds: Option<f64>,
    pub(crate) best: Option<f64>,
    pub(crate) runs: usize,
    /// Relative error of the result, against f32.
    pub(crate) error: Option<f64>,
    pub(crate) not_measured: Option<String>,
}
