use rayon::prelude::*;

use super::WeightError;
use super::form::matrix_shape;
use crate::kernels::mask;

/// Which weights of a `[rows, cols]` matrix are kept: one bit each, rows starting on a byte, lowest bit first.
///
/// A mask is a value of its own: it can be made by a pruning method or by the caller, applied to weights,
/// inverted, combined with others, and saved beside a checkpoint.
///
/// ```
/// use tersor::Mask;
///
/// let large = Mask::from_fn(2, 3, |row, col| row == 0 || col == 2);
/// assert_eq!((large.kept(), large.sparsity()), (4, 2.0 / 6.0));
/// let mut weights = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
/// large.apply(&mut weights)?;
/// assert_eq!(weights, [1.0, 2.0, 3.0, 0.0, 0.0, 6.0]);
/// assert_eq!(large.and(&large.invert())?.kept(), 0);
/// # Ok::<(), tersor::WeightError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
}

impl Mask {
    /// A mask that keeps everything.
    ///
    /// # Panics
    /// When the matrix has more elements than this machine can address, as for [`Mask::from_fn`].
    pub fn keep_all(rows: usize, cols: usize) -> Self {
        check_size(rows, cols);
        Self { rows, cols, bytes: vec![0xff; rows * cols.div_ceil(8)] }.without_excess()
    }

    /// A mask that keeps the positions for which `keep(row, col)` holds. For numbers from outside, check first that there is
    /// room for `rows · ⌈cols / 8⌉` bytes.
    ///
    /// # Panics
    /// When the matrix has more elements than this machine can address: more than 2^58, a dimension of 0 counting as 1.
    pub fn from_fn(rows: usize, cols: usize, keep: impl Fn(usize, usize) -> bool + Sync) -> Self {
        check_size(rows, cols);
        let stride = cols.div_ceil(8);
        let mut bytes = vec![0u8; rows * stride];
        if stride > 0 {
            bytes.par_chunks_mut(stride).enumerate().for_each(|(row, bytes)| {
                for col in 0..cols {
                    bytes[col / 8] |= u8::from(keep(row, col)) << (col % 8);
                }
            });
        }
        Self { rows, cols, bytes }
    }

    /// A mask whose bytes `fill` writes: `rows · ⌈cols / 8⌉` of them, zero before.
    pub(crate) fn fill(rows: usize, cols: usize, fill: impl FnOnce(&mut [u8])) -> Self {
        let mut bytes = vec![0; rows * cols.div_ceil(8)];
        fill(&mut bytes);
        Self { rows, cols, bytes }
    }

    /// A mask that keeps the rows for which `kept` is true.
    pub(crate) fn keep_rows(cols: usize, kept: &[bool]) -> Self {
        let stride = cols.div_ceil(8);
        let bytes =
            kept.iter().flat_map(|k| std::iter::repeat_n(if *k { 0xff } else { 0 }, stride)).collect();
        Self { rows: kept.len(), cols, bytes }.without_excess()
    }

    /// A mask that keeps the columns for which `kept` is true.
    pub(crate) fn keep_columns(rows: usize, kept: &[bool]) -> Self {
        let row = Self::from_fn(1, kept.len(), |_, col| kept[col]).bytes;
        Self { rows, cols: kept.len(), bytes: row.repeat(rows) }
    }

    /// Clears the bits beyond the last column.
    fn without_excess(mut self) -> Self {
        if !self.cols.is_multiple_of(8) {
            let used = !(0xffu8 << (self.cols % 8));
            self.bytes.chunks_mut(self.cols.div_ceil(8)).for_each(|row| row[row.len() - 1] &= used);
        }
        self
    }

    /// A mask from its bytes, as [`Mask::as_bytes`] gives them.
    ///
    /// # Shapes
    /// `bytes` holds `rows · ⌈cols / 8⌉` bytes.
    ///
    /// # Errors
    /// When the length differs, or a bit beyond the last column is set.
    pub fn from_bytes(rows: usize, cols: usize, bytes: Vec<u8>) -> Result<Self, WeightError> {
        let stride = cols.div_ceil(8);
        WeightError::check_len("bitmask bytes", rows.saturating_mul(stride), bytes.len())?;
        if !cols.is_multiple_of(8) {
            let unused = 0xffu8 << (cols % 8);
            if let Some(row) = bytes.chunks(stride).position(|b| b[stride - 1] & unused != 0) {
                return Err(WeightError::Positions {
                    row,
                    reason: format!("the bitmask has a bit set beyond the last of {cols} columns"),
                });
            }
        }
        Ok(Self { rows, cols, bytes })
    }

    /// The bits, lowest first, every row starting on a byte.
    ///
    /// # Shapes
    /// `rows · ⌈cols / 8⌉` bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether the weight at `(row, col)` is kept; `false` outside the matrix.
    pub fn keeps(&self, row: usize, col: usize) -> bool {
        row < self.rows && col < self.cols && self.row_bytes(row)[col / 8] >> (col % 8) & 1 == 1
    }

    /// Number of kept weights.
    pub fn kept(&self) -> usize {
        mask::count(&self.bytes)
    }

    /// Fraction of weights that are not kept, in `[0, 1]`; 0 for an empty matrix.
    pub fn sparsity(&self) -> f64 {
        let all = self.rows * self.cols;
        if all == 0 { 0.0 } else { (all - self.kept()) as f64 / all as f64 }
    }

    /// Sets the weights that are not kept to zero.
    ///
    /// # Shapes
    /// `weights` is `[rows, cols]`, row-major.
    ///
    /// # Errors
    /// When the length differs.
    pub fn apply(&self, weights: &mut [f32]) -> Result<(), WeightError> {
        WeightError::check_len("weights under the mask", self.rows * self.cols, weights.len())?;
        mask::apply(weights, self.cols, &self.bytes);
        Ok(())
    }

    /// Keeps exactly what this mask does not.
    #[must_use]
    pub fn invert(&self) -> Self {
        let bytes = self.bytes.iter().map(|b| !b).collect();
        Self { rows: self.rows, cols: self.cols, bytes }.without_excess()
    }

    /// Keeps what both masks keep.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn and(&self, other: &Self) -> Result<Self, WeightError> {
        self.combine(other, |a, b| a & b)
    }

    /// Keeps what either mask keeps.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn or(&self, other: &Self) -> Result<Self, WeightError> {
        self.combine(other, |a, b| a | b)
    }

    fn combine(&self, other: &Self, f: impl Fn(u8, u8) -> u8) -> Result<Self, WeightError> {
        other.check(self.rows, self.cols)?;
        let bytes = self.bytes.iter().zip(&other.bytes).map(|(a, b)| f(*a, *b)).collect();
        Ok(Self { rows: self.rows, cols: self.cols, bytes })
    }

    /// Checks that the mask is one of a `[rows, cols]` matrix.
    pub(crate) fn check(&self, rows: usize, cols: usize) -> Result<(), WeightError> {
        if (self.rows, self.cols) == (rows, cols) {
            return Ok(());
        }
        Err(WeightError::MaskShape { mask: [self.rows, self.cols], weight: [rows, cols] })
    }

    /// The kept columns of a row, ascending.
    pub(crate) fn kept_in_row(&self, row: usize) -> impl Iterator<Item = usize> + '_ {
        self.row_bytes(row).iter().enumerate().flat_map(|(i, byte)| {
            let mut left = *byte;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                (bit < 8).then(|| {
                    left &= left - 1;
                    i * 8 + bit as usize
                })
            })
        })
    }

    pub(crate) fn kept_count_in_row(&self, row: usize) -> usize {
        self.row_bytes(row).iter().map(|b| b.count_ones() as usize).sum()
    }

    /// The bits of columns `first..first + len` of a row, for `len` ≤ 16; zero beyond the last column.
    #[inline]
    pub(crate) fn group(&self, row: usize, first: usize, len: usize) -> u16 {
        let bytes = &self.row_bytes(row)[first / 8..];
        let mut three = [0u8; 4];
        let count = bytes.len().min(3);
        three[..count].copy_from_slice(&bytes[..count]);
        (u32::from_le_bytes(three) >> (first % 8) & ((1 << len) - 1)) as u16
    }

    /// The bytes of a row.
    pub(crate) fn row_bytes(&self, row: usize) -> &[u8] {
        let stride = self.cols.div_ceil(8);
        &self.bytes[row * stride..(row + 1) * stride]
    }
}

fn check_size(rows: usize, cols: usize) {
    assert!(matrix_shape(&[rows, cols]).is_ok(), "a mask of {rows} × {cols} is more than can be addressed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_stand_lowest_first_and_rows_start_on_a_byte() {
        let mask = Mask::from_fn(2, 9, |row, col| (row == 0 && col == 0) || (row == 1 && col >= 7));
        assert_eq!(mask.as_bytes(), [0b1, 0, 0b1000_0000, 0b1]);
        assert_eq!(mask.kept_in_row(1).collect::<Vec<_>>(), [7, 8]);
        assert_eq!(Mask::from_bytes(2, 9, mask.as_bytes().to_vec()).unwrap(), mask);
    }

    #[test]
    fn bytes_from_outside_are_checked() {
        let text = |r: Result<Mask, WeightError>| r.unwrap_err().to_string();
        assert!(text(Mask::from_bytes(2, 9, vec![0; 3])).contains("bitmask bytes: expected 4, got 3"));
        assert!(text(Mask::from_bytes(2, 9, vec![0, 0, 0, 2])).contains("row 1"));
        assert!(Mask::from_bytes(0, 9, vec![]).is_ok());
        assert!(Mask::from_bytes(3, 0, vec![]).is_ok());
    }

    #[test]
    #[should_panic(expected = "a mask of 8 × 2305843009213693953 is more than can be addressed")]
    fn a_mask_whose_size_overflows_is_refused() {
        // 8 rows of 2^58 + 1 bytes: the product wraps around to 8
        Mask::from_fn(8, (1 << 61) + 1, |_, _| true);
    }

    #[test]
    fn masks_of_other_shapes_do_not_combine() {
        let error = Mask::keep_all(2, 3).and(&Mask::keep_all(3, 2)).unwrap_err();
        assert_eq!(error.to_string(), "a mask of shape [3, 2] does not fit a weight of shape [2, 3]");
        assert!(Mask::keep_all(2, 3).apply(&mut [0.0; 5]).is_err());
    }
}
