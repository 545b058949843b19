//! Tensors as slices, and slices as tensors.

use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor};

use super::error::{TrainingError, wrap};
use crate::dtype::Precision;

/// The tensor as f32, contiguous, on the CPU; gradients find their way back.
pub(super) fn on_cpu(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()
}

/// The same of a tensor that gets no gradient.
pub(super) fn constant(tensor: &Tensor) -> Result<Tensor> {
    on_cpu(&tensor.detach())
}

/// The values that an operation is given.
pub(super) fn slice<'s>(storage: &'s CpuStorage, layout: &Layout) -> Result<&'s [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => Err(candle_core::Error::RequiresContiguous { op: "a custom operation of tersor" }.bt()),
    }
}

/// The values of a tensor that [`on_cpu`] or [`constant`] made.
pub(super) fn read<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(slice(storage, layout)?),
        _ => read(&tensor.to_device(&Device::Cpu)?, f),
    }
}

/// The precision of a tensor's elements.
pub(super) fn precision_of(what: &str, tensor: &Tensor) -> Result<Precision> {
    match tensor.dtype() {
        DType::F32 => Ok(Precision::F32),
        DType::F16 => Ok(Precision::F16),
        DType::BF16 => Ok(Precision::Bf16),
        actual => {
            let expected = "f32, f16 or bf16";
            Err(wrap(TrainingError::ElementType { what: what.to_owned(), actual, expected }))
        }
    }
}

/// The element type of a precision.
pub(super) fn dtype_of(precision: Precision) -> DType {
    match precision {
        Precision::F32 => DType::F32,
        Precision::F16 => DType::F16,
        Precision::Bf16 => DType::BF16,
    }
}
