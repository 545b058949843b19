//! One tile of a product: up to twelve rows of activations times one panel of outputs, over a run of blocks.

use super::activations::TILE;
use super::output::Rows;
use super::panels::{BLOCK, PANEL, Storage};
use super::portable;
use crate::kernels::level::Isa;

#[cfg(target_arch = "x86_64")]
use super::{avx512, floats_avx2, ints_avx2};

/// What integer sums begin with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start<'a> {
    /// The sums of an earlier run of the same group.
    Continue,
    /// `starts[group][row]` for every output.
    Shared(&'a [i32]),
    /// `zeros[group][output] · starts[group][row] − code_sums[group][output] · activation_zeros[row]`.
    Each {
        zeros: Zeros<'a>,
        starts: &'a [i32],
        /// Empty if all zero points of activations are 0.
        code_sums: &'a [i32],
        activation_zeros: &'a [i32],
    },
}

/// Zero points of a panel's codes.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels) enum Zeros<'a> {
    All(i32),
    /// `[group][32 outputs]`.
    Each(&'a [i32]),
}

impl<'a> Zeros<'a> {
    #[inline(always)]
    pub(super) fn of(self, output: usize) -> i32 {
        match self {
            Self::All(zero) => zero,
            Self::Each(zeros) => zeros[output],
        }
    }

    /// From a group on.
    #[inline(always)]
    pub(super) fn of_group(self, group: usize) -> Zeros<'a> {
        match self {
            Self::All(zero) => Self::All(zero),
            Self::Each(zeros) => Self::Each(&zeros[group * PANEL..]),
        }
    }

    pub(super) fn check(self, groups: usize) {
        if let Self::Each(zeros) = self {
            assert!(zeros.len() >= groups * PANEL);
        }
    }
}

/// Where the sums of complete groups go.
pub(in crate::kernels) struct Finish<'a, 'y> {
    /// `[group][32 outputs]`; empty: 1.
    pub(in crate::kernels) scales: &'a [f32],
    /// Whether `total` holds sums of earlier groups already.
    pub(in crate::kernels) add: bool,
    /// `[row][32 outputs]`.
    pub(in crate::kernels) total: &'a mut [f32],
    /// What follows after the last group.
    pub(in crate::kernels) last: Option<Last<'a, 'y>>,
}

/// What becomes of a total.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Last<'a, 'y> {
    /// Scale of each row of activations; empty: 1.
    pub(in crate::kernels) row_scales: &'a [f32],
    /// Bias per output; empty: 0.
    pub(in crate::kernels) bias: &'a [f32],
    pub(in crate::kernels) relu: bool,
    /// Where the tile's outputs lie.
    pub(in crate::kernels) y: Rows<'y>,
}

/// Integer activations times integer codes.
pub(super) struct IntTile<'a, 'y> {
    pub(super) storage: Storage,
    /// Whole blocks of codes, as many for every group.
    pub(super) codes: &'a [u8],
    /// Bytes after which to find what will be needed next; 0 if that is not known.
    pub(super) ahead: usize,
    /// Number of groups; 1 for a part of a group.
    pub(super) groups: usize,
    /// `[block][row][2]`, four codes in a word.
    pub(super) activations: &'a [i32],
    pub(super) rows: usize,
    pub(super) start: Start<'a>,
    /// `[row][32 outputs]`: sums of a group that is not complete.
    pub(super) partial: &'a mut [i32],
    /// Present when the run ends a group.
    pub(super) finish: Option<Finish<'a, 'y>>,
}

impl IntTile<'_, '_> {
    pub(super) fn run(&mut self, isa: Isa) {
        let (rows, groups) = (self.rows, self.groups);
        let blocks = self.codes.len() / self.storage.block_bytes();
        assert!((1..=TILE).contains(&rows) && groups > 0 && blocks.is_multiple_of(groups));
        assert!(matches!(self.storage, Storage::Byte | Storage::Nibble));
        assert_eq!(self.codes.len(), blocks * self.storage.block_bytes());
        assert!(self.finish.as_ref().is_none_or(|finish| !finish.scales.is_empty()));
        assert!(groups == 1 || (self.finish.is_some() && !matches!(self.start, Start::Continue)));
        assert!(self.activations.len() >= blocks * 2 * rows && self.partial.len() >= rows * PANEL);
        match self.start {
            Start::Continue => {}
            Start::Shared(starts) => assert!(starts.len() >= groups * rows),
            Start::Each { zeros, starts, code_sums, activation_zeros } => {
                zeros.check(groups);
                assert!(starts.len() >= groups * rows);
                assert!(code_sums.is_empty() || code_sums.len() >= groups * PANEL);
                assert!(code_sums.is_empty() || activation_zeros.len() >= rows);
            }
        }
        check_finish(self.finish.as_ref(), groups, rows);
        match isa {
            Isa::Portable => portable::int_tile(self),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(proof) => ints_avx2::int_tile(proof, self),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(proof) => avx512::int_tile(proof, self),
        }
    }
}

/// Float activations times codes of any storage.
pub(in crate::kernels) struct FloatTile<'a, 'y> {
    pub(in crate::kernels) storage: Storage,
    /// Whole blocks of codes, as many for every group.
    pub(in crate::kernels) codes: &'a [u8],
    pub(in crate::kernels) ahead: usize,
    pub(in crate::kernels) groups: usize,
    /// `[column][row]`.
    pub(in crate::kernels) activations: &'a [f32],
    pub(in crate::kernels) rows: usize,
    /// Subtracted from integer codes.
    pub(in crate::kernels) zeros: Zeros<'a>,
    pub(in crate::kernels) finish: Finish<'a, 'y>,
}

impl FloatTile<'_, '_> {
    pub(in crate::kernels) fn run(&mut self, isa: Isa) {
        let blocks = self.codes.len() / self.storage.block_bytes();
        assert!((1..=TILE).contains(&self.rows) && self.groups > 0 && blocks.is_multiple_of(self.groups));
        assert_eq!(self.codes.len(), blocks * self.storage.block_bytes());
        assert!(self.activations.len() >= blocks * BLOCK * self.rows);
        self.zeros.check(self.groups);
        check_finish(Some(&self.finish), self.groups, self.rows);
        match isa {
            Isa::Portable => portable::float_tile(self),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(proof) => floats_avx2::float_tile(proof, self),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(proof) => avx512::float_tile(proof, self),
        }
    }
}

fn check_finish(finish: Option<&Finish<'_, '_>>, groups: usize, rows: usize) {
    let Some(finish) = finish else { return };
    assert!(finish.scales.is_empty() || finish.scales.len() >= groups * PANEL);
    assert!(finish.total.len() >= rows * PANEL);
    if let Some(last) = &finish.last {
        assert!(last.row_scales.is_empty() || last.row_scales.len() >= rows);
        assert!(last.bias.is_empty() || last.bias.len() >= PANEL);
        assert!(last.y.rows() >= rows && last.y.width() <= PANEL);
    }
}
