//! What holds for every loss.

use approx::{assert_abs_diff_eq, assert_relative_eq};
use ndarray::Array2;
use tersor::distill::{LossValue, Reduction};

use crate::losses::{Evaluate, grid, losses};

#[test]
fn gradients_are_the_slopes_of_the_values() {
    // Five-point differences with a step of 1/128, exact in f32 on this grid. The value is an f64, so what is
    // left is the step's fourth power times a fifth derivative (about 1e-9) and the rounding of the gradient
    // to f32 (6e-8).
    let (rows, columns, step) = (6, 9, 1.0 / 128.0);
    for (name, evaluate) in losses(rows, columns) {
        for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
            let student = grid((rows, columns), 3, 2);
            let (value, grad) = evaluate(student.view(), reduction);
            assert!(value.total() > 0.0, "{name}");
            let mut slopes = Array2::<f64>::zeros(student.dim());
            for (index, slope) in slopes.indexed_iter_mut() {
                let at = |steps: f32| {
                    let mut moved = student.clone();
                    moved[index] += steps * step;
                    // Not reduced: a row's own value. The other rows must not move with it.
                    match evaluate(moved.view(), reduction).0 {
                        LossValue::Scalar(value) => value,
                        LossValue::PerRow(values) => {
                            for (row, (now, then)) in values.iter().zip(value.per_row().unwrap()).enumerate()
                            {
                                assert!(
                                    row == index.0 || now == then,
                                    "{name}: row {row} follows row {}",
                                    index.0
                                );
                            }
                            values[index.0]
                        }
                    }
                };
                let five_points = 8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0));
                *slope = five_points / (12.0 * f64::from(step));
            }
            let largest = slopes.iter().fold(0.0_f64, |max, v| max.max(v.abs()));
            assert!(largest > 1e-3, "{name}: the gradient is not trivial");
            let worst = grad.iter().zip(&slopes).map(|(&g, s)| (f64::from(g) - s).abs()).fold(0.0, f64::max);
            println!("{name:24} {reduction:?}: {:.1e} of {largest:.1e}", worst / largest);
            assert_abs_diff_eq!(worst / largest, 0.0, epsilon = 1e-6);
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    // More rows than one block of the projection and one group of anchors.
    let (rows, columns) = (131, 33);
    let student = grid((rows, columns), 11, 2);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let evaluate = |(name, evaluate): (&'static str, Evaluate)| {
                (name, evaluate(student.view(), Reduction::Mean))
            };
            losses(rows, columns).into_iter().map(evaluate).collect::<Vec<_>>()
        })
    };
    let one = run(1);
    for threads in [2, 3, 7] {
        for ((name, (value, grad)), (_, (value_one, grad_one))) in run(threads).iter().zip(&one) {
            assert_eq!(value.total().to_bits(), value_one.total().to_bits(), "{name} on {threads} threads");
            assert!(
                grad.iter().zip(grad_one).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{name} on {threads} threads"
            );
        }
    }
}

#[test]
fn reductions_are_consistent() {
    let (rows, columns) = (6, 9);
    let student = grid((rows, columns), 3, 2);
    for (name, evaluate) in losses(rows, columns) {
        let [(mean, mean_grad), (sum, sum_grad), (none, none_grad)] =
            [Reduction::Mean, Reduction::Sum, Reduction::None].map(|r| evaluate(student.view(), r));
        assert_relative_eq!(none.total(), sum.total(), max_relative = 1e-14);
        assert_eq!(none_grad, sum_grad, "{name}");
        // Mean is the sum over a number that is the same for value and gradient (two numbers in the mixed
        // loss).
        if name != "knowledge distillation" {
            let divisor = sum.total() / mean.total();
            for (a, b) in mean_grad.iter().zip(&sum_grad) {
                assert_relative_eq!(
                    f64::from(*a) * divisor,
                    f64::from(*b),
                    max_relative = 2e-7,
                    epsilon = 1e-12
                );
            }
        }
    }
}
