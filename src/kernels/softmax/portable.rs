/// Partial results of a sum or maximum that the processor works on side by side: part of the definition of the sums' order.
const LANES: usize = 8;

/// The largest of some finite numbers; −∞ of none.
#[inline(always)]
fn max(values: &[f32]) -> f32 {
    let (chunks, tail) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |largest, &value| largest.max(value))
}

/// The sum, always taken in the same order.
#[inline(always)]
fn sum(values: &[f64]) -> f64 {
    let (chunks, tail) = values.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &value)| *lane += value);
    }
    lanes.iter().chain(tail).sum()
}

/// `eˣ` for x ≤ 0, to about 2·10⁻¹⁶ of itself; 0 where the result would be below the normal numbers. For x >
/// 0 the result means nothing.
///
/// Without branches or calls, so that a loop over it becomes vector code, which one over the standard
/// library's does not. x = n ln 2 + r with |r| ≤ (ln 2)/2, and eˣ = 2ⁿ times the Taylor polynomial of eʳ,
/// whose remainder after r¹³ is below 5·10⁻¹⁸.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    /// Adding this rounds to an integer, and leaves that integer in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 · 2⁵²
    /// ln 2 in two parts: the first has so few digits that its product with n is exact.
    const LN_2: [f64; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10];
    /// 1/k! from k = 13 down.
    const TAYLOR: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let rounded = x * std::f64::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let polynomial = TAYLOR.iter().fold(0.0, |sum, coefficient| sum * r + coefficient);
    let power = f64::from_bits(rounded.to_bits().wrapping_add(1023) << 52);
    if x < -708.0 { 0.0 } else { polynomial * power }
}

#[inline(always)]
pub(super) fn softmax(
    logits: &[f32],
    inverse: f64,
    left_out: Option<usize>,
    shifted: &mut [f64],
    probs: &mut [f64],
) -> f64 {
    let top = match left_out {
        None => max(logits),
        Some(class) => max(&logits[..class]).max(max(&logits[class + 1..])),
    };
    let top = f64::from(top);
    for ((shifted, prob), &logit) in shifted.iter_mut().zip(&mut *probs).zip(logits) {
        *shifted = (f64::from(logit) - top) * inverse;
        *prob = exp(*shifted);
    }
    if let Some(class) = left_out {
        probs[class] = 0.0;
    }
    let total = sum(probs);
    let normalize = 1.0 / total;
    for prob in probs {
        *prob *= normalize;
    }
    total.ln()
}

#[inline(always)]
pub(super) fn is_finite(values: &[f32]) -> bool {
    // no early exit: this shape of loop runs at the speed of memory
    values.iter().fold(true, |finite, value| finite & value.is_finite())
}

#[inline(always)]
pub(super) fn forward_kl(
    (shifted_q, q, log_sum_q): (&[f64], &[f64], f64),
    (shifted_p, p, log_sum_p): (&[f64], &[f64], f64),
    factor: f64,
    grad: &mut [f64],
) -> f64 {
    let term = |grad: &mut f64, (q, shifted_q): (f64, f64), (p, shifted_p): (f64, f64)| {
        *grad = factor * (q - p);
        p * ((shifted_p - log_sum_p) - (shifted_q - log_sum_q))
    };
    let (grads, grads_tail) = grad.as_chunks_mut::<LANES>();
    let ((qs, q_tail), (shifted_qs, shifted_q_tail)) =
        (q.as_chunks::<LANES>(), shifted_q.as_chunks::<LANES>());
    let ((ps, p_tail), (shifted_ps, shifted_p_tail)) =
        (p.as_chunks::<LANES>(), shifted_p.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    let chunks = grads.iter_mut().zip(qs.iter().zip(shifted_qs)).zip(ps.iter().zip(shifted_ps));
    for ((grad, (q, shifted_q)), (p, shifted_p)) in chunks {
        for lane in 0..LANES {
            let (q, p) = ((q[lane], shifted_q[lane]), (p[lane], shifted_p[lane]));
            lanes[lane] += term(&mut grad[lane], q, p);
        }
    }
    let mut total: f64 = lanes.iter().sum();
    let tail =
        grads_tail.iter_mut().zip(q_tail.iter().zip(shifted_q_tail)).zip(p_tail.iter().zip(shifted_p_tail));
    for ((grad, (q, shifted_q)), (p, shifted_p)) in tail {
        total += term(grad, (*q, *shifted_q), (*p, *shifted_p));
    }
    total
}

#[inline(always)]
pub(super) fn add_scaled(factor: f64, values: &[f64], sums: &mut [f64]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += factor * value);
}

#[inline(always)]
pub(super) fn narrow(values: &[f64], out: &mut [f32]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = value.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
    }
}
