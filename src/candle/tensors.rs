//! Tensors of candle ↔ weights and checkpoints.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::PoisonError;

use candle_core::{Device, Result, Tensor, Var};
use candle_nn::VarMap;

use super::bridge::{constant, dtype_of, precision_of, read};
use super::error::{TrainingError, wrap};
use crate::checkpoint::{Checkpoint, Stored, save_weights};
use crate::dtype::FloatType;
use crate::layer::{Layer, Method};
use crate::weight::CompressedWeight;

/// A tensor as a dense weight of its own precision, value for value.
///
/// # Shapes
/// The weight has the tensor's shape.
///
/// # Errors
/// When the tensor is not of f32, f16 or bf16.
pub fn weight_of(tensor: &Tensor) -> Result<CompressedWeight> {
    let precision = precision_of("the tensor", tensor)?;
    read(&constant(tensor)?, |values| {
        CompressedWeight::from_f32(tensor.dims(), precision, values).map_err(wrap)
    })
}

/// A tensor as a method compresses it.
///
/// # Shapes
/// The first dimension counts as rows, the others together as columns.
///
/// # Errors
/// When the tensor is not of f32, f16 or bf16, or the method refuses it.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tersor::candle::{compress, tensor_of};
/// use tersor::{Bits, RoundToNearest};
///
/// let weight = Tensor::new(&[[0.5f32, 1.5, 0.0, -1.0], [-3.0, 2.0, 1.0, 0.5]], &Device::Cpu)?;
/// let int8 = compress(&weight, &RoundToNearest::int(Bits::new(8).unwrap()))?;
/// assert_eq!(int8.form().bytes().total(), 8 + 2 * 4); // eight codes, and a scale a row
/// assert_eq!(tensor_of(&int8, &Device::Cpu)?.dims(), [2, 4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn compress(tensor: &Tensor, method: &dyn Method) -> Result<CompressedWeight> {
    let precision = precision_of("the tensor", tensor)?;
    read(&constant(tensor)?, |values| {
        let layer = Layer::new(tensor.dims(), values, precision);
        method.compress(&layer).map(|compressed| compressed.weight).map_err(wrap)
    })
}

/// The dense values of a weight as a tensor, of its shape and precision.
///
/// # Errors
/// When the device refuses.
pub fn tensor_of(weight: &CompressedWeight, device: &Device) -> Result<Tensor> {
    let precision = crate::checkpoint::formats::precision_of(weight.form().coding());
    let values = weight.dequantize().into_raw_vec_and_offset().0;
    Tensor::from_vec(values, weight.shape(), &Device::Cpu)?.to_dtype(dtype_of(precision))?.to_device(device)
}

/// All tensors of floats of a checkpoint, by name: compressed weights dequantized, f16 and bf16 as they are, f64 and f8 as f32.
///
/// Tensors of integers are left out.
///
/// # Errors
/// When a tensor cannot be read.
///
/// ```
/// use candle_core::Device;
/// use tersor::Checkpoint;
/// use tersor::candle::tensors_of;
///
/// let tensors = tensors_of(&Checkpoint::open("fixtures/fashion-mlp")?, &Device::Cpu)?;
/// assert_eq!(tensors["fc1.weight"].dims(), [300, 784]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn tensors_of(checkpoint: &Checkpoint, device: &Device) -> Result<BTreeMap<String, Tensor>> {
    let floats = checkpoint.entries().iter().filter(|entry| match &entry.stored {
        Stored::Plain(dtype) => FloatType::of(*dtype).is_some(),
        Stored::Compressed(_) => true,
    });
    floats
        .map(|entry| {
            let weight = checkpoint.weight(&entry.name).map_err(wrap)?;
            Ok((entry.name.clone(), tensor_of(&weight, device)?))
        })
        .collect()
}

/// A map of variables with the tensors of a checkpoint, as [`tensors_of`] reads them.
///
/// # Errors
/// When a tensor cannot be read.
pub fn variables_of(checkpoint: &Checkpoint, device: &Device) -> Result<VarMap> {
    let variables: HashMap<String, Var> = tensors_of(checkpoint, device)?
        .into_iter()
        .map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor)?)))
        .collect::<Result<_>>()?;
    let map = VarMap::new();
    *map.data().lock().unwrap_or_else(PoisonError::into_inner) = variables;
    Ok(map)
}

/// Sets every variable of a map to the tensor of its name in a checkpoint, compressed or not, converted to the variable's element
/// type. Tensors of which there is no variable are left out.
///
/// # Errors
/// When the checkpoint lacks a variable's tensor, or has it in another shape; then no variable is changed.
pub fn set_variables(variables: &VarMap, checkpoint: &Checkpoint) -> Result<()> {
    let variables = variables.data().lock().unwrap_or_else(PoisonError::into_inner);
    let variables: BTreeMap<&String, &Var> = variables.iter().collect();
    let missing: Vec<_> = variables.keys().filter(|name| checkpoint.entry(name).is_err()).collect();
    if let Some(name) = missing.first() {
        let (path, count) = (checkpoint.path().display().to_string(), missing.len());
        return Err(wrap(TrainingError::Missing { path, count, name: (**name).clone() }));
    }
    let mut read = Vec::with_capacity(variables.len());
    for (name, var) in variables {
        let tensor = tensor_of(&checkpoint.weight(name).map_err(wrap)?, var.device())?;
        if tensor.dims() != var.dims() {
            return Err(wrap(TrainingError::Shape {
                what: format!("{}: tensor `{name}`", checkpoint.path().display()),
                actual: tensor.dims().to_vec(),
                expected: var.dims().to_vec(),
                rule: "that is the shape of the variable",
            }));
        }
        read.push((var, tensor.to_dtype(var.dtype())?));
    }
    read.into_iter().try_for_each(|(var, tensor)| var.set(&tensor))
}

/// The variables of a map as weights of their own precision, by name: for [`save_weights`], after some of them have been
/// replaced by what a method made of them.
///
/// # Errors
/// When a variable is not of f32, f16 or bf16.
pub fn weights_of(variables: &VarMap) -> Result<BTreeMap<String, CompressedWeight>> {
    let variables = variables.data().lock().unwrap_or_else(PoisonError::into_inner);
    variables.iter().map(|(name, var)| Ok((name.clone(), weight_of(var)?))).collect()
}

/// Saves the variables of a map to a new safetensors file, sorted by name.
///
/// # Errors
/// When a variable is not of f32, f16 or bf16, or the file exists or cannot be written; then nothing is left behind.
pub fn save_variables(path: impl AsRef<Path>, variables: &VarMap) -> Result<()> {
    save_weights(path, &weights_of(variables)?).map_err(wrap)
}
