//! Functions of one value, written so that a loop over them becomes vector instructions. Multiply-adds are fused, which is slow
//! where the processor cannot.

/// `1.5 · 2^23` leaves no bits for a fraction: a sum with it is rounded half to even, its lowest bits are the integer.
const ROUND: f32 = 12_582_912.0;

/// `e^x` for `x` in [-87, 88], and for those limits beyond them; NaN stays. Within 2 units of the last place.
///
/// `x = n · ln 2 + r` with `|r| ≤ ln 2 / 2`, and a polynomial of degree 6 for `e^r`, fitted for the least largest error.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // ln 2 in two parts, the first short enough that its products with `n` are exact
    const LN_2_HIGH: f32 = 0.693_145_75;
    const LN_2_LOW: f32 = 1.428_606_8e-6;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut p: f32 = 0.001_395_740_9;
    p = p.mul_add(r, 0.008_375_971);
    p = p.mul_add(r, 0.041_666_06);
    p = p.mul_add(r, 0.166_664_05);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r, 1.0);
    p = p.mul_add(r, 1.0);
    // 2^n, from the exponent's bits
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(exponent)
}

/// `1 / (1 + e^−x)`.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x · sigmoid(x)`, also called swish.
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// The hyperbolic tangent, within 2e-7.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(2.0 * x))
}

/// The error function, within 2e-7: `1 − e^(−x · p(x))` with a polynomial fitted to `−ln(erfc(x)) / x` on [0, 4].
#[inline(always)]
fn erf(x: f32) -> f32 {
    let a = x.abs().min(4.0);
    let mut p: f32 = -8.043_823e-6;
    p = p.mul_add(a, 0.000_106_026_65);
    p = p.mul_add(a, -0.000_587_950_7);
    p = p.mul_add(a, 0.001_576_760_1);
    p = p.mul_add(a, -5.878_151e-5);
    p = p.mul_add(a, -0.019_217_143);
    p = p.mul_add(a, 0.102_799_21);
    p = p.mul_add(a, 0.636_616_1);
    p = p.mul_add(a, 1.128_379_3);
    // `min` would turn NaN into 4
    let magnitude = if x.is_nan() { x } else { 1.0 - exp(-(a * p)) };
    magnitude.copysign(x)
}

/// `x · Φ(x)` with the normal distribution's Φ (Hendrycks and Gimpel, 2016).
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The same, approximated: `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`.
#[inline(always)]
pub(super) fn gelu_tanh(x: f32) -> f32 {
    const SQRT_8_OVER_PI: f32 = 1.595_769;
    x * sigmoid(SQRT_8_OVER_PI * (x + 0.044_715 * x * x * x))
}

/// `max(x, 0)`; NaN stays.
#[inline(always)]
pub(super) fn relu(x: f32) -> f32 {
    // a comparison, because `max` would turn NaN into 0
    if x < 0.0 { 0.0 } else { x }
}

/// The derivative of [`silu`].
#[inline(always)]
pub(super) fn silu_slope(x: f32) -> f32 {
    let sigmoid = sigmoid(x);
    sigmoid * (1.0 + x * (1.0 - sigmoid))
}

/// The derivative of [`tanh`].
#[inline(always)]
pub(super) fn tanh_slope(x: f32) -> f32 {
    let tanh = tanh(x);
    1.0 - tanh * tanh
}

/// The derivative of [`gelu`]: `Φ(x) + x · φ(x)`.
#[inline(always)]
pub(super) fn gelu_slope(x: f32) -> f32 {
    const ONE_OVER_SQRT_2_PI: f32 = 0.398_942_3;
    let density = ONE_OVER_SQRT_2_PI * exp(-0.5 * x * x);
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * density
}

/// The derivative of [`gelu_tanh`].
#[inline(always)]
pub(super) fn gelu_tanh_slope(x: f32) -> f32 {
    const SQRT_8_OVER_PI: f32 = 1.595_769;
    let sigmoid = sigmoid(SQRT_8_OVER_PI * (x + 0.044_715 * x * x * x));
    let inner = SQRT_8_OVER_PI * (1.0 + 3.0 * 0.044_715 * x * x);
    sigmoid * (1.0 + x * (1.0 - sigmoid) * inner)
}

/// The derivative of [`relu`], 0 at 0.
#[inline(always)]
pub(super) fn relu_slope(x: f32) -> f32 {
    if x > 0.0 { 1.0 } else { 0.0 }
}
