//! The losses as operations: PyTorch's values and gradients, through candle's autograd.

use candle_core::{DType, Device, Tensor, Var};
use serde_json::Value;
use tersor::distill::{
    AttentionTransfer, CosineDistance, CrossEntropy, DecoupledDistillation, Divergence, DivergenceLoss,
    KnowledgeDistillation, MeanSquaredError, Reduction, RelationalDistillation, SoftCrossEntropy,
};
use tersor::one_line;

use crate::golden::{deviation, float, golden, input, numbers};
use crate::{grid, values};

fn wide(tensor: &Tensor) -> Vec<f64> {
    values(tensor).into_iter().map(f64::from).collect()
}

#[test]
fn values_and_gradients_equal_those_of_pytorch() {
    let golden = golden("distill.json");
    let tensor = |name: &str| {
        let (shape, data) = input(&golden, name);
        Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
    };
    let mut losses = std::collections::BTreeSet::new();
    for case in golden["cases"].as_array().unwrap() {
        let text = |key: &str| case[key].as_str();
        let reduction = match text("reduction").unwrap() {
            "mean" => Reduction::Mean,
            "sum" => Reduction::Sum,
            _ => Reduction::None,
        };
        let labels = text("labels").map(|name| {
            let labels: Vec<i64> =
                numbers(&golden["labels"][name]).iter().map(|label| *label as i64).collect();
            Tensor::new(labels, &Device::Cpu).unwrap()
        });
        let labels = labels.as_ref();
        let weights: Option<Vec<f32>> =
            text("weights").map(|name| numbers(&golden["weights"][name]).iter().map(|w| *w as f32).collect());
        let divergence = || match text("divergence").unwrap() {
            "forward_kl" => Divergence::ForwardKl,
            "reverse_kl" => Divergence::ReverseKl,
            "jensen_shannon" => Divergence::JensenShannon,
            _ => Divergence::GeneralizedJensenShannon { beta: float(case, "beta") },
        };
        let loss = text("loss").unwrap();
        losses.insert(loss.to_owned());
        let student = Var::from_tensor(&tensor(text("student").unwrap())).unwrap();
        let teacher = text("teacher").map_or_else(|| tensor("student"), tensor);
        let projection = Var::from_tensor(&tensor("projection")).unwrap();
        let value = match loss {
            "attention" => AttentionTransfer::new().reduction(reduction).forward(&student, &teacher),
            "divergence" => DivergenceLoss::new(divergence(), float(case, "temperature"))
                .reduction(reduction)
                .forward(&student, &teacher, labels),
            "cross_entropy" => {
                let loss = CrossEntropy::new().reduction(reduction);
                let loss = weights.map_or(loss.clone(), |weights| loss.class_weights(weights));
                loss.forward(&student, labels.unwrap())
            }
            "knowledge_distillation" => {
                let loss = KnowledgeDistillation::new(float(case, "alpha"), float(case, "temperature"))
                    .divergence(divergence())
                    .reduction(reduction);
                let loss = weights.map_or(loss.clone(), |weights| loss.class_weights(weights));
                loss.forward(&student, &teacher, labels.unwrap())
            }
            "soft_cross_entropy" => {
                let loss = SoftCrossEntropy::new(float(case, "temperature")).reduction(reduction);
                let loss = weights.map_or(loss.clone(), |weights| loss.class_weights(weights));
                loss.forward(&student, &teacher, labels)
            }
            "decoupled" => DecoupledDistillation::new(float(case, "temperature"))
                .alpha(float(case, "alpha"))
                .beta(float(case, "beta"))
                .reduction(reduction)
                .forward(&student, &teacher, labels.unwrap()),
            "mse" => MeanSquaredError::new().reduction(reduction).forward(&student, &teacher, labels),
            "cosine" => CosineDistance::new().reduction(reduction).forward(&student, &teacher, labels),
            "mse_projected" => MeanSquaredError::new().reduction(reduction).forward_projected(
                &student,
                &projection,
                &teacher,
                labels,
            ),
            "relational" => RelationalDistillation::new()
                .distance_weight(float(case, "distance_weight"))
                .angle_weight(float(case, "angle_weight"))
                .forward(&student, &teacher),
            other => panic!("no loss {other}"),
        }
        .unwrap();

        let rows = if reduction == Reduction::None && loss != "relational" { student.dims()[0] } else { 1 };
        assert_eq!(value.elem_count(), rows, "{case}");
        // the sum over rows has each row's own gradient
        let grads = value.sum_all().unwrap().backward().unwrap();
        let value_off = deviation(&wide(&value), &numbers(&case["value"]));
        let grad_off = deviation(&wide(grads.get(&student).unwrap()), &numbers(&case["grad"]));
        assert!(value_off <= 1e-6 && grad_off <= 1e-6, "{case}: off by {value_off:e} and {grad_off:e}");
        if let Value::Array(_) = case["projection_grad"] {
            let off = deviation(&wide(grads.get(&projection).unwrap()), &numbers(&case["projection_grad"]));
            assert!(off <= 1e-6, "{case}: the projection's gradient is off by {off:e}");
        }
    }
    assert_eq!(losses.len(), 10, "every loss is covered");
}

/// A small network behind, and arithmetic after the loss: the chain rule, against finite differences.
#[test]
fn gradients_go_through_what_stands_before_and_after() {
    let (x, teacher) = (grid(&[4, 3], 1), grid(&[4, 5], 2));
    let labels = Tensor::new(&[0u32, 4, 2, 2], &Device::Cpu).unwrap();
    let weight = Var::from_tensor(&grid(&[5, 3], 3)).unwrap();
    let factors = Tensor::new(&[0.5f32, -2.0, 1.0, 3.0], &Device::Cpu).unwrap();
    let loss = KnowledgeDistillation::new(0.7, 2.0).reduction(Reduction::None);
    let total = |weight: &Tensor| {
        let student = x.matmul(&weight.t().unwrap()).unwrap();
        let rows = loss.forward(&student, &teacher, &labels).unwrap();
        ((rows * &factors).unwrap().sum_all().unwrap() * 0.25).unwrap()
    };
    let grads = total(&weight).backward().unwrap();
    let grad = values(grads.get(&weight).unwrap());
    for (index, grad) in grad.iter().enumerate() {
        let moved = |by: f32| {
            let mut values = values(&weight);
            values[index] += by;
            let weight = Tensor::from_vec(values, (5, 3), &Device::Cpu).unwrap();
            f64::from(total(&weight).to_scalar::<f32>().unwrap())
        };
        let difference = (moved(1.0 / 64.0) - moved(-1.0 / 64.0)) * 32.0;
        assert!((difference - f64::from(*grad)).abs() < 2e-3, "{index}: {difference} {grad}");
    }
}

#[test]
fn tensors_of_other_types_and_strides_give_the_same() {
    let (student, teacher) = (grid(&[4, 6], 5), grid(&[4, 6], 6));
    let loss = DivergenceLoss::new(Divergence::ForwardKl, 2.0);
    let expected = loss.forward(&student, &teacher, None).unwrap();
    let expected_grad = {
        let student = Var::from_tensor(&student).unwrap();
        let grads = loss.forward(&student, &teacher, None).unwrap().backward().unwrap();
        grads.get(&student).unwrap().clone()
    };
    // exact in bf16, too
    for dtype in [DType::BF16, DType::F16, DType::F64] {
        let other = Var::from_tensor(&student.to_dtype(dtype).unwrap()).unwrap();
        let value = loss.forward(&other, &teacher.to_dtype(dtype).unwrap(), None).unwrap();
        assert_eq!(value.to_scalar::<f32>().unwrap(), expected.to_scalar::<f32>().unwrap());
        let grad = value.backward().unwrap().get(&other).unwrap().clone();
        assert_eq!(grad.dtype(), dtype);
        let expected = expected_grad.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
        assert_eq!(values(&grad.to_dtype(DType::F32).unwrap()), values(&expected));
    }
    let lying = Var::from_tensor(&student.t().unwrap().contiguous().unwrap()).unwrap();
    let value = loss.forward(&lying.t().unwrap(), &teacher, None).unwrap();
    assert_eq!(value.to_scalar::<f32>().unwrap(), expected.to_scalar::<f32>().unwrap());
    let grads = value.backward().unwrap();
    assert_eq!(values(grads.get(&lying).unwrap()), values(&expected_grad.t().unwrap()));
}

#[test]
fn what_does_not_fit_is_named() {
    let student = grid(&[2, 3], 1);
    let refused = |result: candle_core::Result<Tensor>| one_line(&result.unwrap_err());
    let loss = DivergenceLoss::new(Divergence::ForwardKl, 1.0);
    let error = refused(loss.forward(&student, &grid(&[2, 4], 2), None));
    assert!(error.contains("[2, 3]") && error.contains("[2, 4]"), "{error}");
    let error = refused(loss.forward(&grid(&[2, 3, 4], 1), &grid(&[2, 3, 4], 2), None));
    assert!(error.contains("the student has shape [2, 3, 4]") && error.contains("flatten"), "{error}");
    let labels = Tensor::new(&[0u32, 3], &Device::Cpu).unwrap();
    let error = refused(CrossEntropy::new().forward(&student, &labels));
    assert!(error.contains("label 3 of row 1"), "{error}");
    let labels = Tensor::new(&[0.0f32, 1.0], &Device::Cpu).unwrap();
    let error = refused(CrossEntropy::new().forward(&student, &labels));
    assert!(error.contains("F32") && error.contains("u32 or i64"), "{error}");
}
