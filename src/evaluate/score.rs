use serde::Serialize;

use super::statistics::Estimate;

/// Which of two values is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// The larger: accuracy, correlation, throughput.
    Higher,
    /// The smaller: perplexity, divergence, latency, memory.
    Lower,
}

/// A measured quality of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// What the model was asked to do.
    pub task: String,
    /// What was measured.
    pub metric: String,
    /// The value.
    pub value: f64,
    /// Unit of the value: `%`, `ms`, `tokens/s`, `bytes`; empty for a pure number.
    pub unit: String,
    /// Which direction is good.
    pub better: Better,
    /// Number of samples.
    pub samples: usize,
    /// 95 % confidence interval, in the unit of the value.
    pub interval: [f64; 2],
}

impl Score {
    pub(super) fn new(
        (task, metric): (&str, &str),
        estimate: Estimate,
        unit: &str,
        better: Better,
        samples: usize,
    ) -> Self {
        Self {
            task: task.into(),
            metric: metric.into(),
            value: estimate.value,
            unit: unit.into(),
            better,
            samples,
            interval: estimate.interval,
        }
    }
}
