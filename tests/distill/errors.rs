//! Every error names what clashes.

use ndarray::{Array2, Array3, ArrayView2};
use tersor::distill::{
    AttentionTransfer, CosineDistance, CrossEntropy, DecoupledDistillation, DistillError, Divergence,
    DivergenceLoss, KnowledgeDistillation, Labels, MeanSquaredError, RelationalDistillation,
    SoftCrossEntropy,
};

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
