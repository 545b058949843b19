//! The distillation losses against PyTorch in float64, finite differences, naive formulas, and bad input.

#[path = "common/golden.rs"]
mod golden;

use std::collections::BTreeMap;

use approx::{assert_abs_diff_eq, assert_relative_eq};
use golden::{deviation, float, golden, input, numbers};
use ndarray::{Array1, Array2, Array3, ArrayD, ArrayView2, Ix2, Ix3, array, s};
use proptest::prelude::*;
use serde_json::Value;
use tersor::distill::{
    AttentionTransfer, CosineDistance, CrossEntropy, DecoupledDistillation, DistillError, Divergence,
    DivergenceLoss, KnowledgeDistillation, Labels, LossValue, MeanSquaredError, Reduction,
    RelationalDistillation, SoftCrossEntropy,
};

// ----------------------------------------------------------------------------------------------------------
// PyTorch's numbers
// ----------------------------------------------------------------------------------------------------------

#[test]
fn values_and_gradients_equal_those_of_pytorch_in_float64() {
    let golden = golden("distill.json");
    let tensor = |name: &Value| {
        let (shape, data) = input(&golden, name.as_str().unwrap());
        ArrayD::from_shape_vec(shape, data).unwrap()
    };
    let matrix = |name: &Value| tensor(name).into_dimensionality::<Ix2>().unwrap();
    let cube = |name: &Value| tensor(name).into_dimensionality::<Ix3>().unwrap();

    let mut worst: BTreeMap<String, (usize, f64, f64)> = BTreeMap::new();
    let cases = golden["cases"].as_array().unwrap();
    for case in cases {
        let loss = case["loss"].as_str().unwrap();
        let reduction = match case["reduction"].as_str().unwrap() {
            "mean" => Reduction::Mean,
            "sum" => Reduction::Sum,
            _ => Reduction::None,
        };
        let label_values: Option<Vec<i64>> = case["labels"]
            .as_str()
            .map(|name| numbers(&golden["labels"][name]).into_iter().map(|v| v as i64).collect());
        let labels = label_values.as_deref().map(Labels::new);
        let weights: Option<Vec<f32>> = case["weights"]
            .as_str()
            .map(|name| numbers(&golden["weights"][name]).into_iter().map(|v| v as f32).collect());
        let divergence = || match case["divergence"].as_str().unwrap() {
            "forward_kl" => Divergence::ForwardKl,
            "reverse_kl" => Divergence::ReverseKl,
            "jensen_shannon" => Divergence::JensenShannon,
            _ => Divergence::GeneralizedJensenShannon { beta: float(case, "beta") },
        };
        let pair = || (matrix(&case["student"]), matrix(&case["teacher"]));

        let mut projection_deviation = 0.0;
        let (value, grad, counted) = if loss == "attention" {
            let (student, teacher) = (cube(&case["student"]), cube(&case["teacher"]));
            let out = AttentionTransfer::new()
                .reduction(reduction)
                .evaluate(student.view(), teacher.view())
                .unwrap();
            (out.value, out.grad.into_dyn(), out.counted)
        } else {
            let out = match loss {
                "divergence" => {
                    let loss = DivergenceLoss::new(divergence(), float(case, "temperature"));
                    let (s, t) = pair();
                    loss.reduction(reduction).evaluate(s.view(), t.view(), labels)
                }
                "cross_entropy" => {
                    let mut loss = CrossEntropy::new().reduction(reduction);
                    if let Some(weights) = weights {
                        loss = loss.class_weights(weights);
                    }
                    loss.evaluate(matrix(&case["student"]).view(), labels.unwrap())
                }
                "knowledge_distillation" => {
                    let mut loss =
                        KnowledgeDistillation::new(float(case, "alpha"), float(case, "temperature"))
                            .divergence(divergence())
                            .reduction(reduction);
                    if let Some(weights) = weights {
                        loss = loss.class_weights(weights);
                    }
                    let (s, t) = pair();
                    loss.evaluate(s.view(), t.view(), labels.unwrap())
                }
                "soft_cross_entropy" => {
                    let mut loss = SoftCrossEntropy::new(float(case, "temperature")).reduction(reduction);
                    if let Some(weights) = weights {
                        loss = loss.class_weights(weights);
                    }
                    let (s, t) = pair();
                    loss.evaluate(s.view(), t.view(), labels)
                }
                "decoupled" => {
                    let loss = DecoupledDistillation::new(float(case, "temperature"))
                        .alpha(float(case, "alpha"))
                        .beta(float(case, "beta"));
                    let (s, t) = pair();
                    loss.reduction(reduction).evaluate(s.view(), t.view(), labels.unwrap())
                }
                "mse" => {
                    let (s, t) = pair();
                    MeanSquaredError::new().reduction(reduction).evaluate(s.view(), t.view(), labels)
                }
                "cosine" => {
                    let (s, t) = pair();
                    CosineDistance::new().reduction(reduction).evaluate(s.view(), t.view(), labels)
                }
                "mse_projected" => {
                    let (s, t) = pair();
                    let projection = matrix(&"projection".into());
                    let out = MeanSquaredError::new()
                        .reduction(reduction)
                        .evaluate_projected(s.view(), projection.view(), t.view(), labels)
                        .unwrap();
                    assert_eq!(out.projection_grad.dim(), projection.dim());
                    let got: Vec<f64> = out.projection_grad.iter().map(|&v| v.into()).collect();
                    projection_deviation = deviation(&got, &numbers(&case["projection_grad"]));
                    Ok(out.loss)
                }
                "relational" => {
                    let (s, t) = pair();
                    RelationalDistillation::new()
                        .distance_weight(float(case, "distance_weight"))
                        .angle_weight(float(case, "angle_weight"))
                        .evaluate(s.view(), t.view())
                }
                other => panic!("no loss {other}"),
            }
            .unwrap();
            (out.value, out.grad.into_dyn(), out.counted)
        };

        assert_eq!(grad.shape(), tensor(&case["student"]).shape());
        if let Some(expected) = case["counted"].as_u64() {
            assert_eq!(counted as u64, expected);
        }
        let got_value = match value {
            LossValue::Scalar(value) => vec![value],
            LossValue::PerRow(values) => values,
        };
        let got_grad: Vec<f64> = grad.iter().map(|&v| v.into()).collect();
        let value_deviation = deviation(&got_value, &numbers(&case["value"]));
        let grad_deviation = deviation(&got_grad, &numbers(&case["grad"])).max(projection_deviation);
        assert!(
            value_deviation <= 1e-6 && grad_deviation <= 1e-6,
            "{case}\nvalue off by {value_deviation:e}, gradient by {grad_deviation:e}: {got_value:?} {got_grad:?}"
        );
        let entry = worst.entry(loss.to_owned()).or_default();
        *entry = (entry.0 + 1, entry.1.max(value_deviation), entry.2.max(grad_deviation));
    }
    for (loss, (count, value, grad)) in &worst {
        println!("{loss:24} {count:3} cases, largest deviation: value {value:.1e}, gradient {grad:.1e}");
    }
    assert_eq!(worst.len(), 10, "every loss is covered");
}

// ----------------------------------------------------------------------------------------------------------
// Every loss through one door
// ----------------------------------------------------------------------------------------------------------

type Outcome = (LossValue, Array2<f32>);
type Evaluate = Box<dyn Fn(ArrayView2<f32>, Reduction) -> Outcome + Sync + Send>;

/// Numbers on a grid of 1/64 in ±`range`, from a small linear congruential generator.
fn grid(shape: (usize, usize), seed: u64, range: i64) -> Array2<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    Array2::from_shape_simple_fn(shape, || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let steps = 64 * range;
        ((state >> 33) as i64 % (2 * steps + 1) - steps) as f32 / 64.0
    })
}

/// All losses of students `[rows, columns]` with some labels ignored; `columns` divisible by 3.
fn losses(rows: usize, columns: usize) -> Vec<(&'static str, Evaluate)> {
    let teacher = grid((rows, columns), 7, 3);
    let labels: Vec<i64> =
        (0..rows).map(|row| if row % 4 == 3 { -100 } else { (row * 5 % columns) as i64 }).collect();
    let weights: Vec<f32> = (0..columns).map(|class| class as f32 / 4.0).collect();
    let projection = grid((4, columns), 9, 1);
    let mut all: Vec<(&'static str, Evaluate)> = Vec::new();
    for (name, divergence) in [
        ("forward KL", Divergence::ForwardKl),
        ("reverse KL", Divergence::ReverseKl),
        ("Jensen-Shannon", Divergence::JensenShannon),
        ("JSD(0.1)", Divergence::GeneralizedJensenShannon { beta: 0.1 }),
    ] {
        let (teacher, labels) = (teacher.clone(), labels.clone());
        all.push((
            name,
            Box::new(move |student, reduction| {
                let loss = DivergenceLoss::new(divergence, 1.5).reduction(reduction);
                let out = loss.evaluate(student, teacher.view(), Some(Labels::new(&labels))).unwrap();
                (out.value, out.grad)
            }),
        ));
    }
    {
        let (labels, weights) = (labels.clone(), weights.clone());
        let loss = CrossEntropy::new().class_weights(weights);
        all.push((
            "cross-entropy",
            Box::new(move |student, reduction| {
                let out = loss.clone().reduction(reduction).evaluate(student, Labels::new(&labels)).unwrap();
                (out.value, out.grad)
            }),
        ));
    }
    {
        let (teacher, labels, weights) = (teacher.clone(), labels.clone(), weights.clone());
        let loss = KnowledgeDistillation::new(0.7, 3.0).class_weights(weights);
        all.push((
            "knowledge distillation",
            Box::new(move |student, reduction| {
                let loss = loss.clone().reduction(reduction);
                let out = loss.evaluate(student, teacher.view(), Labels::new(&labels)).unwrap();
                (out.value, out.grad)
            }),
        ));
    }
    {
        let teacher = teacher.clone();
        let loss = SoftCrossEntropy::new(2.0).class_weights(weights);
        all.push((
            "soft cross-entropy",
            Box::new(move |student, reduction| {
                let out = loss.clone().reduction(reduction).evaluate(student, teacher.view(), None).unwrap();
                (out.value, out.grad)
            }),
        ));
    }
    {
        let (teacher, labels) = (teacher.clone(), labels.clone());
        all.push((
            "decoupled",
            Box::new(move |student, reduction| {
                let loss = DecoupledDistillation::new(2.0).alpha(1.5).beta(4.0).reduction(reduction);
                let out = loss.evaluate(student, teacher.view(), Labels::new(&labels)).unwrap();
                (out.value, out.grad)
            }),
        ));
    }
    {
        let (teacher, labels) = (teacher.clone(), labels.clone());
        all.push((
            "squared error",
            Box::new(move |student, reduction| {
                let loss = MeanSquaredError::new().reduction(reduction);
                let out = loss.evaluate(student, teacher.view(), Some(Labels::new(&labels))).unwrap();
                (out.value, out.grad)
            }),
        ));
    }
    {
        let (teacher, labels) = (teacher.slice(s![.., ..4]).to_owned(), labels.clone());
        let projected = projection.clone();
        let wide = labels.clone();
        let target = teacher.clone();
        all.push((
            "projected squared error",
            Box::new(move |student, reduction| {
                let loss = MeanSquaredError::new().reduction(reduction);
                let labels = Some(Labels::new(&labels));
                let out = loss.evaluate_projected(student, projected.view(), teacher.view(), labels).unwrap();
                (out.loss.value, out.loss.grad)
            }),
        ));
        // The same with the roles of student and projection exchanged, for the projection's gradient.
        all.push((
            "projection",
            Box::new(move |weight, reduction| {
                let input = grid((wide.len(), weight.ncols()), 21, 1);
                let target = Array2::from_shape_fn((wide.len(), weight.nrows()), |(i, j)| target[[i, j % 4]]);
                let reduction = if reduction == Reduction::None { Reduction::Sum } else { reduction };
                let loss = MeanSquaredError::new().reduction(reduction);
                let labels = Some(Labels::new(&wide));
                let out = loss.evaluate_projected(input.view(), weight, target.view(), labels).unwrap();
                (out.loss.value, out.projection_grad)
            }),
        ));
    }
    {
        let teacher = teacher.clone();
        all.push((
            "cosine",
            Box::new(move |student, reduction| {
                let loss = CosineDistance::new().reduction(reduction);
                let out = loss.evaluate(student, teacher.view(), None).unwrap();
                (out.value, out.grad)
            }),
        ));
    }
    {
        let teacher = teacher.clone();
        all.push((
            "attention",
            Box::new(move |student, reduction| {
                let cube = |matrix: ArrayView2<f32>, channels: usize| -> Array3<f32> {
                    let positions = matrix.ncols() / 3;
                    let data = matrix.slice(s![.., ..channels * positions]).to_owned();
                    data.into_shape_clone((matrix.nrows(), channels, positions)).unwrap()
                };
                let (a, b) = (cube(student, 3), cube(teacher.view(), 2));
                let out = AttentionTransfer::new().reduction(reduction).evaluate(a.view(), b.view()).unwrap();
                (out.value, out.grad.into_shape_clone(student.dim()).unwrap())
            }),
        ));
    }
    for (name, distances, angles) in [("distances", 2.0, 0.0), ("angles", 0.0, 3.0)] {
        let teacher = teacher.slice(s![.., 1..]).to_owned();
        all.push((
            name,
            Box::new(move |student, _| {
                let loss = RelationalDistillation::new().distance_weight(distances).angle_weight(angles);
                let out = loss.evaluate(student, teacher.view()).unwrap();
                (out.value, out.grad)
            }),
        ));
    }
    all
}

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

// ----------------------------------------------------------------------------------------------------------
// Naive formulas, any shape and stride
// ----------------------------------------------------------------------------------------------------------

fn naive_softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let powers: Vec<f64> = logits.iter().map(|&x| (f64::from(x) / temperature).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

fn naive_kl(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn logit_losses_equal_the_textbook_formulas(
        rows in 1_usize..6, classes in 2_usize..37, seed: u32, temperature in 0.5_f32..8.0, transposed: bool,
    ) {
        let make = |seed: u64| {
            // Twice as wide as needed and stepped through, or transposed: never contiguous rows.
            let shape = if transposed { (classes, rows) } else { (rows, 2 * classes) };
            let all = grid(shape, seed, 6);
            if transposed { all.reversed_axes() } else { all.slice_move(s![.., ..;2]) }
        };
        let (student, teacher) = (make(seed.into()), make(u64::from(seed) + 99));
        let labels: Vec<i64> = (0..rows).map(|row| ((row + seed as usize) % classes) as i64).collect();
        let t = f64::from(temperature);

        let forward = DivergenceLoss::new(Divergence::ForwardKl, temperature).reduction(Reduction::None);
        let forward = forward.evaluate(student.view(), teacher.view(), None).unwrap();
        let decoupled = DecoupledDistillation::new(temperature).alpha(1.0).beta(2.0).reduction(Reduction::None);
        let decoupled = decoupled.evaluate(student.view(), teacher.view(), Labels::new(&labels)).unwrap();
        let hard = CrossEntropy::new().reduction(Reduction::None);
        let hard = hard.evaluate(student.view(), Labels::new(&labels)).unwrap();
        for (row, &label) in labels.iter().enumerate() {
            let (s, p_logits) = (student.row(row).to_vec(), teacher.row(row).to_vec());
            let (q, p) = (naive_softmax(&s, t), naive_softmax(&p_logits, t));
            let y = label as usize;
            assert_relative_eq!(forward.value.per_row().unwrap()[row], t * t * naive_kl(&p, &q), max_relative = 1e-9);

            let others = |v: &[f64]| -> Vec<f64> {
                let rest = || v.iter().enumerate().filter(|&(class, _)| class != y).map(|(_, v)| v);
                let sum: f64 = rest().sum();
                rest().map(|v| v / sum).collect()
            };
            let target = naive_kl(&[p[y], 1.0 - p[y]], &[q[y], 1.0 - q[y]]);
            let want = t * t * (target + 2.0 * naive_kl(&others(&p), &others(&q)));
            assert_relative_eq!(decoupled.value.per_row().unwrap()[row], want, max_relative = 1e-9, epsilon = 1e-12);

            let one = naive_softmax(&s, 1.0);
            assert_relative_eq!(hard.value.per_row().unwrap()[row], -one[y].ln(), max_relative = 1e-9, epsilon = 1e-14);
            for (class, &grad) in hard.grad.row(row).iter().enumerate() {
                let want = one[class] - f64::from(u8::from(class == y));
                assert_abs_diff_eq!(f64::from(grad), want, epsilon = 1e-7);
            }
        }
    }
}

// ----------------------------------------------------------------------------------------------------------
// Extremes
// ----------------------------------------------------------------------------------------------------------

#[test]
fn opposed_certainties_give_exact_values() {
    // p = (1, 0), q = (0, 1): KL = 2e4 / T each way, JSD = ln 2, all times T².
    let (student, teacher) = (array![[-1e4_f32, 1e4]], array![[1e4_f32, -1e4]]);
    for t in [1.0_f32, 4.0] {
        let wide = f64::from(t);
        for (divergence, value, slope) in [
            (Divergence::ForwardKl, 2e4 * wide, wide),
            (Divergence::ReverseKl, 2e4 * wide, 0.0),
            (Divergence::JensenShannon, 2.0_f64.ln() * wide * wide, 0.0),
        ] {
            let out =
                DivergenceLoss::new(divergence, t).evaluate(student.view(), teacher.view(), None).unwrap();
            assert_relative_eq!(out.value.total(), value, max_relative = 1e-14);
            assert_eq!(out.grad, array![[-slope as f32, slope as f32]], "{divergence:?}");
        }
        let decoupled = DecoupledDistillation::new(t).alpha(3.0);
        let out = decoupled.evaluate(student.view(), teacher.view(), Labels::new(&[0])).unwrap();
        assert_relative_eq!(out.value.total(), 3.0 * 2e4 * wide, max_relative = 1e-14);
        assert_eq!(out.grad, array![[-3.0 * t, 3.0 * t]]);
    }
    let out = CrossEntropy::new().evaluate(student.view(), Labels::new(&[0])).unwrap();
    assert_eq!((out.value.total(), out.grad), (2e4, array![[-1.0, 1.0]]));
}

#[test]
fn a_target_logit_of_any_height_is_taken_out_of_the_other_classes() {
    // Class 0 towers by more than the 1000 that the usual implementation subtracts; the others still count.
    let student = array![[1e4_f32, 1.0, 0.0]];
    let teacher = array![[1e4_f32, 0.0, 1.0]];
    let loss = DecoupledDistillation::new(1.0).alpha(1.0).beta(8.0);
    let out = loss.evaluate(student.view(), teacher.view(), Labels::new(&[0])).unwrap();
    assert_relative_eq!(out.value.total(), 8.0 * 0.5_f64.tanh(), max_relative = 1e-14);
    let slope = (8.0 * 0.5_f64.tanh()) as f32;
    assert_eq!(out.grad, array![[0.0, slope, -slope]]);
}

#[test]
fn equal_inputs_cost_nothing() {
    let both = grid((5, 9), 1, 100);
    for divergence in [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::JensenShannon] {
        let out = DivergenceLoss::new(divergence, 0.25).evaluate(both.view(), both.view(), None).unwrap();
        assert!(out.value.total().abs() < 1e-13, "{divergence:?}: {}", out.value.total());
        assert!(out.grad.iter().all(|g| g.abs() < 1e-13));
    }
    let out = RelationalDistillation::new().evaluate(both.view(), both.view()).unwrap();
    assert_eq!(out.value, LossValue::Scalar(0.0));
    assert!(out.grad.iter().all(|&g| g == 0.0));
}

#[test]
fn gradients_stay_finite_at_the_ends_of_f32() {
    let ends = [f32::MAX, f32::MIN, 0.0, f32::MIN_POSITIVE, 1e-45, -1e-45, 1.0, 1e4, -1e4];
    let student = Array2::from_shape_fn((6, 9), |(i, j)| ends[(i + j) % 9]);
    let teacher = Array2::from_shape_fn((6, 9), |(i, j)| ends[(2 * i + 4 * j) % 9]);
    let labels = Labels::new(&[0, 1, 2, 3, 4, 5]);
    let (s, p) = (student.view(), teacher.view());
    for t in [f32::MIN_POSITIVE, 1e-45, 1.0, f32::MAX] {
        let mut outs = vec![
            DecoupledDistillation::new(t).evaluate(s, p, labels),
            SoftCrossEntropy::new(t).class_weights([f32::MAX; 9]).evaluate(s, p, None),
            KnowledgeDistillation::new(0.5, t).class_weights([1e-45; 9]).evaluate(s, p, labels),
            MeanSquaredError::new().evaluate(s, p, None),
            MeanSquaredError::new()
                .evaluate_projected(s, array![ends].view(), p.slice(s![.., ..1]), None)
                .map(|o| o.loss),
            CosineDistance::new().evaluate(s, p, None),
            RelationalDistillation::new().evaluate(s, p),
        ];
        for divergence in [
            Divergence::ForwardKl,
            Divergence::ReverseKl,
            Divergence::JensenShannon,
            Divergence::GeneralizedJensenShannon { beta: 1e-45 },
        ] {
            outs.push(DivergenceLoss::new(divergence, t).evaluate(s, p, None));
        }
        for (index, out) in outs.into_iter().enumerate() {
            let out = out.unwrap();
            assert!(out.value.total().is_finite(), "loss {index} at temperature {t}: {:?}", out.value);
            assert!(
                out.grad.iter().all(|g| g.is_finite()),
                "loss {index} at temperature {t}: {:?}",
                out.grad
            );
        }
    }
    let maps = student.into_shape_clone((6, 3, 3)).unwrap();
    let targets = teacher.into_shape_clone((6, 3, 3)).unwrap();
    let out = AttentionTransfer::new().evaluate(maps.view(), targets.view()).unwrap();
    assert!(out.value.total().is_finite() && out.grad.iter().all(|g| g.is_finite()));
}

#[test]
fn vectors_without_direction_cost_one_and_are_left_alone() {
    let (student, teacher) = (array![[0.0_f32, 0.0], [1.0, 0.0]], array![[1.0_f32, 1.0], [0.0, 0.0]]);
    let out = CosineDistance::new()
        .reduction(Reduction::Sum)
        .evaluate(student.view(), teacher.view(), None)
        .unwrap();
    assert_eq!(out.value, LossValue::Scalar(2.0));
    assert_eq!(out.grad, Array2::<f32>::zeros((2, 2)));
    let dead = Array3::<f32>::zeros((1, 2, 4));
    let out = AttentionTransfer::new().evaluate(dead.view(), Array3::ones((1, 1, 4)).view()).unwrap();
    assert_eq!(out.value, LossValue::Scalar(0.25)); // the teacher's map has norm 1, over 4 positions
    assert_eq!(out.grad, dead);
    let heap = Array2::<f32>::ones((3, 2));
    let out =
        RelationalDistillation::new().evaluate(heap.view(), array![[0.0_f32], [1.0], [3.0]].view()).unwrap();
    assert!(out.value.total() > 0.0);
    assert_eq!(out.grad, Array2::<f32>::zeros((3, 2)));
}

#[test]
fn ignored_rows_are_not_read() {
    let student = array![[1.0_f32, 2.0], [f32::NAN, f32::INFINITY]];
    let teacher = array![[2.0_f32, 1.0], [f32::NAN, 0.0]];
    let (labels, s, t) = (Labels::new(&[1, 9]).ignoring(9), student.view(), teacher.view());
    for out in [
        DivergenceLoss::new(Divergence::ForwardKl, 2.0).evaluate(s, t, Some(labels)),
        CrossEntropy::new().evaluate(s, labels),
        KnowledgeDistillation::new(0.5, 2.0).evaluate(s, t, labels),
        SoftCrossEntropy::new(2.0).evaluate(s, t, Some(labels)),
        DecoupledDistillation::new(2.0).evaluate(s, t, labels),
        MeanSquaredError::new().evaluate(s, t, Some(labels)),
        MeanSquaredError::new()
            .evaluate_projected(s, Array2::eye(2).view(), t, Some(labels))
            .map(|out| out.loss),
        CosineDistance::new().evaluate(s, t, Some(labels)),
    ] {
        let out = out.unwrap();
        assert_eq!(out.counted, 1);
        assert!(out.value.total() > 0.0);
        assert_eq!(out.grad.row(1), Array1::<f32>::zeros(2));
    }
}

// ----------------------------------------------------------------------------------------------------------
// Errors
// ----------------------------------------------------------------------------------------------------------

#[test]
fn every_error_names_what_clashes() {
    use DistillError as E;
    let (two, three) = (Array2::<f32>::zeros((2, 2)), Array2::<f32>::zeros((2, 3)));
    let (two, three) = (two.view(), three.view());
    let empty = Array2::<f32>::zeros((0, 3));
    let narrow = Array2::<f32>::zeros((2, 0));
    let labels = Labels::new(&[0, 1]);
    let kl = DivergenceLoss::new(Divergence::ForwardKl, 1.0);
    let kd = KnowledgeDistillation::new(0.5, 1.0);
    let text = |error: DistillError| error.to_string();

    let shapes = kl.evaluate(two, three, None).unwrap_err();
    assert!(matches!(&shapes, E::ShapeMismatch { left_shape, right_shape, .. }
        if left_shape == &[2, 2] && right_shape == &[2, 3]));
    assert_eq!(
        text(shapes),
        "student has shape [2, 2] but teacher has shape [2, 3]: both shapes must be equal"
    );
    for error in [
        kd.evaluate(two, three, labels).unwrap_err(),
        SoftCrossEntropy::new(1.0).evaluate(two, three, None).unwrap_err(),
        DecoupledDistillation::new(1.0).evaluate(two, three, labels).unwrap_err(),
        MeanSquaredError::new().evaluate(two, three, None).unwrap_err(),
        CosineDistance::new().evaluate(two, three, None).unwrap_err(),
        // Projections: rows, then either side of the projection.
        MeanSquaredError::new().evaluate_projected(two, two, Array2::zeros((3, 2)).view(), None).unwrap_err(),
        MeanSquaredError::new().evaluate_projected(two, three, three, None).unwrap_err(),
        MeanSquaredError::new().evaluate_projected(two, two, three, None).unwrap_err(),
        RelationalDistillation::new().evaluate(two, Array2::zeros((3, 2)).view()).unwrap_err(),
        AttentionTransfer::new()
            .evaluate(Array3::zeros((2, 1, 4)).view(), Array3::zeros((2, 1, 5)).view())
            .unwrap_err(),
        AttentionTransfer::new()
            .evaluate(Array3::zeros((2, 1, 4)).view(), Array3::zeros((3, 1, 4)).view())
            .unwrap_err(),
    ] {
        assert!(matches!(error, E::ShapeMismatch { .. }), "{error}");
    }

    let count = E::LabelCount { labels: 3, rows: 2 };
    assert_eq!(kd.evaluate(two, two, Labels::new(&[0, 1, 1])).unwrap_err(), count);
    assert_eq!(kl.evaluate(two, two, Some(Labels::new(&[0, 1, 1]))).unwrap_err(), count);
    assert_eq!(text(count), "3 labels for 2 rows: give one label per row");

    for label in [2, -1, i64::MIN, i64::MAX] {
        let error = E::LabelOutOfRange { row: 1, label, classes: 2, ignore_index: -100 };
        let values = [0, label];
        let labels = Labels::new(&values);
        assert_eq!(CrossEntropy::new().evaluate(two, labels).unwrap_err(), error);
        assert_eq!(kd.evaluate(two, two, labels).unwrap_err(), error);
        assert_eq!(kl.evaluate(two, two, Some(labels)).unwrap_err(), error);
        assert_eq!(DecoupledDistillation::new(1.0).evaluate(two, two, labels).unwrap_err(), error);
        // Features have no classes.
        assert!(MeanSquaredError::new().evaluate(two, two, Some(labels)).is_ok());
    }

    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut broken = Array2::<f32>::zeros((2, 2));
        broken[[1, 0]] = bad;
        broken[[1, 1]] = bad;
        let broken = broken.view();
        let check = |error: DistillError, name: &str, at: &[usize]| {
            let E::NonFinite { input, index, value } = &error else { panic!("{error}") };
            assert_eq!((*input, index.as_slice(), value.to_bits()), (name, at, bad.to_bits()));
        };
        for (student, teacher, name) in [(broken, two, "student"), (two, broken, "teacher")] {
            check(kl.evaluate(student, teacher, None).unwrap_err(), name, &[1, 0]);
            check(kd.evaluate(student, teacher, labels).unwrap_err(), name, &[1, 0]);
            check(SoftCrossEntropy::new(1.0).evaluate(student, teacher, None).unwrap_err(), name, &[1, 0]);
            check(
                DecoupledDistillation::new(1.0).evaluate(student, teacher, labels).unwrap_err(),
                name,
                &[1, 0],
            );
            check(MeanSquaredError::new().evaluate(student, teacher, None).unwrap_err(), name, &[1, 0]);
            check(CosineDistance::new().evaluate(student, teacher, None).unwrap_err(), name, &[1, 0]);
            check(RelationalDistillation::new().evaluate(student, teacher).unwrap_err(), name, &[1, 0]);
            let projected = MeanSquaredError::new().evaluate_projected(student, two, teacher, None);
            check(projected.unwrap_err(), name, &[1, 0]);
            let cube = |m: ArrayView2<f32>| m.to_owned().into_shape_with_order((1, 2, 2)).unwrap();
            let attention = AttentionTransfer::new().evaluate(cube(student).view(), cube(teacher).view());
            check(attention.unwrap_err(), name, &[0, 1, 0]);
        }
        check(CrossEntropy::new().evaluate(broken, labels).unwrap_err(), "student", &[1, 0]);
        let projected = MeanSquaredError::new().evaluate_projected(two, broken, two, None);
        check(projected.unwrap_err(), "projection", &[1, 0]);
    }

    for t in [0.0, -0.0, -1.0, f32::INFINITY, f32::NAN] {
        for error in [
            DivergenceLoss::new(Divergence::ReverseKl, t).evaluate(two, two, None).unwrap_err(),
            KnowledgeDistillation::new(0.5, t).evaluate(two, two, labels).unwrap_err(),
            SoftCrossEntropy::new(t).evaluate(two, two, None).unwrap_err(),
            DecoupledDistillation::new(t).evaluate(two, two, labels).unwrap_err(),
        ] {
            assert!(matches!(error, E::Temperature { value } if value.to_bits() == t.to_bits()), "{error}");
        }
    }

    for alpha in [-0.01, 1.01, f32::NAN] {
        let error = KnowledgeDistillation::new(alpha, 1.0).evaluate(two, two, labels).unwrap_err();
        assert!(matches!(error, E::OutOfRange { name: "alpha", .. }), "{error}");
    }
    for beta in [0.0, 1.0, -1.0, f32::NAN] {
        let divergence = Divergence::GeneralizedJensenShannon { beta };
        let error = DivergenceLoss::new(divergence, 1.0).evaluate(two, two, None).unwrap_err();
        assert!(matches!(error, E::OutOfRange { name: "beta", .. }), "{error}");
        let error = kd.clone().divergence(divergence).evaluate(two, two, labels).unwrap_err();
        assert!(matches!(error, E::OutOfRange { name: "beta", .. }), "{error}");
    }
    for bad in [-1.0, f32::INFINITY, f32::NAN] {
        let (decoupled, relational) = (DecoupledDistillation::new(1.0), RelationalDistillation::new());
        for (error, expected) in [
            (decoupled.alpha(bad).evaluate(two, two, labels).unwrap_err(), "alpha"),
            (decoupled.beta(bad).evaluate(two, two, labels).unwrap_err(), "beta"),
            (relational.distance_weight(bad).evaluate(two, two).unwrap_err(), "distance_weight"),
            (relational.angle_weight(bad).evaluate(two, two).unwrap_err(), "angle_weight"),
        ] {
            assert!(matches!(error, E::OutOfRange { name, .. } if name == expected), "{error}");
        }
        for error in [
            CrossEntropy::new().class_weights([1.0, bad]).evaluate(two, labels).unwrap_err(),
            kd.clone().class_weights([1.0, bad]).evaluate(two, two, labels).unwrap_err(),
            SoftCrossEntropy::new(1.0).class_weights([1.0, bad]).evaluate(two, two, None).unwrap_err(),
        ] {
            assert!(matches!(error, E::ClassWeight { class: 1, .. }), "{error}");
        }
    }
    for error in [
        CrossEntropy::new().class_weights([1.0]).evaluate(two, labels).unwrap_err(),
        kd.clone().class_weights([1.0]).evaluate(two, two, labels).unwrap_err(),
        SoftCrossEntropy::new(1.0).class_weights([1.0]).evaluate(two, two, None).unwrap_err(),
    ] {
        assert_eq!(error, E::ClassWeightCount { weights: 1, classes: 2 });
    }

    for (batch, shape) in [(empty.view(), vec![0, 3]), (narrow.view(), vec![2, 0])] {
        let none = Labels::new(&[]);
        let error = E::Empty { input: "student", shape };
        assert_eq!(kl.evaluate(batch, batch, None).unwrap_err(), error);
        assert_eq!(kd.evaluate(batch, batch, none).unwrap_err(), error);
        assert_eq!(CrossEntropy::new().evaluate(batch, none).unwrap_err(), error);
        assert_eq!(SoftCrossEntropy::new(1.0).evaluate(batch, batch, None).unwrap_err(), error);
        assert_eq!(DecoupledDistillation::new(1.0).evaluate(batch, batch, none).unwrap_err(), error);
        assert_eq!(MeanSquaredError::new().evaluate(batch, batch, None).unwrap_err(), error);
        assert_eq!(MeanSquaredError::new().evaluate_projected(batch, two, two, None).unwrap_err(), error);
        assert_eq!(CosineDistance::new().evaluate(batch, batch, None).unwrap_err(), error);
        assert_eq!(RelationalDistillation::new().evaluate(batch, two).unwrap_err(), error);
    }
    let cube = Array3::<f32>::zeros((1, 0, 2));
    let error = AttentionTransfer::new().evaluate(Array3::zeros((1, 1, 2)).view(), cube.view()).unwrap_err();
    assert_eq!(error, E::Empty { input: "teacher", shape: vec![1, 0, 2] });
    let error =
        MeanSquaredError::new().evaluate_projected(two, Array2::zeros((0, 2)).view(), two, None).unwrap_err();
    assert_eq!(error, E::Empty { input: "projection", shape: vec![0, 2] });

    let one = Array2::<f32>::zeros((1, 1));
    let error =
        DecoupledDistillation::new(1.0).evaluate(one.view(), one.view(), Labels::new(&[0])).unwrap_err();
    assert_eq!(error, E::TooFew { input: "student", axis: "classes", found: 1, needed: 2 });
    let error = RelationalDistillation::new().evaluate(one.view(), one.view()).unwrap_err();
    assert_eq!(text(error), "student has 1 rows, the loss needs at least 2");
}
