//! What a score is about: how good a model is, or what it takes to run it.

use crate::evaluate::Score;

/// Whether a score tells what running the model takes, not how good its answers are.
pub(super) fn is_resource(score: &Score) -> bool {
    is_latency(score)
        || unit_of_throughput(score).is_some()
        || [PEAK_MEMORY, "prefill_tokens_per_second"].contains(&score.metric.as_str())
}

/// Memory that running the model took.
pub(super) const PEAK_MEMORY: &str = "peak_memory";

pub(super) fn is_latency(score: &Score) -> bool {
    score.metric.starts_with("latency")
}

/// What is counted, if a score is a throughput.
pub(super) fn unit_of_throughput(score: &Score) -> Option<&'static str> {
    match score.metric.as_str() {
        "tokens_per_second" => Some("tokens"),
        "samples_per_second" => Some("predictions"),
        _ => None,
    }
}

/// The name of a metric for readers.
pub(super) fn title(metric: &str) -> String {
    match metric {
        "latency_p50" => "p50 latency".to_owned(),
        "latency_p95" => "p95 latency".to_owned(),
        "nats_per_token" => "nats per token".to_owned(),
        "top1_agreement" => "top-1 agreement".to_owned(),
        "kl" => "KL divergence".to_owned(),
        other => other.replace('_', " "),
    }
}
