//! Pruned weights stay zero.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, SGD, VarMap};
use tersor::candle::{Masked, MaskedVar};
use tersor::{Mask, one_line};

use crate::{grid, values};

/// Gradient descent with momentum, which moves weights after their gradient has become 0.
struct Momentum {
    vars: Vec<(Var, Tensor)>,
    learning_rate: f64,
}

impl Optimizer for Momentum {
    type Config = f64;

    fn new(vars: Vec<Var>, learning_rate: f64) -> Result<Self> {
        let vars = vars.into_iter().map(|var| Ok((var.clone(), var.zeros_like()?))).collect::<Result<_>>()?;
        Ok(Self { vars, learning_rate })
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        for (var, velocity) in &mut self.vars {
            if let Some(grad) = grads.get(var) {
                *velocity = ((&*velocity * 0.9)? + grad)?;
                var.set(&(var.as_detached_tensor() - (&*velocity * self.learning_rate)?)?)?;
            }
        }
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        self.learning_rate = learning_rate;
    }
}

/// Some steps without a mask, so that the optimizer remembers gradients of what is pruned then, and some with it.
fn train<O: Optimizer>(optimizer: impl Fn(Vec<Var>) -> O, through_weight: bool) {
    let var = Var::from_tensor(&grid(&[6, 10], 1)).unwrap();
    let target = grid(&[6, 10], 2);
    let mask = Mask::from_fn(6, 10, |row, col| (row * 10 + col) % 3 == 0);
    let mut optimizer = Masked::new(optimizer(vec![var.clone()]), Vec::new());
    let error = |weight: &Tensor| (weight - &target).unwrap().sqr().unwrap().sum_all().unwrap();
    for _ in 0..3 {
        optimizer.backward_step(&error(&var)).unwrap();
    }
    let masked = MaskedVar::new(&var, &mask).unwrap();
    optimizer.set_variables(vec![masked.clone()]);
    let before = error(&var).to_scalar::<f32>().unwrap();
    for _ in 0..5 {
        let weight = if through_weight { masked.weight().unwrap() } else { var.as_tensor().clone() };
        optimizer.backward_step(&error(&weight)).unwrap();
        for (index, value) in values(&var).into_iter().enumerate() {
            assert_eq!(value == 0.0, !mask.keeps(index / 10, index % 10), "{index}: {value}");
        }
    }
    assert!(error(&var).to_scalar::<f32>().unwrap() < before, "what is kept goes on learning");
}

#[test]
fn pruned_weights_stay_zero_under_any_optimizer() {
    for through_weight in [true, false] {
        train(|vars| SGD::new(vars, 0.05).unwrap(), through_weight);
        train(|vars| Momentum::new(vars, 0.02).unwrap(), through_weight);
        let params = ParamsAdamW { lr: 0.05, weight_decay: 0.1, ..ParamsAdamW::default() };
        train(|vars| AdamW::new(vars, params.clone()).unwrap(), through_weight);
    }
}

#[test]
fn the_weight_gives_pruned_elements_no_gradient() {
    let var = Var::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
    let masked = MaskedVar::new(&var, &Mask::from_fn(2, 2, |row, _| row == 0)).unwrap();
    assert_eq!(values(&var), [1.0, 2.0, 0.0, 0.0]);
    let loss = (masked.weight().unwrap() * 5.0).unwrap().sum_all().unwrap();
    assert_eq!(values(loss.backward().unwrap().get(&var).unwrap()), [5.0, 5.0, 0.0, 0.0]);
    // a step that diverged leaves the mask as it is
    var.set(&Tensor::full(f32::NAN, (2, 2), &Device::Cpu).unwrap()).unwrap();
    masked.project().unwrap();
    assert_eq!(values(&var)[2..], [0.0, 0.0]);
}

#[test]
fn a_convolution_is_masked_as_its_matrix() {
    let var = Var::from_tensor(&grid(&[2, 3, 2, 2], 4)).unwrap();
    let before = values(&var);
    let masked = MaskedVar::new(&var, &Mask::from_fn(2, 12, |row, col| row == 1 || col >= 8)).unwrap();
    let after = values(masked.var());
    assert_eq!(after[..8], [0.0; 8]);
    assert_eq!(after[8..], before[8..]);
}

#[test]
fn masks_that_do_not_fit_are_named() {
    let var = Var::from_tensor(&grid(&[2, 3], 1)).unwrap();
    let error = one_line(&MaskedVar::new(&var, &Mask::keep_all(3, 2)).unwrap_err());
    assert!(error.contains("[3, 2]") && error.contains("[2, 3]"), "{error}");
    let masks = BTreeMap::from([("fc.weight".to_owned(), Mask::keep_all(2, 3))]);
    let error = one_line(&MaskedVar::of_map(&VarMap::new(), &masks).unwrap_err());
    assert!(error.contains("`fc.weight`"), "{error}");
}
