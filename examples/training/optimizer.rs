//! Optimizers that work in place and can be saved: candle's have no momentum, or keep their state to themselves.

use std::sync::Mutex;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, Var, bail};
use candle_nn::Optimizer;
use tersor::candle::Masked;

/// An optimizer whose state can be saved.
pub(crate) trait Resumable: Optimizer {
    /// What it remembers: some numbers for every variable, in order, and its steps.
    fn state(&self) -> (Vec<Vec<f32>>, u64);

    /// Remembers what `state` gave.
    fn resume(&mut self, state: Vec<Vec<f32>>, steps: u64);
}

/// Gradient descent with Nesterov's momentum.
pub(crate) struct Sgd {
    variables: Vec<(Var, Vec<f32>)>,
    config: SgdConfig,
}

#[derive(Clone, Copy)]
pub(crate) struct SgdConfig {
    pub(crate) learning_rate: f64,
    pub(crate) momentum: f64,
    /// The loss of a weight `w` is `l2 / 2 · w² + l1 · |w|`; biases, which have one dimension, have none.
    pub(crate) l2: f64,
    pub(crate) l1: f64,
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self { learning_rate: 0.05, momentum: 0.9, l2: 0.0, l1: 0.0 }
    }
}

impl Optimizer for Sgd {
    type Config = SgdConfig;

    fn new(vars: Vec<Var>, config: SgdConfig) -> Result<Self> {
        let variables = vars.into_iter().map(|var| (var.clone(), vec![0.0; var.elem_count()])).collect();
        Ok(Self { variables, config })
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        let config = self.config;
        for (var, velocity) in &mut self.variables {
            let Some(grad) = grads.get(var) else { continue };
            let decayed = f32::from(u8::from(var.rank() > 1));
            let (l2, l1) = (config.l2 as f32 * decayed, config.l1 as f32 * decayed);
            let (rate, momentum) = (config.learning_rate as f32, config.momentum as f32);
            in_place(var, grad, |weights, grads| {
                for ((weight, velocity), grad) in weights.iter_mut().zip(&mut *velocity).zip(grads) {
                    let sign = f32::from(i8::from(*weight > 0.0) - i8::from(*weight < 0.0));
                    let grad = grad + *weight * l2 + sign * l1;
                    *velocity = *velocity * momentum + grad;
                    *weight -= (grad + *velocity * momentum) * rate;
                }
            })?;
        }
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.config.learning_rate
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        self.config.learning_rate = learning_rate;
    }
}

impl Resumable for Sgd {
    fn state(&self) -> (Vec<Vec<f32>>, u64) {
        (self.variables.iter().map(|(_, velocity)| velocity.clone()).collect(), 0)
    }

    fn resume(&mut self, state: Vec<Vec<f32>>, _: u64) {
        self.variables.iter_mut().zip(state).for_each(|((_, velocity), saved)| *velocity = saved);
    }
}

/// Adam without weight decay (Kingma & Ba 2015, Algorithm 1).
pub(crate) struct Adam {
    /// Variables, each with its first and second moments, one after the other.
    variables: Vec<(Var, Vec<f32>)>,
    learning_rate: f64,
    steps: u64,
}

impl Optimizer for Adam {
    type Config = f64;

    fn new(vars: Vec<Var>, learning_rate: f64) -> Result<Self> {
        let variables = vars.into_iter().map(|var| (var.clone(), vec![0.0; 2 * var.elem_count()])).collect();
        Ok(Self { variables, learning_rate, steps: 0 })
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        const BETA: [f32; 2] = [0.9, 0.999];
        self.steps += 1;
        let [first, second] = BETA.map(|beta| 1.0 - f64::from(beta).powf(self.steps as f64));
        let (rate, second) = ((self.learning_rate / first) as f32, (1.0 / second) as f32);
        for (var, moments) in &mut self.variables {
            let Some(grad) = grads.get(var) else { continue };
            in_place(var, grad, |weights, grads| {
                let (means, squares) = moments.split_at_mut(weights.len());
                for (((weight, mean), square), grad) in weights.iter_mut().zip(means).zip(squares).zip(grads)
                {
                    *mean = *mean * BETA[0] + grad * (1.0 - BETA[0]);
                    *square = *square * BETA[1] + grad * grad * (1.0 - BETA[1]);
                    *weight -= rate * *mean / ((*square * second).sqrt() + 1e-8);
                }
            })?;
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

impl Resumable for Adam {
    fn state(&self) -> (Vec<Vec<f32>>, u64) {
        (self.variables.iter().map(|(_, moments)| moments.clone()).collect(), self.steps)
    }

    fn resume(&mut self, state: Vec<Vec<f32>>, steps: u64) {
        self.variables.iter_mut().zip(state).for_each(|((_, moments), saved)| *moments = saved);
        self.steps = steps;
    }
}

impl<O: Resumable> Resumable for Masked<O> {
    fn state(&self) -> (Vec<Vec<f32>>, u64) {
        self.optimizer().state()
    }

    fn resume(&mut self, state: Vec<Vec<f32>>, steps: u64) {
        self.optimizer_mut().resume(state, steps);
    }
}

/// Changes the values of a variable, given its gradient, where they lie.
fn in_place(var: &Var, grad: &Tensor, change: impl FnMut(&mut [f32], &[f32])) -> Result<()> {
    var.inplace_op2(&grad.contiguous()?, &Change(Mutex::new(change)))
}

struct Change<F>(Mutex<F>);

impl<F: FnMut(&mut [f32], &[f32])> InplaceOp2 for Change<F> {
    fn name(&self) -> &'static str {
        "optimizer step"
    }

    fn cpu_fwd(&self, var: &mut CpuStorage, _: &Layout, grad: &CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(weights), Some((start, end))) = (var, layout.contiguous_offsets()) else {
            bail!("these optimizers train contiguous variables of f32")
        };
        let mut change = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(weights, &grad.as_slice::<f32>()?[start..end]);
        Ok(())
    }
}
