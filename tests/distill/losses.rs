//! Every loss through one door.

use ndarray::{Array2, Array3, ArrayView2, s};
use tersor::distill::{
    AttentionTransfer, CosineDistance, CrossEntropy, DecoupledDistillation, Divergence, DivergenceLoss,
    KnowledgeDistillation, Labels, LossValue, MeanSquaredError, Reduction, RelationalDistillation,
    SoftCrossEntropy,
};

pub(crate) type Outcome = (LossValue, Array2<f32>);
pub(crate) type Evaluate = Box<dyn Fn(ArrayView2<f32>, Reduction) -> Outcome + Sync + Send>;

/// Numbers on a grid of 1/64 in ±`range`, from a small linear congruential generator.
pub(crate) fn grid(shape: (usize, usize), seed: u64, range: i64) -> Array2<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    Array2::from_shape_simple_fn(shape, || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let steps = 64 * range;
        ((state >> 33) as i64 % (2 * steps + 1) - steps) as f32 / 64.0
    })
}

/// All losses of students `[rows, columns]` with some labels ignored; `columns` divisible by 3.
pub(crate) fn losses(rows: usize, columns: usize) -> Vec<(&'static str, Evaluate)> {
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
