//! Extremes: certainties, equal inputs, the ends of `f32`, rows that are not read.

use approx::assert_relative_eq;
use ndarray::{Array1, Array2, Array3, array, s};
use tersor::distill::{
    AttentionTransfer, CosineDistance, CrossEntropy, DecoupledDistillation, Divergence, DivergenceLoss,
    KnowledgeDistillation, Labels, LossValue, MeanSquaredError, Reduction, RelationalDistillation,
    SoftCrossEntropy,
};

use crate::losses::grid;

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
