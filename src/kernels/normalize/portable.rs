//! One row at a time; sums are made in 16 lanes, in the same order at every level.

const LANES: usize = 16;

#[inline(always)]
fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, tail) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += of(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane += of(*x);
    }
    lanes.iter().sum()
}

/// `x ← x / √(mean(x²) + ε) · w`.
#[inline(always)]
pub(super) fn rms(x: &mut [f32], weight: &[f32], epsilon: f32) {
    let mean = sum(x, |x| x * x) / x.len() as f32;
    let scale = 1.0 / (mean + epsilon).sqrt();
    for (x, weight) in x.iter_mut().zip(weight) {
        *x = *x * scale * weight;
    }
}

/// The gradient of [`rms`]: `g ← s · g∘w − x · s³ · mean(x · g∘w)` with `s = 1 / √(mean(x²) + ε)`.
#[inline(always)]
pub(super) fn rms_gradient(gradient: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) {
    let mean = sum(x, |x| x * x) / x.len() as f32;
    let scale = 1.0 / (mean + epsilon).sqrt();
    for (gradient, weight) in gradient.iter_mut().zip(weight) {
        *gradient *= weight;
    }
    let mut lanes = [0.0f32; LANES];
    for (gradients, xs) in gradient.chunks(LANES).zip(x.chunks(LANES)) {
        for ((lane, gradient), x) in lanes.iter_mut().zip(gradients).zip(xs) {
            *lane += gradient * x;
        }
    }
    let along = lanes.iter().sum::<f32>() / x.len() as f32 * scale * scale;
    for (gradient, x) in gradient.iter_mut().zip(x) {
        *gradient = scale * (*gradient - x * along);
    }
}

/// `x ← (x − mean(x)) / √(var(x) + ε) · w + b`.
#[inline(always)]
pub(super) fn layer(x: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    let mean = sum(x, |x| x) / x.len() as f32;
    let variance = sum(x, |x| (x - mean) * (x - mean)) / x.len() as f32;
    let scale = 1.0 / (variance + epsilon).sqrt();
    for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
        *x = (*x - mean) * scale * weight + bias;
    }
}

/// `x ← e^(x − max(x)) / Σ e^(x − max(x))`.
#[inline(always)]
pub(super) fn softmax(x: &mut [f32]) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    let max = lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
    for x in x.iter_mut() {
        *x = crate::kernels::activate::portable::exp(*x - max);
    }
    let scale = 1.0 / sum(x, |x| x);
    for x in x {
        *x *= scale;
    }
}
