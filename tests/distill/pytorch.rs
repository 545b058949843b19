//! PyTorch's numbers in float64.

use std::collections::BTreeMap;

use ndarray::{ArrayD, Ix2, Ix3};
use serde_json::Value;
use tersor::distill::{
    AttentionTransfer, CosineDistance, CrossEntropy, DecoupledDistillation, Divergence, DivergenceLoss,
    KnowledgeDistillation, Labels, LossValue, MeanSquaredError, Reduction, RelationalDistillation,
    SoftCrossEntropy,
};

use crate::golden::{deviation, float, golden, input, numbers};

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
