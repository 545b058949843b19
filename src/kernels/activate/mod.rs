//! Functions of every value on its own: what stands between the linear layers of a network.

pub(crate) mod portable;

use rayon::prelude::*;

use super::level::{Isa, multiversion};
use super::{CHUNK, PARALLEL_MIN};

/// A function between two linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x / (1 + e^−x)`.
    Silu,
    /// `x · Φ(x)`, with the error function.
    Gelu,
    /// GELU's approximation by a hyperbolic tangent.
    GeluTanh,
    /// The hyperbolic tangent.
    Tanh,
}

/// Applies a function to every value.
pub fn activate(activation: Activation, values: &mut [f32]) {
    let isa = Isa::current();
    let all = |values: &mut [f32]| match activation {
        Activation::Relu => relu(isa, values),
        Activation::Silu => silu(isa, values),
        Activation::Gelu => gelu(isa, values),
        Activation::GeluTanh => gelu_tanh(isa, values),
        Activation::Tanh => tanh(isa, values),
    };
    if values.len() < PARALLEL_MIN { all(values) } else { values.par_chunks_mut(CHUNK).for_each(all) }
}

/// `gate ← activation(gate) · up`, as gated feed-forward layers have it (Shazeer, 2020).
///
/// # Panics
/// When the lengths differ.
pub fn activate_gate(activation: Activation, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "values of the gate");
    let isa = Isa::current();
    let each = |(gate, up): (&mut [f32], &[f32])| {
        if activation == Activation::Silu {
            return silu_gate(isa, gate, up);
        }
        activate(activation, gate);
        multiply(isa, gate, up);
    };
    if gate.len() < PARALLEL_MIN {
        each((gate, up));
    } else {
        gate.par_chunks_mut(CHUNK).zip(up.par_chunks(CHUNK)).for_each(each);
    }
}

/// The backward pass of [`activate_gate`]: `of_product` is the gradient with respect to its result; `gate` and `up`, as they went in,
/// become the gradients with respect to them.
///
/// # Panics
/// When the lengths differ.
pub(crate) fn gate_gradients(activation: Activation, gate: &mut [f32], up: &mut [f32], of_product: &[f32]) {
    assert!(gate.len() == up.len() && gate.len() == of_product.len(), "values of the gate");
    let isa = Isa::current();
    let chunks = gate.par_chunks_mut(CHUNK).zip(up.par_chunks_mut(CHUNK)).zip(of_product.par_chunks(CHUNK));
    chunks.for_each(|((gate, up), of_product)| match activation {
        Activation::Relu => relu_gradients(isa, gate, up, of_product),
        Activation::Silu => silu_gradients(isa, gate, up, of_product),
        Activation::Gelu => gelu_gradients(isa, gate, up, of_product),
        Activation::GeluTanh => gelu_tanh_gradients(isa, gate, up, of_product),
        Activation::Tanh => tanh_gradients(isa, gate, up, of_product),
    });
}

/// `values ← values + more`.
///
/// # Panics
/// When the lengths differ.
pub fn add(values: &mut [f32], more: &[f32]) {
    assert_eq!(values.len(), more.len(), "values of a sum");
    let isa = Isa::current();
    if values.len() < PARALLEL_MIN {
        add_in(isa, values, more);
    } else {
        let chunks = values.par_chunks_mut(CHUNK).zip(more.par_chunks(CHUNK));
        chunks.for_each(|(values, more)| add_in(isa, values, more));
    }
}

macro_rules! elementwise {
    ($($name:ident, $body:ident;)*) => {$(
        multiversion! {
            fn $name(values: &mut [f32]) = $body
        }

        #[inline(always)]
        fn $body(values: &mut [f32]) {
            for x in values {
                *x = portable::$name(*x);
            }
        }
    )*};
}
elementwise! {
    relu, relu_body;
    silu, silu_body;
    gelu, gelu_body;
    gelu_tanh, gelu_tanh_body;
    tanh, tanh_body;
}

macro_rules! gradients {
    ($($name:ident, $body:ident, $value:ident, $slope:ident;)*) => {$(
        multiversion! {
            fn $name(gate: &mut [f32], up: &mut [f32], of_product: &[f32]) = $body
        }

        #[inline(always)]
        fn $body(gate: &mut [f32], up: &mut [f32], of_product: &[f32]) {
            for ((gate, up), of_product) in gate.iter_mut().zip(up).zip(of_product) {
                let value = portable::$value(*gate);
                *gate = of_product * *up * portable::$slope(*gate);
                *up = of_product * value;
            }
        }
    )*};
}
gradients! {
    relu_gradients, relu_gradients_body, relu, relu_slope;
    silu_gradients, silu_gradients_body, silu, silu_slope;
    gelu_gradients, gelu_gradients_body, gelu, gelu_slope;
    gelu_tanh_gradients, gelu_tanh_gradients_body, gelu_tanh, gelu_tanh_slope;
    tanh_gradients, tanh_gradients_body, tanh, tanh_slope;
}

multiversion! {
    fn silu_gate(gate: &mut [f32], up: &[f32]) = silu_gate_body
}

#[inline(always)]
fn silu_gate_body(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = portable::silu(*gate) * up;
    }
}

multiversion! {
    fn multiply(values: &mut [f32], factors: &[f32]) = multiply_body
}

#[inline(always)]
fn multiply_body(values: &mut [f32], factors: &[f32]) {
    values.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
}

multiversion! {
    fn add_in(values: &mut [f32], more: &[f32]) = add_body
}

#[inline(always)]
fn add_body(values: &mut [f32], more: &[f32]) {
    values.iter_mut().zip(more).for_each(|(x, more)| *x += more);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(activation: Activation, x: f32) -> f32 {
        let mut values = [x];
        activate(activation, &mut values);
        values[0]
    }

    #[test]
    fn exp_is_within_two_units_of_the_last_place() {
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(portable::exp(x)) - exact).abs() / exact;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "{x}: {error}");
        }
        assert!(portable::exp(f32::NAN).is_nan());
        assert_eq!(portable::exp(0.0), 1.0);
        assert!(portable::exp(-1000.0) < 1.7e-38);
    }

    #[test]
    fn activations_as_pytorch_has_them() {
        // torch.nn.functional.{silu,gelu,gelu(approximate="tanh")} and torch.tanh in float64
        let cases = [
            (
                -6.0,
                -0.014_835_738_939_808_647,
                -5.919_525_869_479_969e-9,
                -8.439_648_979_674_53e-11,
                -0.999_987_711_650_795_6,
            ),
            (
                -1.0,
                -0.268_941_421_369_995_1,
                -0.158_655_253_931_457_02,
                -0.158_808_009_391_723_24,
                -0.761_594_155_955_764_9,
            ),
            (
                -0.1,
                -0.047_502_081_922_782_25,
                -0.046_017_216_898_856_52,
                -0.046_017_249_581_126_2,
                -0.099_667_996_099_269_55,
            ),
            (
                0.5,
                0.311_229_665_600_927_3,
                0.345_731_230_637_006_56,
                0.345_714_009_825_143_94,
                0.462_117_157_260_009_74,
            ),
            (
                3.0,
                2.857_722_380_467_299_8,
                2.995_950_305_905_11,
                2.996_362_607_918_227,
                0.995_054_753_686_730_5,
            ),
        ];
        for (x, silu, gelu, gelu_tanh, tanh) in cases {
            let close = |activation, expected: f64| {
                let value = f64::from(of(activation, x));
                assert!((value - expected).abs() < 4e-7, "{activation:?}({x}) = {value}, not {expected}");
            };
            close(Activation::Silu, silu);
            close(Activation::Gelu, gelu);
            close(Activation::GeluTanh, gelu_tanh);
            close(Activation::Tanh, tanh);
        }
        assert_eq!((of(Activation::Relu, -1.0), of(Activation::Relu, 2.0)), (0.0, 2.0));
    }

    #[test]
    fn nan_stays_and_large_values_saturate() {
        use Activation::{Gelu, GeluTanh, Relu, Silu, Tanh};
        for activation in [Relu, Silu, Gelu, GeluTanh, Tanh] {
            assert!(of(activation, f32::NAN).is_nan(), "{activation:?}");
            let large = of(activation, 1e4);
            assert_eq!(large, if activation == Tanh { 1.0 } else { 1e4 }, "{activation:?}");
            let small = of(activation, -1e4);
            assert!(
                if activation == Tanh { small == -1.0 } else { small.abs() < 1e-30 },
                "{activation:?}: {small}"
            );
        }
    }

    #[test]
    fn every_level_and_length_gives_the_same_bits() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) * 0.0213).collect();
        for isa in Isa::all() {
            for len in [0, 1, 15, 16, 33, 1000] {
                let mut expected = values[..len].to_vec();
                let mut actual = expected.clone();
                gelu(Isa::Portable, &mut expected);
                gelu(isa, &mut actual);
                silu_gate(Isa::Portable, &mut expected, &values[..len]);
                silu_gate(isa, &mut actual, &values[..len]);
                assert!(expected.iter().zip(&actual).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
    }

    /// By differences of the function itself.
    #[test]
    fn gradients_of_gates_are_slopes_at_every_level() {
        use Activation::{Gelu, GeluTanh, Relu, Silu, Tanh};
        let points: Vec<f32> = (0..40).map(|i| (i as f32 - 19.5) * 0.2).collect();
        let (ups, of_product): (Vec<f32>, Vec<f32>) =
            (0..40).map(|i| ((i % 7) as f32 - 3.0, (i % 5) as f32 - 2.5)).unzip();
        for activation in [Relu, Silu, Gelu, GeluTanh, Tanh] {
            let (mut gate, mut up) = (points.clone(), ups.clone());
            gate_gradients(activation, &mut gate, &mut up, &of_product);
            for (i, x) in points.iter().enumerate() {
                let step = 1.0 / 64.0;
                let slope = (of(activation, x + step) - of(activation, x - step)) / (2.0 * step);
                let expected = [of_product[i] * ups[i] * slope, of_product[i] * of(activation, *x)];
                let close = |a: f32, b: f32| (a - b).abs() < 2e-3 * (1.0 + b.abs());
                assert!(close(gate[i], expected[0]) && close(up[i], expected[1]), "{activation:?} at {x}");
            }
        }
        for isa in Isa::all() {
            let (mut gate, mut up) = (points.clone(), ups.clone());
            silu_gradients(isa, &mut gate, &mut up, &of_product);
            let (mut expected, mut of_up) = (points.clone(), ups.clone());
            silu_gradients(Isa::Portable, &mut expected, &mut of_up, &of_product);
            assert!(gate == expected && up == of_up, "{isa:?}");
        }
    }

    #[test]
    fn a_gate_multiplies_and_sums_add() {
        let mut gate = vec![-1.0, 2.0];
        activate_gate(Activation::Relu, &mut gate, &[5.0, 3.0]);
        assert_eq!(gate, [0.0, 6.0]);
        add(&mut gate, &[1.0, 1.0]);
        assert_eq!(gate, [1.0, 7.0]);
        let mut long = vec![1.0; PARALLEL_MIN + 7];
        let more = long.clone();
        add(&mut long, &more);
        assert!(long.iter().all(|x| *x == 2.0));
    }
}
