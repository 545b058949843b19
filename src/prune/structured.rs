use super::magnitude::{Sparsity, keep};
use crate::kernels::norm;
use crate::layer::{Compressed, Layer, Method, MethodError};
use crate::weight::{Coding, Mask};

/// Direction of structured pruning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Whole rows: output features.
    Rows,
    /// Whole columns: input features.
    Cols,
}

/// Drops the whole rows or columns with the smallest Euclidean norm (Li et al., "Pruning Filters for Efficient
/// `ConvNets`", 2017, with the L2 norm); among equals the one with the higher index.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Structured {
    axis: Axis,
    sparsity: Sparsity,
}

impl Structured {
    /// Drops this fraction of the rows or columns, rounded to a whole number.
    pub fn new(axis: Axis, sparsity: Sparsity) -> Self {
        Self { axis, sparsity }
    }

    /// What the method keeps of a layer.
    ///
    /// # Errors
    /// When a value is NaN or infinite.
    pub fn mask(&self, layer: &Layer<'_>) -> Result<Mask, MethodError> {
        layer.check()?;
        let (rows, cols) = (layer.rows(), layer.cols());
        let mut norms = vec![0f64; if self.axis == Axis::Rows { rows } else { cols }];
        match self.axis {
            Axis::Rows => norm::rows_squared(layer.values, cols, &mut norms),
            Axis::Cols => norm::columns_squared(layer.values, &mut norms),
        }
        let mut order: Vec<usize> = (0..norms.len()).collect();
        order.sort_by(|a, b| norms[*a].total_cmp(&norms[*b]).then(b.cmp(a)));
        let mut kept = vec![true; norms.len()];
        for unit in &order[..self.sparsity.of(norms.len() as u64) as usize] {
            kept[*unit] = false;
        }
        Ok(match self.axis {
            Axis::Rows => Mask::keep_rows(cols, &kept),
            Axis::Cols => Mask::keep_columns(rows, &kept),
        })
    }

    /// How many weights of a `[rows, cols]` matrix are kept.
    pub fn kept(&self, rows: usize, cols: usize) -> usize {
        match self.axis {
            Axis::Rows => (rows - self.sparsity.of(rows as u64) as usize) * cols,
            Axis::Cols => (cols - self.sparsity.of(cols as u64) as usize) * rows,
        }
    }
}

impl Method for Structured {
    fn name(&self) -> String {
        let axis = if self.axis == Axis::Rows { "rows" } else { "columns" };
        format!("drop {}% of {axis}", self.sparsity.get() * 100.0)
    }

    fn coding(&self, before: Coding) -> Coding {
        before
    }

    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError> {
        keep(layer, &self.mask(layer)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Precision;
    use crate::weight::LayoutKind;

    #[test]
    fn the_smallest_norms_go() {
        // row norms² 2, 25, 2; column norms² 11, 18
        let values = [1.0, 1.0, 3.0, 4.0, -1.0, 1.0];
        let layer =
            Layer { layout: LayoutKind::CompressedRows, ..Layer::new(&[3, 2], &values, Precision::F32) };
        let third = Sparsity::new(1.0 / 3.0).unwrap();
        let rows = Structured::new(Axis::Rows, third);
        // rows 0 and 2 are equal: the later one goes
        assert_eq!(rows.mask(&layer).unwrap(), Mask::from_fn(3, 2, |row, _| row < 2));
        assert_eq!(rows.kept(3, 2), 4);
        let cols = Structured::new(Axis::Cols, Sparsity::new(0.5).unwrap());
        assert_eq!(cols.mask(&layer).unwrap(), Mask::from_fn(3, 2, |_, col| col == 1));
        let weight = cols.compress(&layer).unwrap().weight;
        assert_eq!(weight.dequantize().as_slice().unwrap(), [0.0, 1.0, 0.0, 4.0, 0.0, 1.0]);
    }
}
