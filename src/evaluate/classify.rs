use std::time::{Duration, Instant};

use ndarray::{Array2, Axis};

use super::{Better, ImageSet, Score};
use crate::model::{ModelError, Sequential};

/// Images that go through the network at once.
const BATCH: usize = 500;

/// Top-1 accuracy, in percent: how often the largest logit is the label's. Among equal logits the first counts.
///
/// # Errors
/// When the images do not fit the network, or the network gives NaN.
pub fn classify(model: &Sequential, images: &ImageSet) -> Result<Score, ModelError> {
    let mut correct = 0usize;
    let pixels = images.pixels().chunks(BATCH * images.features());
    for (number, (pixels, labels)) in pixels.zip(images.labels().chunks(BATCH)).enumerate() {
        let logits = model.forward(batch(model, images, pixels)?.view())?;
        if let Some(((row, class), value)) = logits.indexed_iter().find(|(_, logit)| !logit.is_finite()) {
            return Err(ModelError::NonFinite { sample: number * BATCH + row, class, value: *value });
        }
        for (logits, label) in logits.axis_iter(Axis(0)).zip(labels) {
            let mut best = 0;
            for (class, logit) in logits.iter().enumerate() {
                if *logit > logits[best] {
                    best = class;
                }
            }
            correct += usize::from(best == usize::from(*label));
        }
    }
    let samples = images.len();
    let value = 100.0 * correct as f64 / samples as f64;
    let interval = wilson(correct as f64, samples as f64);
    Ok(Score {
        task: "classify".into(),
        metric: "accuracy".into(),
        value,
        unit: "%".into(),
        better: Better::Higher,
        samples,
        interval,
    })
}

/// Median time of one sample when `batch_size` go through at once, over several rounds.
///
/// # Errors
/// When the images do not fit the network.
pub fn time_per_sample(
    model: &Sequential,
    images: &ImageSet,
    batch_size: usize,
) -> Result<Duration, ModelError> {
    const ROUNDS: usize = 9;
    let size = batch_size.clamp(1, images.len());
    let input = batch(model, images, &images.pixels()[..size * images.features()])?;
    model.forward(input.view())?;
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        std::hint::black_box(model.forward(input.view())?);
        times.push(start.elapsed() / size as u32);
    }
    times.sort();
    Ok(times[ROUNDS / 2])
}

fn batch(model: &Sequential, images: &ImageSet, pixels: &[u8]) -> Result<Array2<f32>, ModelError> {
    if images.features() != model.input_features() {
        return Err(ModelError::Input { expected: model.input_features(), actual: images.features() });
    }
    let values = pixels.iter().map(|p| f32::from(*p) * model.pixel_scale()).collect();
    let rows = pixels.len() / images.features().max(1);
    Ok(Array2::from_shape_vec((rows, images.features()), values).unwrap_or_default())
}

/// 95 % interval of a proportion, in percent.
fn wilson(correct: f64, samples: f64) -> [f64; 2] {
    const Z: f64 = 1.959_963_984_540_054;
    let p = correct / samples;
    let z2 = Z * Z / samples;
    let middle = (p + z2 / 2.0) / (1.0 + z2);
    let half = Z * (p * (1.0 - p) / samples + z2 / (4.0 * samples)).sqrt() / (1.0 + z2);
    [100.0 * (middle - half).max(0.0), 100.0 * (middle + half).min(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_interval_as_published() {
        // statsmodels.stats.proportion.proportion_confint(81, 263, method="wilson") = (0.2553…, 0.3662…),
        // also in Newcombe (1998), table I
        let [low, high] = wilson(81.0, 263.0);
        assert!((low - 25.53).abs() < 0.005 && (high - 36.62).abs() < 0.005, "{low} {high}");
    }
}
