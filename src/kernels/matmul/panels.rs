//! Weights, rearranged once for products.
//!
//! Outputs come in panels of [`PANEL`]; within a panel, columns come in blocks of [`BLOCK`], so that every product reads
//! its weights once, front to back. Groups of columns that share a scale begin on a block; what a group lacks of a whole
//! block is filled with zero bits, against which the activations hold zero.

use rayon::prelude::*;

use crate::kernels::memory::room;
use crate::kernels::slab::{LARGE_PIECE, Piece};

/// Outputs in a panel: two AVX-512 registers of 32-bit lanes.
pub(crate) const PANEL: usize = 32;

/// Columns in a block.
pub(crate) const BLOCK: usize = 8;

/// Most columns under one scale whose products cannot overflow an `i32`: `(255 + 255) · 128 · 32,768 < 2^31` and
/// `255 · 255 · 32,768 < 2^31`.
const MAX_GROUP: usize = 1 << 15;

/// Columns whose products are summed as integers: `group`, or if that is too many, a part of it. A part of a group that ends
/// before the last column divides it, and is a multiple of `unit` if the group is.
pub(super) fn exact_group(group: usize, cols: usize, unit: usize) -> usize {
    let group = group.clamp(1, cols.max(1));
    if group <= MAX_GROUP {
        return group;
    }
    if group >= cols {
        return MAX_GROUP;
    }
    let unit = if group.is_multiple_of(unit) { unit } else { 1 };
    let units = group / unit;
    let parts = (group.div_ceil(MAX_GROUP)..=units).find(|parts| units.is_multiple_of(*parts));
    unit * (units / parts.unwrap_or(units))
}

/// How a code lies in a panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// `[8 columns][32 outputs]` f32.
    F32,
    /// `[8 columns][32 outputs]` f16.
    F16,
    /// `[8 columns][32 outputs]` bf16.
    Bf16,
    /// `[8 columns][32 outputs]` e4m3.
    F8,
    /// `[2][32 outputs][4 columns]` unsigned codes.
    Byte,
    /// `[32 outputs][4 bytes]`: byte `j` of an output holds columns `j` (low half) and `4 + j` (high half).
    Nibble,
}

impl Storage {
    /// Bytes of one block of a panel.
    pub(crate) const fn block_bytes(self) -> usize {
        PANEL
            * BLOCK
            * match self {
                Self::F32 => 4,
                Self::F16 | Self::Bf16 => 2,
                Self::F8 | Self::Byte => 1,
                Self::Nibble => return PANEL * BLOCK / 2,
            }
    }
}

/// Storages by number, for functions that are compiled for each.
#[cfg(target_arch = "x86_64")]
pub(super) mod kind {
    use super::Storage;

    pub(crate) const F32: u8 = Storage::F32 as u8;
    pub(crate) const F16: u8 = Storage::F16 as u8;
    pub(crate) const BF16: u8 = Storage::Bf16 as u8;
    pub(crate) const F8: u8 = Storage::F8 as u8;
    pub(crate) const BYTE: u8 = Storage::Byte as u8;
    pub(crate) const NIBBLE: u8 = Storage::Nibble as u8;
}

/// What is subtracted from unsigned codes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ZeroPoints {
    /// The same for all.
    All(u8),
    /// `[panel][group][32 outputs]`.
    Each(Vec<i32>),
}

/// A run of columns under one scale per output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    /// First column.
    pub(crate) column: usize,
    /// Number of columns.
    pub(crate) len: usize,
    /// First block.
    pub(crate) block: usize,
    /// Number of blocks.
    pub(crate) blocks: usize,
}

/// The columns of a weight in groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Columns {
    cols: usize,
    group: usize,
}

impl Columns {
    /// Groups of `group` columns, the last one perhaps shorter. Groups too long for exact sums are cut.
    pub(crate) fn new(cols: usize, group: usize) -> Self {
        Self { cols, group: exact_group(group, cols, BLOCK) }
    }

    pub(crate) fn cols(self) -> usize {
        self.cols
    }

    /// Number of groups.
    pub(crate) fn groups(self) -> usize {
        self.cols.div_ceil(self.group)
    }

    /// Blocks of all groups.
    pub(crate) fn blocks(self) -> usize {
        self.groups().checked_sub(1).map_or(0, |last| self.get(last).block + self.get(last).blocks)
    }

    /// Whether some group does not fill its last block.
    pub(crate) fn has_padding(self) -> bool {
        self.iter().any(|group| !group.len.is_multiple_of(BLOCK))
    }

    pub(crate) fn get(self, index: usize) -> Group {
        let column = index * self.group;
        let len = self.group.min(self.cols - column);
        Group { column, len, block: index * self.group.div_ceil(BLOCK), blocks: len.div_ceil(BLOCK) }
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Group> {
        (0..self.groups()).map(move |i| self.get(i))
    }
}

/// A weight in panels.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Panels {
    pub(crate) rows: usize,
    pub(crate) columns: Columns,
    pub(crate) storage: Storage,
    /// `[panel][block]`, see [`Storage`].
    pub(crate) data: Aligned,
    /// `[panel][group][32 outputs]`, in `f32`; empty for plain floats.
    pub(crate) scales: Aligned,
    pub(crate) zero_points: ZeroPoints,
    /// Sum of the unsigned codes, `[panel][group][32 outputs]`; empty unless activations have zero points.
    pub(crate) code_sums: Vec<i32>,
}

impl Panels {
    /// Bytes of one panel's codes.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.columns.blocks() * self.storage.block_bytes()
    }

    /// Codes of a panel.
    pub(crate) fn panel(&self, panel: usize) -> &[u8] {
        let bytes = self.panel_bytes();
        &self.data.bytes()[panel * bytes..(panel + 1) * bytes]
    }

    /// A panel's part of an array `[panel][group][32]`; empty if the array is.
    pub(crate) fn of_panel<'a, T>(&self, panel: usize, all: &'a [T]) -> &'a [T] {
        let len = if all.is_empty() { 0 } else { self.columns.groups() * PANEL };
        &all[panel * len..(panel + 1) * len]
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let zero_points = match &self.zero_points {
            ZeroPoints::All(_) => 0,
            ZeroPoints::Each(each) => each.len(),
        };
        self.data.bytes().len() + self.scales.bytes().len() + 4 * (zero_points + self.code_sums.len())
    }
}

/// Lays out rows of elements of `size` bytes (1, 2, 4) as `[panel][block][8][32]`; `row(r, out)` fills one row's bytes.
pub(crate) fn pack_floats(
    rows: usize,
    columns: Columns,
    storage: Storage,
    row: impl Fn(usize, &mut [u8]) + Sync,
) -> Aligned {
    let size = storage.block_bytes() / (PANEL * BLOCK);
    pack(rows, columns, storage, columns.cols() * size, row, |group, output, source, panel| {
        for c in 0..group.len {
            let from = &source[(group.column + c) * size..][..size];
            let to = ((group.block * BLOCK + c) * PANEL + output) * size;
            panel[to..to + size].copy_from_slice(from);
        }
    })
}

/// Lays out rows of unsigned codes, one byte each, as [`Storage::Byte`] or [`Storage::Nibble`].
pub(crate) fn pack_codes(
    rows: usize,
    columns: Columns,
    storage: Storage,
    row: impl Fn(usize, &mut [u8]) + Sync,
) -> Aligned {
    pack(rows, columns, storage, columns.cols(), row, |group, output, source, panel| {
        let source = &source[group.column..group.column + group.len];
        let blocks = &mut panel[group.block * storage.block_bytes()..];
        for (codes, block) in source.chunks(BLOCK).zip(blocks.chunks_mut(storage.block_bytes())) {
            let mut eight = [0u8; BLOCK];
            eight[..codes.len()].copy_from_slice(codes);
            let low = u32::from_le_bytes([eight[0], eight[1], eight[2], eight[3]]);
            let high = u32::from_le_bytes([eight[4], eight[5], eight[6], eight[7]]);
            if storage == Storage::Nibble {
                block[output * 4..][..4].copy_from_slice(&(low | high << 4).to_le_bytes());
            } else {
                block[output * 4..][..4].copy_from_slice(&low.to_le_bytes());
                block[PANEL * 4 + output * 4..][..4].copy_from_slice(&high.to_le_bytes());
            }
        }
    })
}

/// Sum of each row's unsigned codes, `[panel][group][32 outputs]`.
pub(crate) fn code_sums(rows: usize, columns: Columns, row: impl Fn(usize, &mut [u8])) -> Vec<i32> {
    let groups = columns.groups();
    let mut sums = vec![0; rows.div_ceil(PANEL) * groups * PANEL];
    // for no rows, the number of columns is anyone's claim
    let mut codes = vec![0u8; if rows == 0 { 0 } else { columns.cols() }];
    for r in 0..rows {
        row(r, &mut codes);
        for (index, group) in columns.iter().enumerate() {
            let sum = codes[group.column..group.column + group.len].iter().map(|c| i32::from(*c)).sum();
            sums[(r / PANEL * groups + index) * PANEL + r % PANEL] = sum;
        }
    }
    sums
}

fn pack(
    rows: usize,
    columns: Columns,
    storage: Storage,
    row_bytes: usize,
    row: impl Fn(usize, &mut [u8]) + Sync,
    place: impl Fn(Group, usize, &[u8], &mut [u8]) + Sync,
) -> Aligned {
    let panel_bytes = columns.blocks() * storage.block_bytes();
    let mut data = Aligned::kept(rows.div_ceil(PANEL) * panel_bytes);
    if panel_bytes > 0 {
        data.bytes_mut().par_chunks_mut(panel_bytes).enumerate().for_each_init(
            || vec![0u8; row_bytes],
            |source, (panel, bytes)| {
                for output in 0..PANEL.min(rows - panel * PANEL) {
                    row(panel * PANEL + output, source);
                    for group in columns.iter() {
                        place(group, output, source, bytes);
                    }
                }
            },
        );
    }
    data
}

/// One cache line.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(align(64))]
struct Line([u8; 64]);

/// Bytes that begin on a cache line.
#[derive(Debug)]
pub(crate) struct Aligned(Memory);

#[derive(Debug)]
enum Memory {
    Own { lines: Vec<Line>, len: usize },
    Shared(Piece),
}

impl Aligned {
    pub(crate) fn zeroed(len: usize) -> Self {
        // with small pages, finding their places would cost a product that streams a large weight a third of its speed
        let mut lines = room(len.div_ceil(64));
        lines.resize(len.div_ceil(64), Line([0; 64]));
        Self(Memory::Own { lines, len })
    }

    /// For what is kept and read often, such as a weight: small ones share large pages.
    pub(crate) fn kept(len: usize) -> Self {
        if len <= LARGE_PIECE { Self(Memory::Shared(Piece::zeroed(len))) } else { Self::zeroed(len) }
    }

    /// Numbers that are kept and read often.
    pub(crate) fn kept_words<T: Word>(words: &[T]) -> Self {
        let mut kept = Self::kept(size_of_val(words));
        kept.words_mut().copy_from_slice(words);
        kept
    }

    /// Another length; bytes that are new are zero, the others are as they were.
    pub(crate) fn resize(&mut self, new: usize) {
        match &mut self.0 {
            Memory::Own { lines, len } => {
                lines.resize(new.div_ceil(64), Line([0; 64]));
                *len = new;
            }
            Memory::Shared(piece) => {
                let mut own = Self::zeroed(new);
                let both = new.min(piece.bytes().len());
                own.bytes_mut()[..both].copy_from_slice(&piece.bytes()[..both]);
                *self = own;
            }
        }
    }

    /// Bytes up to which it can grow where it is.
    pub(crate) fn capacity(&self) -> usize {
        match &self.0 {
            Memory::Own { lines, .. } => lines.capacity() * 64,
            Memory::Shared(piece) => piece.bytes().len(),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: a `Line` is 64 bytes without padding, and `len` bytes of them exist.
            Memory::Own { lines, len } => unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), *len) },
            Memory::Shared(piece) => piece.bytes(),
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            // SAFETY: as above, and the borrow is exclusive.
            Memory::Own { lines, len } => unsafe {
                std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), *len)
            },
            Memory::Shared(piece) => piece.bytes_mut(),
        }
    }

    /// The bytes as numbers.
    pub(crate) fn words<T: Word>(&self) -> &[T] {
        let bytes = self.bytes();
        // SAFETY: the bytes begin on a cache line, and every bit pattern is a `T`.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) }
    }

    /// The bytes as numbers.
    pub(crate) fn words_mut<T: Word>(&mut self) -> &mut [T] {
        let bytes = self.bytes_mut();
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<T>()) }
    }
}

impl Clone for Aligned {
    fn clone(&self) -> Self {
        Self::kept_words(self.bytes())
    }
}

impl PartialEq for Aligned {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

/// Numbers for which every bit pattern is valid, of at most 64 bytes.
///
/// # Safety
/// That must be so.
pub(crate) unsafe trait Word: Copy {}
// SAFETY: a number for every bit pattern.
unsafe impl Word for f32 {}
// SAFETY: as above.
unsafe impl Word for i8 {}
// SAFETY: as above.
unsafe impl Word for u8 {}
// SAFETY: as above.
unsafe impl Word for i32 {}
// SAFETY: as above.
unsafe impl Word for i64 {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_groups_are_cut_where_scales_do_not_change() {
        assert_eq!(exact_group(128, 4096, 8), 128);
        assert_eq!(exact_group(0, 0, 8), 1);
        assert_eq!(exact_group(usize::MAX, 100_000, 8), MAX_GROUP);
        assert_eq!(exact_group(50_000, 200_000, 8), 25_000);
        assert_eq!(exact_group(64 * 1024, 1 << 20, 64), MAX_GROUP);
        // a prime
        assert_eq!(exact_group(32_771, 1 << 20, 64), 1);
        for (group, cols) in [(50_000, 200_000), (40_960, 90_000), (98_304, 98_305)] {
            let part = exact_group(group, cols, 64);
            assert!(part <= MAX_GROUP && group.is_multiple_of(part), "{group}");
        }
    }
}
