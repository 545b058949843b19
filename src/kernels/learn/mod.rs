//! Steps of training: values whose codes are learned, what a loss does to them, and descent.

use super::level::{Isa, multiversion};

/// `1.5 · 2^23` leaves no bits for a fraction: a sum with it is rounded half to even.
const ROUND: f32 = 12_582_912.0;

/// Sums are made in so many lanes, in the same order at every level.
const LANES: usize = 16;

/// The codes that there are, counted from the zero point, and what one step is worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CodeSpan {
    pub(crate) low: f32,
    pub(crate) high: f32,
    pub(crate) scale: f32,
}

/// How far descent goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Descent {
    rate: f32,
    of_mean: f32,
    of_square: f32,
}

impl Descent {
    const KEEP_MEAN: f32 = 0.9;
    const KEEP_SQUARE: f32 = 0.95;
    const EPSILON: f32 = 1e-12;

    /// Step number `step`, counted from 0, at this rate.
    pub(crate) fn new(step: usize, rate: f32) -> Self {
        let made_up = |keep: f32| (1.0 / (1.0 - f64::from(keep).powf(step as f64 + 1.0))) as f32;
        Self { rate, of_mean: made_up(Self::KEEP_MEAN), of_square: made_up(Self::KEEP_SQUARE) }
    }
}

/// What is left of the first rate at step number `step`, counted from 0, of so many: half a cosine, down to a fiftieth.
pub(crate) fn cosine(step: usize, steps: usize) -> f32 {
    const LEAST: f64 = 0.02;
    let left = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps.max(1) as f64).cos());
    left.max(LEAST) as f32
}

/// Nearest code of every place, in steps from the zero point.
pub(crate) fn nearest_codes(isa: Isa, places: &[f32], codes: CodeSpan, out: &mut [f32]) {
    assert_eq!(places.len(), out.len(), "places and codes");
    nearest_codes_in(isa, places, codes, out);
}

/// The value of every place's nearest code.
pub(crate) fn learned_values(isa: Isa, places: &[f32], codes: CodeSpan, out: &mut [f32]) {
    assert_eq!(places.len(), out.len(), "places and values");
    learned_values_in(isa, places, codes, out);
}

/// From the gradient with respect to the values to that with respect to the places, which passes through rounding as it is and ends
/// where codes do; adds to `of_scale` that with respect to the scale's logarithm.
///
/// Bengio, Léonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation" (2013).
pub(crate) fn through_codes(
    isa: Isa,
    places: &[f32],
    codes: CodeSpan,
    gradient: &mut [f32],
    of_scale: &mut f32,
) {
    assert_eq!(places.len(), gradient.len(), "places and gradients");
    through_codes_in(isa, places, codes, gradient, of_scale);
}

/// The gradient with respect to the logarithm of a scale, from those with respect to the values that share it.
pub(crate) fn of_scale(isa: Isa, values: &[f32], gradient: &[f32]) -> f32 {
    assert_eq!(values.len(), gradient.len(), "values and gradients");
    of_scale_in(isa, values, gradient)
}

/// One step of Adam (Kingma and Ba, 2015, algorithm 1).
///
/// # Shapes
/// Values, gradient and both moments are of one length.
pub(crate) fn adam(
    isa: Isa,
    descent: Descent,
    gradient: &[f32],
    moments: [&mut [f32]; 2],
    values: &mut [f32],
) {
    let [mean, square] = moments;
    let lengths = [gradient.len(), mean.len(), square.len()];
    assert!(lengths.iter().all(|len| *len == values.len()), "values and moments");
    adam_in(isa, descent, gradient, mean, square, values);
}

multiversion! {
    fn nearest_codes_in(places: &[f32], codes: CodeSpan, out: &mut [f32]) = nearest_codes_body
}

#[inline(always)]
fn nearest_codes_body(places: &[f32], codes: CodeSpan, out: &mut [f32]) {
    for (out, place) in out.iter_mut().zip(places) {
        *out = nearest(*place, codes);
    }
}

multiversion! {
    fn learned_values_in(places: &[f32], codes: CodeSpan, out: &mut [f32]) = learned_values_body
}

#[inline(always)]
fn learned_values_body(places: &[f32], codes: CodeSpan, out: &mut [f32]) {
    for (out, place) in out.iter_mut().zip(places) {
        *out = nearest(*place, codes) * codes.scale;
    }
}

/// The nearest code.
#[inline(always)]
fn nearest(place: f32, codes: CodeSpan) -> f32 {
    // clamped first, so that what is rounded is small
    let place = place.clamp(codes.low, codes.high);
    (place + ROUND) - ROUND
}

multiversion! {
    fn through_codes_in(places: &[f32], codes: CodeSpan, gradient: &mut [f32], of_scale: &mut f32) = through_codes_body
}

#[inline(always)]
fn through_codes_body(places: &[f32], codes: CodeSpan, gradient: &mut [f32], of_scale: &mut f32) {
    let mut lanes = [0.0f32; LANES];
    for (places, gradients) in places.chunks(LANES).zip(gradient.chunks_mut(LANES)) {
        for ((lane, place), gradient) in lanes.iter_mut().zip(places).zip(gradients) {
            let of_place = *gradient * codes.scale;
            *lane += of_place * nearest(*place, codes);
            // half a step beyond the last code still rounds to it
            let inside = *place >= codes.low - 0.5 && *place <= codes.high + 0.5;
            *gradient = if inside { of_place } else { 0.0 };
        }
    }
    *of_scale += lanes.iter().sum::<f32>();
}

multiversion! {
    fn of_scale_in(values: &[f32], gradient: &[f32]) -> f32 = of_scale_body
}

#[inline(always)]
fn of_scale_body(values: &[f32], gradient: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (values, gradients) in values.chunks(LANES).zip(gradient.chunks(LANES)) {
        for ((lane, value), gradient) in lanes.iter_mut().zip(values).zip(gradients) {
            *lane += gradient * value;
        }
    }
    lanes.iter().sum()
}

multiversion! {
    fn adam_in(
        descent: Descent,
        gradient: &[f32],
        mean: &mut [f32],
        square: &mut [f32],
        values: &mut [f32],
    ) = adam_body
}

#[inline(always)]
fn adam_body(descent: Descent, gradient: &[f32], mean: &mut [f32], square: &mut [f32], values: &mut [f32]) {
    let Descent { rate, of_mean, of_square } = descent;
    for (((value, gradient), mean), square) in values.iter_mut().zip(gradient).zip(mean).zip(square) {
        *mean += (1.0 - Descent::KEEP_MEAN) * (gradient - *mean);
        *square += (1.0 - Descent::KEEP_SQUARE) * (gradient * gradient - *square);
        *value -= rate * (*mean * of_mean) / ((*square * of_square).sqrt() + Descent::EPSILON);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(len: usize, by: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * by % 101) as f32 - 50.0) / 17.0).collect()
    }

    #[test]
    fn codes_values_and_gradients_by_hand() {
        let codes = CodeSpan { low: -2.0, high: 1.0, scale: 0.5 };
        let places = [-9.0, -2.4, -0.5, 0.5, 0.6, 1.4, 1.6];
        let mut out = [0.0; 7];
        nearest_codes(Isa::Portable, &places, codes, &mut out);
        assert_eq!(out, [-2.0, -2.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        learned_values(Isa::Portable, &places, codes, &mut out);
        assert_eq!(out, [-1.0, -1.0, 0.0, 0.0, 0.5, 0.5, 0.5]);
        let (mut gradient, mut of_scale) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 10.0);
        through_codes(Isa::Portable, &places, codes, &mut gradient, &mut of_scale);
        assert_eq!(gradient, [0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 0.0]);
        // of value = scale · code with respect to ln scale: the value itself
        assert_eq!(of_scale, 10.0 - 1.0 - 2.0 + 2.5 + 3.0 + 3.5);
        assert_eq!(
            super::of_scale(Isa::Portable, &out, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]),
            of_scale - 10.0
        );
    }

    /// The first two steps of Adam, from its definition.
    #[test]
    fn adam_by_hand() {
        let (mut value, mut mean, mut square) = ([1.0f32], [0.0f32], [0.0f32]);
        let mut wide = (1.0f64, 0.0f64, 0.0f64);
        for (step, gradient) in [3.0f32, -1.0].into_iter().enumerate() {
            let moments = [&mut mean[..], &mut square[..]];
            adam(Isa::Portable, Descent::new(step, 0.1), &[gradient], moments, &mut value);
            let g = f64::from(gradient);
            wide.1 = 0.9 * wide.1 + 0.1 * g;
            wide.2 = 0.95 * wide.2 + 0.05 * g * g;
            let power = step as i32 + 1;
            let (mean, square) = (wide.1 / (1.0 - 0.9f64.powi(power)), wide.2 / (1.0 - 0.95f64.powi(power)));
            wide.0 -= 0.1 * mean / square.sqrt();
            assert!((f64::from(value[0]) - wide.0).abs() < 1e-6, "{} {}", value[0], wide.0);
        }
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let codes = CodeSpan { low: -2.0, high: 1.0, scale: 0.37 };
        for len in [0, 1, 15, 16, 17, 100] {
            let (places, gradient) = (values(len, 37), values(len, 29));
            let all = |isa: Isa| {
                let (mut out, mut through, mut of_scale) = (vec![0.0; len], gradient.clone(), 0.0);
                learned_values(isa, &places, codes, &mut out);
                through_codes(isa, &places, codes, &mut through, &mut of_scale);
                let (mut mean, mut square) = (values(len, 7), vec![0.3; len]);
                let moments = [&mut mean[..], &mut square[..]];
                adam(isa, Descent::new(3, 0.01), &gradient, moments, &mut out);
                (out, through, of_scale, mean, square, super::of_scale(isa, &places, &gradient))
            };
            for isa in Isa::all() {
                assert_eq!(all(isa), all(Isa::Portable), "{isa:?}");
            }
        }
    }
}
