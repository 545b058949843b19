use rayon::prelude::*;

use super::WeightError;
use super::granularity::{Granularity, ScaleGrid};
use crate::dtype::Precision;

/// Bits of a code that names a value of a codebook: 1 to 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CodebookBits(u8);

impl CodebookBits {
    /// Codes of `bits` bits; `None` outside 1 to 8.
    pub const fn new(bits: u8) -> Option<Self> {
        if matches!(bits, 1..=8) { Some(Self(bits)) } else { None }
    }

    /// The number of bits.
    pub fn get(self) -> u8 {
        self.0
    }

    /// Values of a codebook: `2^bits`.
    pub fn entries(self) -> usize {
        1 << self.0
    }

    /// Checks that every code names a value.
    pub(super) fn check(self, codes: &[u8]) -> Result<(), WeightError> {
        let entries = self.entries();
        match codes.par_iter().position_first(|code| usize::from(*code) >= entries) {
            Some(index) => Err(WeightError::CodebookIndex { index, value: codes[index], entries }),
            None => Ok(()),
        }
    }
}

/// The values that codes stand for: one table per tile of a granularity.
///
/// ```
/// use tersor::{CodebookBits, Codebooks, CompressedWeight, DenseValues, Granularity, LayoutKind, Precision};
///
/// // two rows share one codebook of four values
/// let bits = CodebookBits::new(2).unwrap();
/// let books = Codebooks::new(bits, Granularity::Tensor, Precision::F32, vec![-1.0, 0.0, 0.25, 2.0])?;
/// let values = DenseValues::Codebook(&[3, 0, 1, 2, 2, 1], &books);
/// let weight = CompressedWeight::encode(&[2, 3], LayoutKind::Dense, None, values)?;
/// assert_eq!(weight.dequantize(), ndarray::array![[2.0, -1.0, 0.0], [0.25, 0.25, 0.0]]);
///
/// // fine-tuned values under the same codes
/// let tuned = Codebooks::new(bits, Granularity::Tensor, Precision::F32, vec![-1.5, 0.0, 0.5, 2.0])?;
/// let weight = weight.with_codebooks(tuned)?;
/// assert_eq!(weight.codebook_codes().unwrap(), [3, 0, 1, 2, 2, 1]);
/// assert_eq!(weight.dequantize(), ndarray::array![[2.0, -1.5, 0.0], [0.5, 0.5, 0.0]]);
/// # Ok::<(), tersor::WeightError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Codebooks {
    pub(crate) bits: CodebookBits,
    pub(crate) granularity: Granularity,
    pub(crate) precision: Precision,
    pub(crate) values: Vec<f32>,
}

impl Codebooks {
    /// Codebooks of `2^bits` values each, one per tile of the granularity. Values are rounded to `precision`, in which they
    /// are stored; they need not be sorted, nor differ.
    ///
    /// # Shapes
    /// `values` is `[tiles, 2^bits]`, tiles row-major.
    ///
    /// # Errors
    /// When a value is NaN, or infinite in this precision, or the last codebook is not whole.
    pub fn new(
        bits: CodebookBits,
        granularity: Granularity,
        precision: Precision,
        mut values: Vec<f32>,
    ) -> Result<Self, WeightError> {
        for value in &mut values {
            *value = precision.round(*value);
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(WeightError::CodebookValue { index, value: values[index] });
        }
        let whole = values.len().next_multiple_of(bits.entries());
        WeightError::check_len("values of codebooks", whole, values.len())?;
        Ok(Self { bits, granularity, precision, values })
    }

    /// Bits of a code.
    pub fn bits(&self) -> CodebookBits {
        self.bits
    }

    /// Which weights share a codebook.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Precision of the values.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// All values.
    ///
    /// # Shapes
    /// `[tiles, 2^bits]`, tiles row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The codebook of a tile.
    ///
    /// # Panics
    /// When there are fewer tiles.
    #[inline]
    pub fn of_tile(&self, tile: usize) -> &[f32] {
        let entries = self.bits.entries();
        &self.values[tile * entries..(tile + 1) * entries]
    }

    pub(crate) fn check(&self, rows: usize, cols: usize) -> Result<ScaleGrid, WeightError> {
        let grid = self.granularity.grid(rows, cols);
        WeightError::check_len(
            "values of codebooks",
            grid.len().saturating_mul(self.bits.entries()),
            self.values.len(),
        )?;
        Ok(grid)
    }
}
