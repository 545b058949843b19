use ndarray::Array2;

use super::statistics::{Estimate, wilson};
use super::{Better, EvaluateError, ImageSet, Score, Task};
use crate::model::{Classifier, ModelError};

const TASK: &str = "classify";

/// Images that go through the network at once.
const BATCH: usize = 500;

/// How often a network is right about labelled images.
///
/// The score is `accuracy`: how often the largest logit is the label's, in percent (top-1). Among equal logits the first
/// counts. Its 95 % interval is Wilson's (1927). Pixels are multiplied by the network's
/// [`pixel_scale`](Classifier::pixel_scale) and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classification {
    /// The images and their labels.
    pub images: ImageSet,
}

impl<M: Classifier + ?Sized> Task<M> for Classification {
    /// # Errors
    /// When there are no images, they do not fit the network, a label is not one of its classes, or it gives NaN or an
    /// infinity.
    fn score(&self, model: &M) -> Result<Vec<Score>, EvaluateError> {
        accuracy(model, &self.images).map(|score| vec![score])
    }
}

fn accuracy<M: Classifier + ?Sized>(model: &M, images: &ImageSet) -> Result<Score, EvaluateError> {
    if images.is_empty() {
        return Err(EvaluateError::task(TASK, "there are no images"));
    }
    let mut correct = 0usize;
    let pixels = images.pixels().chunks(BATCH * images.features());
    for (number, (pixels, labels)) in pixels.zip(images.labels().chunks(BATCH)).enumerate() {
        let logits = model.class_logits(batch(model, images, pixels)?.view())?;
        let (rows, classes) = logits.dim();
        if rows != labels.len() {
            let reason = format!("the network gives {rows} rows of logits for {} images", labels.len());
            return Err(EvaluateError::task(TASK, reason));
        }
        if let Some(row) = labels.iter().position(|label| usize::from(*label) >= classes) {
            let (label, image) = (labels[row], number * BATCH + row);
            let reason = format!(
                "image {image} (counted from 0) has the label {label}, but the network knows {classes} classes, 0 to {}",
                classes.saturating_sub(1)
            );
            return Err(EvaluateError::task(TASK, reason));
        }
        if let Some(((row, class), value)) = logits.indexed_iter().find(|(_, logit)| !logit.is_finite()) {
            return Err(ModelError::NonFinite { sample: number * BATCH + row, class, value: *value }.into());
        }
        for (logits, label) in logits.rows().into_iter().zip(labels) {
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
    // not a hundred times the share, which would round twice
    let value = 100.0 * correct as f64 / samples as f64;
    let interval = wilson(correct as f64 / samples as f64, samples as f64).map(|share| 100.0 * share);
    Ok(Score::new((TASK, "accuracy"), Estimate { value, interval }, "%", Better::Higher, samples))
}

fn batch<M: Classifier + ?Sized>(
    model: &M,
    images: &ImageSet,
    pixels: &[u8],
) -> Result<Array2<f32>, ModelError> {
    if images.features() != model.input_features() {
        return Err(ModelError::Input { expected: model.input_features(), actual: images.features() });
    }
    let values = pixels.iter().map(|p| f32::from(*p) * model.pixel_scale()).collect();
    let rows = pixels.len() / images.features().max(1);
    Ok(Array2::from_shape_vec((rows, images.features()), values).unwrap_or_default())
}
