use std::ops::ControlFlow;

use ndarray::ArrayView2;

use super::{ModelError, Tap};
use crate::checkpoint::MappedTensor;
use crate::kernels::level::Isa;
use crate::kernels::matmul::Epilogue;
use crate::kernels::matmul::rows::{RowMatrix, rows_product};
use crate::weight::{PackedWeight, Together, matmul_together};

/// A matrix of plain floats, used where its file is mapped.
#[derive(Debug, Clone)]
pub(super) struct MappedMatrix {
    pub(super) tensor: MappedTensor,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl MappedMatrix {
    fn view(&self) -> RowMatrix<'_> {
        RowMatrix::new(self.tensor.float(), self.tensor.bytes(), self.rows, self.cols)
    }

    /// A row, in `f32`.
    pub(super) fn read(&self, row: usize, values: &mut [f32]) {
        self.view().read(row, 0, values);
    }
}

/// A matrix in the form in which its checkpoint stores it.
#[derive(Debug, Clone)]
pub(super) enum Matrix {
    Mapped(MappedMatrix),
    /// Arranged for products.
    Packed(Box<PackedWeight>),
}

impl Matrix {
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Mapped(matrix) => matrix.rows,
            Self::Packed(weight) => weight.rows(),
        }
    }

    pub(super) fn cols(&self) -> usize {
        match self {
            Self::Mapped(matrix) => matrix.cols,
            Self::Packed(weight) => weight.cols(),
        }
    }

    /// Writes `y = x · Wᵀ + bias` into `y`, which gets the length that it needs.
    pub(super) fn product(
        &self,
        x: &[f32],
        bias: Option<&[f32]>,
        y: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        let batch = x.len().checked_div(self.cols()).unwrap_or(0);
        y.resize(batch * self.rows(), 0.0);
        let epilogue = Epilogue { bias, relu: false };
        match self {
            Self::Mapped(matrix) => rows_product(Isa::current(), matrix.view(), x, batch, epilogue, y),
            Self::Packed(weight) => weight.matmul_into(x, epilogue, y)?,
        }
        Ok(())
    }
}

/// A linear layer: `y = x · Wᵀ + b`.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    /// As the checkpoint has it, without `.weight`.
    pub(super) name: String,
    pub(super) matrix: Matrix,
    pub(super) bias: Option<Vec<f32>>,
}

impl Linear {
    /// Writes the product into `y`, which gets the length that it needs.
    pub(super) fn forward(&self, x: &[f32], y: &mut Vec<f32>) -> Result<(), ModelError> {
        self.matrix.product(x, self.bias.as_deref(), y)
    }
}

impl Linear {
    /// Its name and its weight, if that is arranged for products.
    pub(super) fn packed(&self) -> Option<(&str, &PackedWeight)> {
        match &self.matrix {
            Matrix::Packed(weight) => Some((&self.name, weight)),
            Matrix::Mapped(_) => None,
        }
    }
}

/// Several layers with the same input, computed side by side.
pub(super) fn forward_all<const N: usize>(
    layers: [&Linear; N],
    x: &[f32],
    outputs: [&mut Vec<f32>; N],
) -> Result<(), ModelError> {
    let mut together = Vec::with_capacity(N);
    let mut batch = 0;
    for (layer, y) in layers.into_iter().zip(outputs) {
        let Matrix::Packed(weight) = &layer.matrix else {
            layer.forward(x, y)?;
            continue;
        };
        batch = x.len().checked_div(weight.cols()).unwrap_or(0);
        y.resize(batch * weight.rows(), 0.0);
        let epilogue = Epilogue { bias: layer.bias.as_deref(), relu: false };
        together.push(Together { weight, epilogue, y });
    }
    Ok(matmul_together(together, x, batch)?)
}

/// Names of layers, in their groups.
pub(super) fn names_of<const N: usize>(groups: [&[&Linear]; N]) -> Vec<Vec<String>> {
    groups.map(|group| group.iter().map(|layer| layer.name.clone()).collect()).into()
}

/// Shows the input of some layers to a tap, if there is one, and breaks if it wants no more.
pub(super) fn observe(tap: &mut Option<&mut dyn Tap>, layers: &[&Linear], x: &[f32]) -> ControlFlow<()> {
    let (Some(tap), Some(first)) = (tap, layers.first()) else { return ControlFlow::Continue(()) };
    let cols = first.matrix.cols();
    let names: Vec<&str> = layers.iter().map(|layer| layer.name.as_str()).collect();
    if let Ok(input) = ArrayView2::from_shape((x.len().checked_div(cols).unwrap_or(0), cols), x) {
        tap.observe(&names, input);
    }
    if tap.is_done() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
