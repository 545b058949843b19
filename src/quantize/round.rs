use std::num::NonZeroUsize;

use rayon::prelude::*;

use super::affine::{Affine, F8_E4M3_MAX};
use super::observer::{Observer, Range};
use crate::dtype::Precision;
use crate::kernels::quantize::{self, Codes, Scheme, Stored};
use crate::kernels::reduce;
use crate::layer::{Compressed, Layer, Method, MethodError};
use crate::weight::{
    Bits, Coding, CompressedWeight, DenseValues, Granularity, Layout, LayoutKind, PackedCodes, ScaleGrid,
    Scales, Values, WeightError,
};

/// The codes that values are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodeType {
    /// Integers of `bits` bits.
    Int {
        /// Bits of a code.
        bits: Bits,
        /// Whether the zero point is fixed at 0.
        symmetric: bool,
    },
    /// e4m3 floats.
    F8E4M3,
}

impl CodeType {
    /// What the kernels call it.
    pub(crate) fn kernel(self) -> Codes {
        match self {
            Self::Int { bits, symmetric } => Codes::Int { bits: bits.get(), symmetric },
            Self::F8E4M3 => Codes::F8E4M3,
        }
    }

    /// Distinct magnitudes that codes can express, about: what an entropy search merges its bins into.
    pub(crate) fn magnitude_levels(self) -> usize {
        match self {
            Self::Int { bits, .. } => 1 << (bits.get() - 1),
            Self::F8E4M3 => 128,
        }
    }
}

/// Round-to-nearest quantization: every value becomes the nearest code under the scale of its tile.
///
/// Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
/// (2018), equation 1, with round half to even.
///
/// ```
/// use tersor::{Bits, Granularity, Layer, Method, Observer, Precision, RoundToNearest};
///
/// let values = [0.1, -0.2, 0.3, 1.0, 2.0, -4.0];
/// let layer = Layer::new(&[2, 3], &values, Precision::F32);
/// let int8 = RoundToNearest::int(Bits::new(8).unwrap()).granularity(Granularity::Channel);
/// let weight = int8.compress(&layer)?.weight;
/// for (x, y) in values.iter().zip(weight.dequantize()) {
///     assert!((x - y).abs() <= 0.5 * 4.0 / 127.5);
/// }
/// # Ok::<(), tersor::MethodError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundToNearest {
    codes: CodeType,
    granularity: Granularity,
    observer: Observer,
}

impl RoundToNearest {
    /// Symmetric integers, one scale per channel, range from smallest to largest value.
    pub fn int(bits: Bits) -> Self {
        Self::codes(CodeType::Int { bits, symmetric: true })
    }

    /// e4m3 floats, one scale per channel.
    pub fn f8_e4m3() -> Self {
        Self::codes(CodeType::F8E4M3)
    }

    /// Codes of this type, one scale per channel, range from smallest to largest value.
    pub fn codes(codes: CodeType) -> Self {
        Self { codes, granularity: Granularity::Channel, observer: Observer::MinMax }
    }

    /// Chooses which weights share a scale.
    #[must_use]
    pub fn granularity(self, granularity: Granularity) -> Self {
        Self { granularity, ..self }
    }

    /// Chooses how the range of each tile is found.
    #[must_use]
    pub fn observer(self, observer: Observer) -> Self {
        Self { observer, ..self }
    }

    /// Codes, granularity and observer in words.
    pub(super) fn target(&self) -> String {
        let observer = match self.observer {
            Observer::MinMax => String::new(),
            Observer::AbsMax => ", absmax".into(),
            Observer::Percentile(p) => format!(", percentile {p}"),
            Observer::Mse => ", mse".into(),
            Observer::Entropy => ", entropy".into(),
        };
        format!("{}{observer}", self.coding(Coding::Float(Precision::F32)))
    }

    /// The parameters of a tile of these values.
    pub(super) fn affine_of(&self, values: &[f32], precision: Precision) -> Result<Affine, MethodError> {
        Affine::from_range(self.observer.range(values, self.codes, precision)?, self.codes, precision)
    }

    /// What values are rounded to.
    pub(crate) fn code_type(&self) -> CodeType {
        self.codes
    }

    /// Which weights share a scale.
    pub(super) fn scale_granularity(&self) -> Granularity {
        self.granularity
    }

    /// Scales and zero points of all tiles, row-major.
    pub(super) fn affine_of_tiles(
        &self,
        layer: &Layer<'_>,
        grid: ScaleGrid,
    ) -> Result<Vec<Affine>, MethodError> {
        let (rows, cols) = (layer.rows(), layer.cols());
        let affine_of = |values: &[f32]| self.affine_of(values, layer.precision);
        if grid.len() == 1 && layer.mask.is_none() {
            // the whole tensor is one tile, and already lies in one piece
            return Ok(vec![affine_of(layer.values)?]);
        }
        if layer.values.is_empty() {
            let zero = Affine::from_range(Range { min: 0.0, max: 0.0 }, self.codes, layer.precision)?;
            return Ok(vec![zero; grid.len()]);
        }
        (0..grid.len())
            .into_par_iter()
            .map_init(Vec::new, |gathered, tile| {
                let first_row = tile / grid.cols * grid.block_rows;
                let first_col = tile % grid.cols * grid.block_cols;
                let last_row = (first_row + grid.block_rows).min(rows);
                let last_col = (first_col + grid.block_cols).min(cols);
                if last_row - first_row == 1 && layer.mask.is_none() {
                    return affine_of(
                        &layer.values[first_row * cols + first_col..first_row * cols + last_col],
                    );
                }
                gathered.clear();
                for row in first_row..last_row {
                    let values = &layer.values[row * cols..(row + 1) * cols];
                    match layer.mask {
                        // what was pruned is not stored as a code and must not shape the range
                        Some(mask) => gathered
                            .extend((first_col..last_col).filter(|c| mask.keeps(row, *c)).map(|c| values[c])),
                        None => gathered.extend_from_slice(&values[first_col..last_col]),
                    }
                }
                affine_of(gathered)
            })
            .collect()
    }
}

impl Method for RoundToNearest {
    fn name(&self) -> String {
        format!("round to {}", self.target())
    }

    fn coding(&self, before: Coding) -> Coding {
        let scales = match before {
            Coding::Float(precision) => precision,
            Coding::F8E4M3 { scales, .. } | Coding::Int { scales, .. } => scales,
            Coding::Codebook { values, .. } => values,
        };
        let granularity = self.granularity;
        match self.codes {
            CodeType::Int { bits, symmetric } => Coding::Int { bits, symmetric, granularity, scales },
            CodeType::F8E4M3 => Coding::F8E4M3 { granularity, scales },
        }
    }

    fn scratch_bytes(&self, shape: &[usize]) -> u64 {
        let (rows, cols) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product());
        let grid = self.granularity.grid(rows, cols);
        let at_once = grid.len().min(rayon::current_num_threads());
        let tile = grid.block_rows.min(rows) * grid.block_cols.min(cols) * size_of::<f32>();
        // tiles of several rows are gathered first, and so are those of a pruned layer
        let copies = 1 + u64::from(self.observer.sorts());
        at_once as u64 * tile as u64 * copies
    }

    fn row_block(&self) -> Option<NonZeroUsize> {
        match self.granularity {
            Granularity::Tensor => None,
            Granularity::Channel | Granularity::Group(_) => Some(NonZeroUsize::MIN),
            Granularity::Block(rows, _) => Some(rows),
        }
    }

    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError> {
        layer.check_len()?;
        self.observer.check()?;
        if let Some(mask) = layer.mask
            && (mask.rows(), mask.cols()) != (layer.rows(), layer.cols())
        {
            let (mask, weight) = ([mask.rows(), mask.cols()], [layer.rows(), layer.cols()]);
            return Err(WeightError::MaskShape { mask, weight }.into());
        }
        let weight = if layer.layout == LayoutKind::Dense && !layer.values.is_empty() {
            self.compress_dense(layer)?
        } else {
            reduce::first_non_finite(layer.values).map_or(Ok(()), Err)?;
            self.compress_any(layer)?
        };
        check_range(layer, &weight)?;
        Ok(Compressed::plain(weight))
    }
}

impl RoundToNearest {
    /// Whether the range of a tile is what the one-pass kernels take.
    fn is_plain_range(&self) -> bool {
        match self.observer {
            Observer::MinMax => true,
            // symmetric codes span the largest magnitude anyway
            Observer::AbsMax => !matches!(self.codes, CodeType::Int { symmetric: false, .. }),
            _ => false,
        }
    }

    /// A dense weight: codes are packed as they are made.
    fn compress_dense(&self, layer: &Layer<'_>) -> Result<CompressedWeight, MethodError> {
        let (rows, cols, precision) = (layer.rows(), layer.cols(), layer.precision);
        let grid = self.granularity.grid(rows, cols);
        let group = grid.block_cols.min(cols);
        let scheme = Scheme { codes: self.codes.kernel(), precision, cols, group };
        let (stored, scales, zero_points) =
            if grid.block_rows == 1 && layer.mask.is_none() && self.is_plain_range() {
                quantize::quantize_to_vecs(scheme, layer.values)?
            } else {
                if grid.len() > 1 || layer.mask.is_some() {
                    // the range of a part would name an index within it
                    reduce::first_non_finite(layer.values).map_or(Ok(()), Err)?;
                }
                let tiles = self.affine_of_tiles(layer, grid)?;
                let stored = quantize::encode_to_vec(scheme, layer.values, grid.block_rows, &tiles);
                let (scales, zero_points) = self.scales_of(&tiles);
                (stored, scales, zero_points)
            };
        let scales = Scales::new(self.granularity, precision, scales, zero_points)?;
        let values = match (stored, self.codes) {
            (Stored::Words(words), CodeType::Int { bits, .. }) => {
                let codes = PackedCodes::from_words("words of codes", bits.get(), rows, cols, words)?;
                Values::Int { bits, codes, scales }
            }
            (Stored::Words(_), CodeType::F8E4M3) => unreachable!("e4m3 codes are bytes"),
            (Stored::Bytes(codes), _) => Values::F8 { codes, scales },
        };
        Ok(CompressedWeight::from_parts(layer.shape, Layout::Dense, values)?)
    }

    /// A weight in any layout, by way of codes for all positions.
    fn compress_any(&self, layer: &Layer<'_>) -> Result<CompressedWeight, MethodError> {
        let (rows, cols, precision) = (layer.rows(), layer.cols(), layer.precision);
        let grid = self.granularity.grid(rows, cols);
        let tiles = self.affine_of_tiles(layer, grid)?;
        let (scales, zero_points) = self.scales_of(&tiles);
        let scales = Scales::new(self.granularity, precision, scales, zero_points)?;
        let encode = |values| CompressedWeight::encode(layer.shape, layer.layout, layer.mask, values);
        Ok(match self.codes {
            CodeType::Int { bits, .. } => {
                let codes = per_run(layer, grid, |values, tile, codes: &mut [i8]| {
                    quantize::quantize_int(values, tiles[tile], bits.get(), precision, codes);
                });
                encode(DenseValues::Int(bits, &codes, &scales))?
            }
            CodeType::F8E4M3 => {
                let codes = per_run(layer, grid, |values, tile, codes: &mut [u8]| {
                    quantize::quantize_f8(values, tiles[tile].scale, precision, codes);
                });
                encode(DenseValues::F8E4M3(&codes, &scales))?
            }
        })
    }

    /// Scales, and zero points if the codes have them.
    pub(super) fn scales_of(&self, tiles: &[Affine]) -> (Vec<f32>, Option<Vec<i8>>) {
        let zero_points = match self.codes {
            CodeType::Int { symmetric: false, .. } => Some(tiles.iter().map(|a| a.zero_point).collect()),
            _ => None,
        };
        (tiles.iter().map(|a| a.scale).collect(), zero_points)
    }
}

/// Rounding up the scale, or the code, can push the largest value past the precision's.
pub(super) fn check_range(layer: &Layer<'_>, weight: &CompressedWeight) -> Result<(), MethodError> {
    // No code lies further from its zero point than 448 (integers: 255).
    let scales = weight.scales().map_or(&[][..], Scales::scales);
    if scales.iter().any(|scale| !layer.precision.round(scale * F8_E4M3_MAX).is_finite())
        && reduce::first_non_finite(weight.dequantize().as_slice().unwrap_or_default()).is_some()
    {
        let (min, max) = reduce::min_max(layer.values)?;
        return Err(MethodError::Range { min, max });
    }
    Ok(())
}

/// Codes of all values, made run by run: `f(values, tile, codes)` for each stretch of a row that lies in one tile.
fn per_run<T: Default + Copy + Send>(
    layer: &Layer<'_>,
    grid: ScaleGrid,
    f: impl Fn(&[f32], usize, &mut [T]) + Sync,
) -> Vec<T> {
    let cols = layer.cols();
    let mut codes = vec![T::default(); layer.values.len()];
    if cols > 0 {
        codes.par_chunks_mut(cols).zip(layer.values.par_chunks(cols)).enumerate().for_each(
            |(row, (codes, values))| {
                let runs = codes.chunks_mut(grid.block_cols).zip(values.chunks(grid.block_cols));
                for (run, (codes, values)) in runs.enumerate() {
                    f(values, grid.index(row, run * grid.block_cols), codes);
                }
            },
        );
    }
    codes
}
