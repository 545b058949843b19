//! What a compressed weight looks like, without its data: enough to know its exact bytes.

use std::fmt;

use rayon::prelude::*;

use super::granularity::{Granularity, ScaleGrid};
use super::{CodebookBits, InputForm, LowRankForm, WeightError};
use crate::dtype::Precision;
use crate::kernels::pack::words_for;

/// Bits of an integer code: 2 to 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bits(u8);

impl Bits {
    /// Codes of `bits` bits; `None` outside 2 to 8.
    pub const fn new(bits: u8) -> Option<Self> {
        if matches!(bits, 2..=8) { Some(Self(bits)) } else { None }
    }

    /// The number of bits.
    pub fn get(self) -> u8 {
        self.0
    }

    /// Smallest and largest code: `−2^(bits−1)` and `2^(bits−1) − 1`.
    pub fn range(self) -> (i32, i32) {
        let half = 1 << (self.0 - 1);
        (-half, half - 1)
    }

    /// Checks that these are codes of so many bits.
    pub(crate) fn check(self, what: &'static str, codes: &[i8]) -> Result<(), WeightError> {
        const RUN: usize = 1 << 14;
        let (low, high) = self.range();
        let outside = |code: &i8| !(low..=high).contains(&i32::from(*code));
        // all of a run at once, which the compiler can do many at a time
        let first = |(run, codes): (usize, &[i8])| {
            let found = codes.iter().fold(false, |found, code| found | outside(code));
            found.then(|| codes.iter().position(outside).map(|index| run * RUN + index)).flatten()
        };
        match codes.par_chunks(RUN).enumerate().find_map_first(first) {
            Some(index) => Err(WeightError::Code { what, index, value: codes[index], low, high }),
            None => Ok(()),
        }
    }
}

/// At most `n` kept weights in every `m` neighbours of a row, `1 ≤ n ≤ m ≤ 16`.
///
/// When the number of columns is no multiple of `m`, the last `t` columns of a row keep `min(n, t)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NofM {
    n: u8,
    m: u8,
}

impl NofM {
    /// The pattern `n:m`; `None` unless `1 ≤ n ≤ m ≤ 16`.
    pub const fn new(n: usize, m: usize) -> Option<Self> {
        if 1 <= n && n <= m && m <= 16 { Some(Self { n: n as u8, m: m as u8 }) } else { None }
    }

    /// Weights kept in a group.
    pub fn n(self) -> usize {
        usize::from(self.n)
    }

    /// Weights in a group.
    pub fn m(self) -> usize {
        usize::from(self.m)
    }

    /// Weights kept in a row of `cols`.
    pub fn kept_per_row(self, cols: usize) -> usize {
        cols / self.m() * self.n() + self.n().min(cols % self.m())
    }

    /// Bits that name a position within a group.
    pub(crate) fn position_bits(self) -> u8 {
        (u8::BITS - (self.m - 1).leading_zeros()).max(1) as u8
    }
}

impl fmt::Display for NofM {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.n, self.m)
    }
}

/// Where values stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayoutKind {
    /// Every position has a value.
    Dense,
    /// One bit per position says whether it has a value.
    Bitmask,
    /// Every group of a row has the same number of values, each with its position in the group.
    NofM(NofM),
    /// Row offsets, and a column number per value.
    CompressedRows,
    /// No position has a value: the weight is a product of two [factors](super::LowRank).
    Empty,
}

impl LayoutKind {
    /// Bytes that say where `kept` values of a `[rows, cols]` matrix stand.
    pub fn position_bytes(self, rows: usize, cols: usize, kept: usize) -> u64 {
        let bytes = match self {
            Self::Dense | Self::Empty => 0,
            Self::Bitmask => rows * cols.div_ceil(8),
            Self::NofM(pattern) => 4 * words_for(kept, pattern.position_bits()),
            Self::CompressedRows => (rows + 1) * 8 + kept * column_size(cols),
        };
        bytes as u64
    }
}

impl fmt::Display for LayoutKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense => f.write_str("dense"),
            Self::Bitmask => f.write_str("bitmask"),
            Self::NofM(pattern) => write!(f, "{pattern}"),
            Self::CompressedRows => f.write_str("rows"),
            Self::Empty => f.write_str("empty"),
        }
    }
}

/// Bytes of a column number in compressed rows of `cols` columns.
pub(crate) fn column_size(cols: usize) -> usize {
    if cols <= 1 << 16 { 2 } else { 4 }
}

/// How one value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Coding {
    /// A float of this precision.
    Float(Precision),
    /// e4m3 codes under scales: `value = code · scale`.
    F8E4M3 {
        /// Which weights share a scale.
        granularity: Granularity,
        /// Precision of the scales.
        scales: Precision,
    },
    /// Integer codes: `value = (code − zero_point) · scale`.
    Int {
        /// Bits of a code.
        bits: Bits,
        /// Whether all zero points are 0 (and are not stored).
        symmetric: bool,
        /// Which weights share a scale and zero point.
        granularity: Granularity,
        /// Precision of the scales.
        scales: Precision,
    },
    /// Codes that name values of a codebook.
    Codebook {
        /// Bits of a code.
        bits: CodebookBits,
        /// Which weights share a codebook.
        granularity: Granularity,
        /// Precision of the codebook's values.
        values: Precision,
    },
}

impl Coding {
    /// The granularity of the scales or codebooks, `None` for plain floats.
    pub fn granularity(self) -> Option<Granularity> {
        match self {
            Self::Float(_) => None,
            Self::F8E4M3 { granularity, .. }
            | Self::Int { granularity, .. }
            | Self::Codebook { granularity, .. } => Some(granularity),
        }
    }
}

impl fmt::Display for Coding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(Precision::F32) => f.write_str("f32"),
            Self::Float(Precision::F16) => f.write_str("f16"),
            Self::Float(Precision::Bf16) => f.write_str("bf16"),
            Self::F8E4M3 { granularity, .. } => write!(f, "f8 e4m3, {granularity}"),
            Self::Int { bits, symmetric, granularity, .. } => {
                write!(f, "int{}{}, {granularity}", bits.get(), if *symmetric { "" } else { " asym" })
            }
            Self::Codebook { bits, granularity, .. } => write!(f, "codebook{}, {granularity}", bits.get()),
        }
    }
}

/// Elements that a sparse weight may have whatever it stores, and how many it may have for every stored byte beyond that.
const HOLLOW_ELEMENTS: usize = 1 << 28;
const ELEMENTS_PER_BYTE: usize = 4096;

/// A compressed weight without its data: shape, layout, coding, how many values it keeps, and factors if it has some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    shape: Vec<usize>,
    layout: LayoutKind,
    coding: Coding,
    kept: usize,
    input: Option<InputForm>,
    low_rank: Option<LowRankForm>,
}

impl Form {
    /// A form that keeps `kept` of the weight's values.
    ///
    /// # Shapes
    /// `shape` is the tensor's own; the matrix has `shape[0]` rows and the product of the rest as columns.
    ///
    /// # Errors
    /// When the number of elements overflows, `kept` is not what the layout holds, the layout is empty, as only that of a
    /// [product of factors](Self::of_factors) is, or a sparse layout stores next to nothing for a huge matrix: beyond 2^28 elements it takes at least a byte for every 4096 of them. Otherwise a file of a few
    /// bytes could ask for all memory there is.
    pub fn new(
        shape: &[usize],
        layout: LayoutKind,
        coding: Coding,
        kept: usize,
    ) -> Result<Self, WeightError> {
        let [rows, cols] = matrix_shape(shape)?;
        if layout != LayoutKind::Dense && kept > 0 && u32::try_from(cols).is_err() {
            // positions in a row are kept as u32
            return Err(WeightError::TooLarge { shape: shape.to_vec() });
        }
        let holds = match layout {
            LayoutKind::Dense => rows * cols,
            LayoutKind::NofM(pattern) => rows * pattern.kept_per_row(cols),
            LayoutKind::Bitmask | LayoutKind::CompressedRows => kept.min(rows * cols),
            LayoutKind::Empty => {
                let reason = "an empty layout is that of a product of factors".into();
                return Err(WeightError::Unsupported { reason });
            }
        };
        WeightError::check_len("kept values", holds, kept)?;
        Self { shape: shape.to_vec(), layout, coding, kept, input: None, low_rank: None }.check_hollow()
    }

    /// The form of a weight that is the product of two factors: it keeps no values beside them.
    ///
    /// # Errors
    /// When the number of elements overflows, the rank is 0 or larger than the matrix has, or the factors are next to nothing for a
    /// huge matrix, as for [`new`](Self::new).
    pub fn of_factors(shape: &[usize], factors: LowRankForm) -> Result<Self, WeightError> {
        let (layout, coding) = (LayoutKind::Empty, factors.coding);
        let form = Self { shape: shape.to_vec(), layout, coding, kept: 0, input: None, low_rank: None };
        let [rows, cols] = matrix_shape(shape)?;
        factors.factors(rows, cols)?;
        Self { low_rank: Some(factors), ..form }.check_hollow()
    }

    fn check_hollow(self) -> Result<Self, WeightError> {
        let (elements, bytes) = (self.rows() * self.cols(), self.bytes().total());
        if self.layout != LayoutKind::Dense
            && elements > HOLLOW_ELEMENTS
            && (elements / ELEMENTS_PER_BYTE) as u64 > bytes
        {
            return Err(WeightError::Hollow { shape: self.shape, elements, bytes });
        }
        Ok(self)
    }

    /// Says which factors' product is added to the weight.
    ///
    /// # Errors
    /// When the rank is 0 or larger than the matrix has, or the weight is already a product of factors.
    pub fn with_correction(self, factors: Option<LowRankForm>) -> Result<Self, WeightError> {
        if self.layout == LayoutKind::Empty {
            let reason = format!("a weight of {self} takes no further factors");
            return Err(WeightError::Unsupported { reason });
        }
        if let Some(factors) = factors {
            factors.factors(self.rows(), self.cols())?;
        }
        Ok(Self { low_rank: factors, ..self })
    }

    /// The factors whose product is the weight, if its layout is empty, or is added to it; `None`: there are none.
    pub fn low_rank(&self) -> Option<LowRankForm> {
        self.low_rank
    }

    /// The forms of the factors, `[rows, rank]` and `[rank, cols]`; none where there are none.
    pub(crate) fn factors(&self) -> Option<[Self; 2]> {
        self.low_rank.and_then(|factors| factors.factors(self.rows(), self.cols()).ok())
    }

    /// Whether it is a tensor of floats like any other.
    pub fn is_plain(&self) -> bool {
        self.layout == LayoutKind::Dense && matches!(self.coding, Coding::Float(_)) && self.low_rank.is_none()
    }

    /// Whether it stores the positions of its values, because others are pruned.
    pub fn is_sparse(&self) -> bool {
        !matches!(self.layout, LayoutKind::Dense | LayoutKind::Empty)
    }

    /// Says how the layer's input is quantized.
    ///
    /// # Errors
    /// When it is, and the weight is not of integers.
    pub fn with_input(self, input: Option<InputForm>) -> Result<Self, WeightError> {
        if let Some(input) = input
            && (!matches!(self.coding, Coding::Int { .. }) || self.layout == LayoutKind::Empty)
        {
            let reason = format!("{input} needs integer codes, and this weight holds {self}");
            return Err(WeightError::Unsupported { reason });
        }
        Ok(Self { input, ..self })
    }

    /// How the layer's input is quantized; `None`: it is not.
    pub fn input(&self) -> Option<InputForm> {
        self.input
    }

    /// Whether every code is stored in a byte of its own, as weights are whose layer's input is of bytes too.
    pub(crate) fn is_bytes(&self) -> bool {
        self.input.is_some()
            && self.layout == LayoutKind::Dense
            && matches!(self.coding, Coding::Int { bits: Bits(8), .. })
    }

    /// Shape of the tensor.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Rows of the matrix: output features.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Columns of the matrix: the product of all other dimensions.
    pub fn cols(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Where values stand.
    pub fn layout(&self) -> LayoutKind {
        self.layout
    }

    /// How one value is written.
    pub fn coding(&self) -> Coding {
        self.coding
    }

    /// Number of stored values.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// The tiling of the scales or codebooks, `None` for plain floats.
    pub fn grid(&self) -> Option<ScaleGrid> {
        Some(self.coding.granularity()?.grid(self.rows(), self.cols()))
    }

    /// Whether the last group of a row, or the tiles at an edge, are smaller than the others.
    pub fn is_ragged(&self) -> bool {
        match self.coding.granularity() {
            Some(Granularity::Group(size)) => !self.cols().is_multiple_of(size.get()),
            _ => false,
        }
    }

    /// Exact bytes of everything that is stored for the weight.
    pub fn bytes(&self) -> WeightBytes {
        let low_rank = self.low_rank.map_or(0, |factors| factors.bytes(self.rows(), self.cols()));
        if self.layout == LayoutKind::Empty {
            return WeightBytes { values: 0, positions: 0, scales: 0, zero_points: 0, low_rank };
        }
        let (rows, cols) = (self.rows(), self.cols());
        let positions = self.layout.position_bytes(rows, cols, self.kept);
        let grid = self.grid();
        let scale_count = grid.map_or(0, |g| g.len());
        let packed = |bits: u8| match self.layout {
            LayoutKind::Dense => rows * 4 * words_for(cols, bits),
            _ => 4 * words_for(self.kept, bits),
        };
        let (values, mut scales, mut zero_points) = match self.coding {
            Coding::Float(precision) => (self.kept * precision.size(), 0, 0),
            Coding::F8E4M3 { scales, .. } => (self.kept, scale_count * scales.size(), 0),
            Coding::Codebook { bits, values, .. } => {
                // as much as anything is, if it does not fit the address space
                (packed(bits.get()), scale_count.saturating_mul(bits.entries() * values.size()), 0)
            }
            Coding::Int { bits, symmetric, granularity, scales } => {
                let values = if self.is_bytes() { self.kept } else { packed(bits.get()) };
                let zero_points = match (symmetric, granularity, grid) {
                    (true, _, _) | (_, _, None) => 0,
                    (_, Granularity::Channel | Granularity::Group(_), Some(grid)) if !self.is_bytes() => {
                        4 * words_for(rows, bits.get()) * grid.cols
                    }
                    _ => scale_count,
                };
                (values, scale_count * scales.size(), zero_points)
            }
        };
        if let (Some(InputForm::Static { symmetric }), Coding::Int { scales: precision, .. }) =
            (self.input, self.coding)
        {
            (scales, zero_points) = (scales + precision.size(), zero_points + usize::from(!symmetric));
        }
        WeightBytes {
            values: values as u64,
            positions,
            scales: scales as u64,
            zero_points: zero_points as u64,
            low_rank,
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.layout, self.low_rank) {
            (LayoutKind::Empty, Some(factors)) => write!(f, "{factors}")?,
            (LayoutKind::Dense, None) => write!(f, "{}", self.coding)?,
            (LayoutKind::Dense, Some(factors)) => write!(f, "{} + {factors}", self.coding)?,
            (layout, None) => write!(f, "{layout} × {}", self.coding)?,
            (layout, Some(factors)) => write!(f, "{layout} × {} + {factors}", self.coding)?,
        }
        self.input.map_or(Ok(()), |input| write!(f, ", {input}"))
    }
}

/// Exact bytes of a compressed weight, by what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightBytes {
    /// The values or codes, padding to whole words included.
    pub values: u64,
    /// Bitmask, group positions, or row offsets and columns.
    pub positions: u64,
    /// Scales, that of the layer's input included, or codebooks.
    pub scales: u64,
    /// Zero points, that of the layer's input included.
    pub zero_points: u64,
    /// Two factors, with all that belongs to them.
    pub low_rank: u64,
}

impl WeightBytes {
    /// All of them.
    pub fn total(self) -> u64 {
        let others = [self.positions, self.scales, self.zero_points, self.low_rank];
        others.into_iter().fold(self.values, u64::saturating_add)
    }
}

/// The `[rows, cols]` matrix that a tensor is compressed as: the first dimension, and the product of the others.
///
/// # Errors
/// When the number of elements does not fit the address space. A dimension of zero does not excuse the others, and
/// there is room for 64 bytes an element, so that no count of bytes, words or offsets made from the shape overflows.
pub(crate) fn matrix_shape(shape: &[usize]) -> Result<[usize; 2], WeightError> {
    if shape.iter().try_fold(64usize, |n, d| n.checked_mul((*d).max(1))).is_none() {
        return Err(WeightError::TooLarge { shape: shape.to_vec() });
    }
    Ok([shape.first().copied().unwrap_or(1), shape.iter().skip(1).product()])
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    fn int(bits: u8, symmetric: bool, granularity: Granularity) -> Coding {
        Coding::Int { bits: Bits::new(bits).unwrap(), symmetric, granularity, scales: Precision::F32 }
    }

    #[test]
    fn a_huge_matrix_of_nothing_is_no_weight() {
        let float = Coding::Float(Precision::F32);
        for shape in [&[1, 1 << 56][..], &[1, 1 << 33], &[4096, 1 << 31], &[1 << 28, 2]] {
            let form = Form::new(shape, LayoutKind::CompressedRows, float, 0);
            if shape[1] == 2 {
                // its row offsets alone take as much as the dense values
                assert!(form.is_ok());
                continue;
            }
            let error = form.unwrap_err().to_string();
            let elements = (shape[0] * shape[1]).to_string();
            assert!(error.contains(&format!("{shape:?}")) && error.contains(&elements), "{error}");
        }
        for shape in [[1usize << 57, 0], [0, 1 << 57], [1 << 15, 1 << 15], [1, 1 << 28]] {
            assert!(Form::new(&shape, LayoutKind::CompressedRows, float, 0).is_ok(), "{shape:?}");
        }
    }

    #[test]
    fn bytes_by_hand() {
        let group = Granularity::Group(NonZeroUsize::new(64).unwrap());
        // 100 rows of 300 4-bit codes: 38 words a row; 5 groups a row (the last ragged), zero points 13 words × 5
        let form = Form::new(&[100, 300], LayoutKind::Dense, int(4, false, group), 30_000).unwrap();
        assert_eq!(
            form.bytes(),
            WeightBytes {
                values: 100 * 38 * 4,
                positions: 0,
                scales: 500 * 4,
                zero_points: 13 * 4 * 5,
                low_rank: 0
            }
        );
        assert!(form.is_ragged());
        // 2:4 int8: half of the values, 2 bits of position each
        let pattern = NofM::new(2, 4).unwrap();
        let form =
            Form::new(&[10, 16], LayoutKind::NofM(pattern), int(8, true, Granularity::Channel), 80).unwrap();
        assert_eq!(form.bytes().total(), 80 + 20 + 40);
        // bitmask f16 and compressed rows f16 of a convolution [4, 2, 3, 3]
        let f16 = Coding::Float(Precision::F16);
        let form = Form::new(&[4, 2, 3, 3], LayoutKind::Bitmask, f16, 7).unwrap();
        assert_eq!(form.bytes().total(), 4 * 3 + 14);
        let form = Form::new(&[4, 2, 3, 3], LayoutKind::CompressedRows, f16, 7).unwrap();
        assert_eq!(form.bytes().total(), 5 * 8 + 7 * 2 + 14);
    }

    #[test]
    fn bytes_of_factors_by_hand() {
        let factors = LowRankForm { rank: 5, coding: Coding::Float(Precision::F16) };
        let form = Form::of_factors(&[4, 5, 3, 1], LowRankForm { rank: 4, ..factors }).unwrap();
        assert_eq!((form.bytes().total(), form.kept(), form.is_plain()), (2 * 4 * (4 + 15), 0, false));
        assert_eq!(form.to_string(), "rank 4 × f16");
        // int4 codes: 2 words and a scale in each of 10 rows; int8 factors with a scale a row
        let base = Form::new(&[10, 16], LayoutKind::Dense, int(4, true, Granularity::Channel), 160).unwrap();
        let form =
            base.with_correction(Some(LowRankForm { coding: int(8, true, Granularity::Channel), ..factors }));
        let form = form.unwrap();
        assert_eq!(form.bytes().low_rank, 10 * (8 + 4) + 5 * (16 + 4));
        assert_eq!(form.bytes().total(), 10 * (8 + 4) + form.bytes().low_rank);
        assert_eq!(form.to_string(), "int4, channel + rank 5 × int8, channel");
    }

    #[test]
    fn impossible_factors_are_refused() {
        let factors = |rank| LowRankForm { rank, coding: Coding::Float(Precision::F16) };
        for (shape, rank) in [(&[4, 6][..], 0), (&[4, 6], 5), (&[0, 6], 1), (&[3, 2, 0], 1)] {
            let error = Form::of_factors(shape, factors(rank)).unwrap_err().to_string();
            assert!(error.contains(&format!("rank {rank}")), "{error}");
        }
        let f16 = factors(1).coding;
        assert!(Form::new(&[4, 6], LayoutKind::Empty, f16, 0).is_err());
        let form = Form::of_factors(&[4, 6], factors(1)).unwrap();
        assert!(form.with_correction(Some(factors(1))).is_err());
        // 4 MB that ask for 4 TB
        assert!(matches!(
            Form::of_factors(&[1 << 20, 1 << 20], factors(1)),
            Err(WeightError::Hollow { bytes: 4_194_304, .. })
        ));
    }

    #[test]
    fn n_of_m_counts_the_tail() {
        let pattern = NofM::new(2, 4).unwrap();
        assert_eq!([0, 1, 2, 3, 4, 5, 7].map(|cols| pattern.kept_per_row(cols)), [0, 1, 2, 2, 2, 3, 4]);
        assert_eq!([1, 2, 4, 5, 16].map(|m| NofM::new(1, m).unwrap().position_bits()), [1, 1, 2, 3, 4]);
        assert_eq!(NofM::new(3, 2), None);
        assert_eq!(NofM::new(1, 17), None);
    }

    #[test]
    fn impossible_forms_are_refused() {
        let f32 = Coding::Float(Precision::F32);
        assert!(Form::new(&[usize::MAX, 2], LayoutKind::Dense, f32, 0).is_err());
        assert!(Form::new(&[2, 2], LayoutKind::Dense, f32, 3).is_err());
        assert!(Form::new(&[2, 2], LayoutKind::Bitmask, f32, 5).is_err());
    }
}
