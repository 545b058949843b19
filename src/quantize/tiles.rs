//! Integer codes under parameters that a method chose itself.

use rayon::prelude::*;

use super::affine::Affine;
use super::round::{CodeType, RoundToNearest};
use crate::kernels::quantize;
use crate::layer::{Layer, Method, MethodError};
use crate::weight::{Bits, Coding, CompressedWeight, DenseValues, Granularity, ScaleGrid, Scales};

/// The integer codes that a calibrated method aims at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct IntTarget {
    pub(super) bits: Bits,
    pub(super) symmetric: bool,
    pub(super) granularity: Granularity,
}

impl IntTarget {
    /// Symmetric codes, one scale per channel.
    pub(super) fn new(bits: Bits) -> Self {
        Self { bits, symmetric: true, granularity: Granularity::Channel }
    }

    pub(super) fn codes(self) -> CodeType {
        CodeType::Int { bits: self.bits, symmetric: self.symmetric }
    }

    pub(super) fn rounding(self) -> RoundToNearest {
        RoundToNearest::codes(self.codes()).granularity(self.granularity)
    }

    pub(super) fn coding(self, before: Coding) -> Coding {
        self.rounding().coding(before)
    }

    pub(super) fn grid(self, layer: &Layer<'_>) -> ScaleGrid {
        self.granularity.grid(layer.rows(), layer.cols())
    }

    /// The weight whose values are the nearest codes under these parameters, one per tile.
    pub(super) fn encode(self, layer: &Layer<'_>, tiles: &[Affine]) -> Result<CompressedWeight, MethodError> {
        let (grid, cols) = (self.grid(layer), layer.cols());
        let mut codes = vec![0i8; layer.values.len()];
        if cols > 0 {
            let rows = codes.par_chunks_mut(cols).zip(layer.values.par_chunks(cols)).enumerate();
            rows.for_each(|(row, (codes, values))| {
                let runs = codes.chunks_mut(grid.block_cols).zip(values.chunks(grid.block_cols));
                for (run, (codes, values)) in runs.enumerate() {
                    let tile = tiles[grid.index(row, run * grid.block_cols)];
                    quantize::quantize_int(values, tile, self.bits.get(), layer.precision, codes);
                }
            });
        }
        self.with_codes(layer, tiles, &codes)
    }

    /// The weight of these codes.
    pub(super) fn with_codes(
        self,
        layer: &Layer<'_>,
        tiles: &[Affine],
        codes: &[i8],
    ) -> Result<CompressedWeight, MethodError> {
        let zero_points = (!self.symmetric).then(|| tiles.iter().map(|tile| tile.zero_point).collect());
        let scales = tiles.iter().map(|tile| tile.scale).collect();
        let scales = Scales::new(self.granularity, layer.precision, scales, zero_points)?;
        let values = DenseValues::Int(self.bits, codes, &scales);
        Ok(CompressedWeight::encode(layer.shape, layer.layout, layer.mask, values)?)
    }
}

/// Scale and zero point of every tile of a weight.
pub(super) fn affines(weight: &CompressedWeight) -> Vec<Affine> {
    let Some(scales) = weight.scales() else { return Vec::new() };
    let zero_points = scales.zero_points();
    let of_tile = |(tile, scale): (usize, &f32)| Affine {
        scale: *scale,
        zero_point: zero_points.map_or(0, |zero_points| zero_points[tile]),
    };
    scales.scales().iter().enumerate().map(of_tile).collect()
}

/// Whether the value at `(row, col)` was pruned.
pub(super) fn is_pruned(layer: &Layer<'_>, row: usize, col: usize) -> bool {
    [layer.mask, layer.frozen].into_iter().flatten().any(|mask| !mask.keeps(row, col))
}
