//! How a weight is arranged: whether zeros are left out, and what panels, rows and slices hold.

use super::{Activations, Later};
use crate::dtype::Precision;
use crate::kernels::matmul::codes::Tiles;
use crate::kernels::matmul::panels::{self, Aligned, Columns, PANEL, Panels, Storage, ZeroPoints};
use crate::kernels::matmul::sparse as sparse_kernels;
use crate::kernels::matmul::sparse::rows::{SparseRows, SparseValues};
use crate::kernels::matmul::sparse::slices::Slices;
use crate::kernels::{convert, get_or_make};
use crate::weight::form::{Bits, LayoutKind, NofM};
use crate::weight::granularity::ScaleGrid;
use crate::weight::layout::Layout;
use crate::weight::packed::PackedCodes;
use crate::weight::values::{Scales, Values};
use crate::weight::{CompressedWeight, WeightError};

const TWO_OF_FOUR: NofM = NofM::new(2, 4).expect("2 ≤ 4");

/// Whether there are products with this weight that leave zeros out.
pub(super) fn can_run_sparsely(weight: &CompressedWeight, activations: Activations) -> bool {
    if matches!(weight.layout(), Layout::Dense | Layout::Empty) {
        return false;
    }
    match (activations, weight.values()) {
        (Activations::Int8(_), Values::Int { scales, .. }) => {
            let grid = weight.form().grid();
            scales.zero_points().is_none()
                && grid.is_none_or(|grid| whole_groups(grid, weight.cols(), Slices::GROUP))
        }
        _ => true,
    }
}

/// Most rows of activations for which leaving zeros out is faster; 0 if it never is. This goes by the numbers alone, so that it,
/// and with it the order of sums, is the same on every machine.
pub(super) fn sparse_batch(weight: &CompressedWeight, activations: Activations) -> usize {
    if !can_run_sparsely(weight, activations) {
        return 0;
    }
    let form = weight.form();
    let (kept, all) = (form.kept() as f64, (form.rows() * form.cols()) as f64);
    match activations {
        Activations::Float => {
            // of a value in rows and in panels
            let (sparse, dense) = match weight.values() {
                Values::F32(_) => (4.0, 4.0),
                Values::F16(_) | Values::Bf16(_) => (2.0, 2.0),
                Values::Codebook { books, .. } => (4.0, books.precision().size() as f64),
                Values::F8 { .. } | Values::Int { .. } => return 0,
            };
            // and a bit for every weight
            let pays = kept * sparse + all / 8.0 <= sparse_kernels::rows::MOST_BYTES * all * dense;
            usize::from(pays)
        }
        Activations::Int8(_) => {
            let two_of_four = form.layout() == LayoutKind::NofM(TWO_OF_FOUR);
            sparse_kernels::slices::sparse_batch(two_of_four, kept / all, form.cols())
        }
    }
}

/// Sparse floats in dense panels; `None` of codes under scales.
pub(super) fn float_panels<'a>(sparse: &SparseRows, dense: &'a Later) -> Option<&'a Panels> {
    let storage = match sparse.values() {
        SparseValues::F32(_) => Storage::F32,
        SparseValues::F16(_) => Storage::F16,
        SparseValues::Bf16(_) => Storage::Bf16,
        SparseValues::Int { .. } => return None,
    };
    let make = || {
        let [rows, cols] = sparse.shape();
        let columns = Columns::new(cols, cols);
        let row = |row: usize, out: &mut [u8]| {
            out.fill(0);
            match sparse.values() {
                SparseValues::F32(v) => {
                    sparse.each(row, |col, i| out[col * 4..][..4].copy_from_slice(&v[i].to_le_bytes()));
                }
                SparseValues::F16(v) | SparseValues::Bf16(v) => {
                    sparse.each(row, |col, i| out[col * 2..][..2].copy_from_slice(&v[i].to_le_bytes()));
                }
                SparseValues::Int { .. } => {}
            }
        };
        Panels {
            rows,
            columns,
            storage,
            data: panels::pack_floats(rows, columns, storage, row),
            scales: Aligned::kept_words::<f32>(&[]),
            zero_points: ZeroPoints::All(0),
            code_sums: Vec::new(),
        }
    };
    Some(get_or_make(&dense.0, make))
}

/// Sparse codes in dense panels.
pub(super) fn densely(slices: &Slices, with_code_sums: bool) -> Panels {
    let [rows, cols] = slices.shape();
    let columns = Columns::new(cols, slices.group());
    let row = |row, out: &mut [u8]| {
        out.fill(0x80);
        slices.each(row, |column, code| out[column] = code as u8 ^ 0x80);
    };
    let mut scales = vec![0.0; rows.div_ceil(PANEL) * columns.groups() * PANEL];
    for row in 0..rows {
        for group in 0..columns.groups() {
            let at = (row / PANEL * columns.groups() + group) * PANEL + row % PANEL;
            scales[at] = slices.scale(row, group);
        }
    }
    Panels {
        rows,
        columns,
        storage: Storage::Byte,
        data: panels::pack_codes(rows, columns, Storage::Byte, row),
        scales: Aligned::kept_words(&scales),
        zero_points: ZeroPoints::All(0x80),
        code_sums: if with_code_sums { panels::code_sums(rows, columns, row) } else { Vec::new() },
    }
}

/// `with_code_sums` says whether activations will have zero points.
pub(super) fn dense(weight: &CompressedWeight, with_code_sums: bool) -> Panels {
    let (rows, cols) = (weight.rows(), weight.cols());
    // values of larger codebooks are arranged as the floats that they are
    let is_scaled = weight.scales().is_some();
    let grid = weight.form().grid().filter(|_| is_scaled);
    let columns = Columns::new(cols, grid.map_or(cols, |grid| grid.block_cols));
    let floats =
        |storage, row: &(dyn Fn(usize, &mut [u8]) + Sync)| panels::pack_floats(rows, columns, storage, row);
    let spread = Spread { weight, cols };
    let mut zero_points = ZeroPoints::All(0);
    let mut code_sums = Vec::new();
    let (storage, data): (Storage, Aligned) = match weight.values() {
        Values::F32(v) => {
            let row = |row, out: &mut [u8]| spread.fill(row, out, v, f32::to_le_bytes);
            (Storage::F32, floats(Storage::F32, &row))
        }
        Values::F16(v) => {
            let row = |row, out: &mut [u8]| spread.fill(row, out, v, half::f16::to_le_bytes);
            (Storage::F16, floats(Storage::F16, &row))
        }
        Values::Bf16(v) => {
            let row = |row, out: &mut [u8]| spread.fill(row, out, v, half::bf16::to_le_bytes);
            (Storage::Bf16, floats(Storage::Bf16, &row))
        }
        Values::F8 { codes, .. } => {
            let row = |row, out: &mut [u8]| spread.fill(row, out, codes, |code| [code]);
            (Storage::F8, floats(Storage::F8, &row))
        }
        Values::Codebook { books, .. } => {
            let (precision, storage) = match books.precision() {
                Precision::F32 => (Precision::F32, Storage::F32),
                Precision::F16 => (Precision::F16, Storage::F16),
                Precision::Bf16 => (Precision::Bf16, Storage::Bf16),
            };
            let row = |row: usize, out: &mut [u8]| {
                let mut values = vec![0.0; cols];
                weight.decode_kept(row..row + 1, &mut values);
                let mut bytes = Vec::with_capacity(out.len());
                convert::narrow(precision, &values, &mut bytes);
                out.copy_from_slice(&bytes);
            };
            (storage, floats(storage, &row))
        }
        Values::Int { bits, codes, scales } => {
            let offset = 1u8 << (bits.get() - 1);
            zero_points = match scales.zero_points() {
                None => ZeroPoints::All(offset),
                Some(zeros) => ZeroPoints::Each(per_output(weight, columns, |tile| {
                    i32::from(zeros[tile]) + i32::from(offset)
                })),
            };
            let storage = if bits.get() <= 4 { Storage::Nibble } else { Storage::Byte };
            let row = |row, out: &mut [u8]| {
                if spread.is_dense() {
                    return codes.unpack(row, 0, out);
                }
                // what is not kept is the code of zero
                for (column, code) in out.iter_mut().enumerate() {
                    let zero = grid
                        .zip(scales.zero_points())
                        .map_or(0, |(grid, zeros)| zeros[grid.index(row, column)]);
                    *code = (i32::from(zero) + i32::from(offset)) as u8;
                }
                let (columns, start) = spread.columns(row);
                let mut kept = vec![0; columns.len()];
                codes.unpack(0, start, &mut kept);
                columns.iter().zip(kept).for_each(|(column, code)| out[*column as usize] = code);
            };
            if with_code_sums {
                code_sums = panels::code_sums(rows, columns, row);
            }
            (storage, panels::pack_codes(rows, columns, storage, row))
        }
    };
    let scales = weight
        .scales()
        .map_or_else(Vec::new, |scales| per_output(weight, columns, |tile| scales.scales()[tile]));
    let scales = Aligned::kept_words(&scales);
    Panels { rows, columns, storage, data, scales, zero_points, code_sums }
}

/// Which codebook belongs to which weight.
pub(super) fn tiles_of(weight: &CompressedWeight) -> Option<Tiles> {
    let grid = weight.form().grid()?;
    Some(Tiles { rows: grid.block_rows, cols: grid.block_cols, across: grid.cols })
}

/// What each output has for each group, `[panel][group][32 outputs]`.
fn per_output<T: Copy + Default>(
    weight: &CompressedWeight,
    columns: Columns,
    of: impl Fn(usize) -> T,
) -> Vec<T> {
    let rows = weight.rows();
    let Some(grid) = weight.form().grid() else { return Vec::new() };
    let groups = columns.groups();
    let mut all = vec![T::default(); rows.div_ceil(PANEL) * groups * PANEL];
    for row in 0..rows {
        for (index, group) in columns.iter().enumerate() {
            all[(row / PANEL * groups + index) * PANEL + row % PANEL] = of(grid.index(row, group.column));
        }
    }
    all
}

/// A weight row by row, with zeros where nothing is kept.
struct Spread<'a> {
    weight: &'a CompressedWeight,
    cols: usize,
}

impl Spread<'_> {
    fn is_dense(&self) -> bool {
        matches!(self.weight.layout(), Layout::Dense)
    }

    /// The columns of a row's kept values, and the index of the first among all values.
    fn columns(&self, row: usize) -> (Vec<u32>, usize) {
        let mut columns = Vec::new();
        // rows without columns are anyone's claim
        let start =
            if self.cols > 0 { self.weight.layout().columns_of(row, self.cols, &mut columns) } else { 0 };
        (columns, start)
    }

    /// Writes the values of a row.
    fn fill<T: Copy, const N: usize>(
        &self,
        row: usize,
        out: &mut [u8],
        values: &[T],
        bytes: impl Fn(T) -> [u8; N],
    ) {
        let out = out.as_chunks_mut::<N>().0;
        if self.is_dense() {
            let of_row = &values[row * self.cols..(row + 1) * self.cols];
            out.iter_mut().zip(of_row).for_each(|(out, x)| *out = bytes(*x));
        } else {
            out.fill([0; N]);
            let (columns, start) = self.columns(row);
            columns.iter().zip(&values[start..]).for_each(|(column, x)| out[*column as usize] = bytes(*x));
        }
    }
}

pub(super) fn sparse(weight: &CompressedWeight) -> SparseRows {
    let [rows, cols] = [weight.rows(), weight.cols()];
    let grid = weight.form().grid();
    let integers = match weight.values() {
        Values::Int { scales, .. } => {
            let whole = |grid: &ScaleGrid| whole_groups(*grid, cols, sparse_kernels::rows::BLOCK);
            grid.filter(|grid| scales.zero_points().is_none() && whole(grid))
        }
        _ => None,
    };
    let columns_of = |row: usize, columns: &mut Vec<u32>| weight.layout().columns_of(row, cols, columns);
    let values = match (weight.values(), integers) {
        (Values::Int { bits, codes, scales }, Some(grid)) => {
            let codes = signed_codes(*bits, codes, weight.form().kept());
            let group = grid.block_cols.min(cols.max(1));
            let groups = cols.div_ceil(group);
            let scale = |i: usize| scales.scales()[grid.index(i / groups, i % groups * group)];
            let scales = (0..rows * groups).map(scale).collect();
            SparseValues::Int { codes, scales, group }
        }
        (Values::F16(v), _) => SparseValues::F16(v.iter().map(|x| x.to_bits()).collect()),
        (Values::Bf16(v), _) => SparseValues::Bf16(v.iter().map(|x| x.to_bits()).collect()),
        _ => {
            let mut kept = Vec::with_capacity(weight.form().kept());
            let (mut row_values, mut columns) = (vec![0.0; cols], Vec::new());
            for row in 0..if cols == 0 { 0 } else { rows } {
                weight.decode_kept(row..row + 1, &mut row_values);
                columns_of(row, &mut columns);
                kept.extend(columns.iter().map(|col| row_values[*col as usize]));
            }
            SparseValues::F32(kept)
        }
    };
    SparseRows::new(rows, cols, columns_of, values)
}

pub(super) fn slices(
    weight: &CompressedWeight,
    bits: Bits,
    codes: &PackedCodes,
    scales: &Scales,
) -> Result<Slices, WeightError> {
    let [rows, cols] = [weight.rows(), weight.cols()];
    let grid = scales.check(rows, cols)?;
    let codes = signed_codes(bits, codes, weight.form().kept());
    let row = |row: usize, kept: &mut Vec<(u32, i8)>| {
        let mut columns = Vec::new();
        let start = weight.layout().columns_of(row, cols, &mut columns);
        kept.extend(columns.into_iter().zip(codes[start..].iter().copied()));
    };
    let two_of_four = weight.form().layout() == LayoutKind::NofM(TWO_OF_FOUR);
    let scale = |row: usize, column: usize| scales.scales()[grid.index(row, column)];
    Ok(Slices::new(rows, cols, grid.block_cols, two_of_four, &row, scale))
}

fn signed_codes(bits: Bits, codes: &PackedCodes, kept: usize) -> Vec<i8> {
    let mut stored = vec![0u8; kept];
    codes.unpack(0, 0, &mut stored);
    let offset = 1u8 << (bits.get() - 1);
    stored.into_iter().map(|code| code.wrapping_sub(offset) as i8).collect()
}

/// Whether groups are a multiple of so many columns, or there is one.
fn whole_groups(grid: ScaleGrid, cols: usize, multiple: usize) -> bool {
    grid.block_cols >= cols || grid.block_cols.is_multiple_of(multiple)
}
