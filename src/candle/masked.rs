//! Variables of which some elements are pruned, and stay so.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};
use candle_nn::{Optimizer, VarMap};

use super::error::{TrainingError, wrap};
use crate::weight::{Mask, WeightError, matrix_shape};

/// A variable with a mask: what the mask drops is zero, and stays zero whatever an optimizer does.
///
/// [`weight`](Self::weight) is what the network is to compute with: it gives pruned elements no gradient. Optimizers move elements
/// without a gradient, too (by momentum from before they were pruned, say), so that [`project`](Self::project) has to follow every
/// step; [`Masked`] sees to that.
#[derive(Debug, Clone)]
pub struct MaskedVar {
    var: Var,
    mask: Mask,
    /// 1 where an element is kept, 0 elsewhere, of the variable's shape.
    kept: Tensor,
}

impl MaskedVar {
    /// Puts a variable under a mask, and sets what it drops to zero.
    ///
    /// # Shapes
    /// The mask is `[rows, cols]`, where the variable's first dimension counts as rows and the others together as columns.
    ///
    /// # Errors
    /// When the mask has another shape.
    pub fn new(var: &Var, mask: &Mask) -> Result<Self> {
        let [rows, cols] = matrix_shape(var.dims()).map_err(wrap)?;
        if (mask.rows(), mask.cols()) != (rows, cols) {
            let (mask, weight) = ([mask.rows(), mask.cols()], [rows, cols]);
            return Err(wrap(WeightError::MaskShape { mask, weight }));
        }
        let mut kept = Vec::with_capacity(rows * cols);
        kept.extend((0..rows * cols).map(|index| u8::from(mask.keeps(index / cols, index % cols))));
        let kept = Tensor::from_vec(kept, var.shape(), &Device::Cpu)?.to_device(var.device())?;
        let masked = Self { var: var.clone(), mask: mask.clone(), kept };
        masked.project()?;
        Ok(masked)
    }

    /// Puts those variables of a map under a mask that have one.
    ///
    /// # Errors
    /// When a mask has another shape than its variable, or a name that no variable has.
    pub fn of_map(variables: &VarMap, masks: &BTreeMap<String, Mask>) -> Result<Vec<Self>> {
        let variables = variables.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let masked = masks.iter().map(|(name, mask)| match variables.get(name) {
            Some(var) => Self::new(var, mask),
            None => {
                Err(wrap(TrainingError::Missing { path: "the map".into(), count: 1, name: name.clone() }))
            }
        });
        masked.collect()
    }

    /// The variable.
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// Which elements are kept.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// The variable times its mask, for the forward pass: its gradient is 0 at pruned elements.
    ///
    /// # Errors
    /// When candle cannot multiply.
    pub fn weight(&self) -> Result<Tensor> {
        self.var.as_tensor() * self.kept.to_dtype(self.var.dtype())?
    }

    /// Sets pruned elements to zero, whatever they have become, NaN too.
    ///
    /// # Errors
    /// When candle cannot set the variable.
    pub fn project(&self) -> Result<()> {
        let value = self.var.as_detached_tensor();
        self.var.set(&self.kept.where_cond(&value, &value.zeros_like()?)?)
    }
}

/// An optimizer under which pruned weights stay zero: after each of its steps, every masked variable is projected.
///
/// Wrapped around an optimizer, it makes any training loop keep its masks, even one that computes with the variables themselves (as
/// the layers of `candle_nn` do):
///
/// ```
/// use candle_core::{Device, Var};
/// use candle_nn::{AdamW, Optimizer};
/// use tersor::Mask;
/// use tersor::candle::{Masked, MaskedVar};
///
/// let weight = Var::new(&[[3.0f32, 1.0], [2.0, 4.0]], &Device::Cpu)?;
/// let mask = Mask::from_fn(2, 2, |row, col| row == col);
/// let optimizer = AdamW::new_lr(vec![weight.clone()], 0.1)?;
/// let mut optimizer = Masked::new(optimizer, vec![MaskedVar::new(&weight, &mask)?]);
///
/// optimizer.backward_step(&weight.sqr()?.sum_all()?)?;
/// let values = weight.to_vec2::<f32>()?;
/// assert_eq!([values[0][1], values[1][0]], [0.0, 0.0]);
/// assert!(values[0][0] < 3.0);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Masked<O> {
    optimizer: O,
    variables: Vec<MaskedVar>,
}

impl<O: Optimizer> Masked<O> {
    /// Wraps an optimizer.
    pub fn new(optimizer: O, variables: Vec<MaskedVar>) -> Self {
        Self { optimizer, variables }
    }

    /// The variables under their masks.
    pub fn variables(&self) -> &[MaskedVar] {
        &self.variables
    }

    /// Takes other masks from now on, as gradual pruning does. What the optimizer remembers stays.
    pub fn set_variables(&mut self, variables: Vec<MaskedVar>) {
        self.variables = variables;
    }

    /// The optimizer.
    pub fn optimizer(&self) -> &O {
        &self.optimizer
    }

    /// The optimizer, to change its settings.
    pub fn optimizer_mut(&mut self) -> &mut O {
        &mut self.optimizer
    }
}

impl<O: Optimizer> Optimizer for Masked<O> {
    /// The optimizer's, and the variables with their masks.
    type Config = (O::Config, Vec<MaskedVar>);

    fn new(vars: Vec<Var>, (config, variables): Self::Config) -> Result<Self> {
        Ok(Self { optimizer: O::new(vars, config)?, variables })
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        self.optimizer.step(grads)?;
        self.variables.iter().try_for_each(MaskedVar::project)
    }

    fn learning_rate(&self) -> f64 {
        self.optimizer.learning_rate()
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        self.optimizer.set_learning_rate(learning_rate);
    }
}
