use std::num::NonZeroUsize;

use rayon::prelude::*;

use super::calibrated::{comparison_bytes, hessian, squared_errors};
use super::tiles::{IntTarget, is_pruned};
use crate::kernels::kmeans::{Start, centroids, nearest};
use crate::layer::{Alternative, Compressed, Layer, Method, MethodError, Needs, Outcome};
use crate::weight::{
    Bits, CodebookBits, Codebooks, Coding, CompressedWeight, DenseValues, Granularity, LayoutKind, ScaleGrid,
    WeightError,
};

/// Codes that name the values of codebooks, which are the centroids of the weights.
///
/// Pruned weights take no part in the codebooks: sparse layouts do not store them, and in a dense layout one value of every
/// codebook is 0.
///
/// Han, Mao and Dally, "Deep Compression" (2016), section 3; with [`ValueImportance::Inputs`], Kim et al., "SqueezeLLM" (2023),
/// section 4.1.
///
/// ```
/// use tersor::{Bits, CodebookBits, KMeans, Layer, Method, Precision, RoundToNearest};
///
/// let values: Vec<f32> = (0..256).map(|i| (i as f32 * 0.37).sin().powi(3)).collect();
/// let layer = Layer::new(&[4, 64], &values, Precision::F32);
/// let error = |method: &dyn Method| -> Result<f32, tersor::MethodError> {
///     let weight = method.compress(&layer)?.weight.dequantize();
///     Ok(weight.iter().zip(&values).map(|(q, w)| (q - w).powi(2)).sum())
/// };
/// let (codebook, rounded) = (KMeans::new(CodebookBits::new(4).unwrap()), RoundToNearest::int(Bits::new(4).unwrap()));
/// assert!(error(&codebook)? < error(&rounded)?);
/// # Ok::<(), tersor::MethodError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KMeans {
    bits: CodebookBits,
    granularity: Granularity,
    start: Start,
    importance: ValueImportance,
}

/// How much the error of each weight counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ValueImportance {
    /// As much as that of any other.
    #[default]
    Equal,
    /// As the mean square of the input that the weight meets: the diagonal of the Hessian of the layer's output error. Needs
    /// calibration. Where equal importance serves the output better, its codebooks are kept.
    Inputs,
}

impl ValueImportance {
    /// What must be known of the inputs.
    pub(crate) fn needs(self) -> Needs {
        match self {
            Self::Equal => Needs::Nothing,
            Self::Inputs => Needs::Hessian,
        }
    }
}

impl KMeans {
    /// Codebooks of `2^bits` values, one for every row.
    pub fn new(bits: CodebookBits) -> Self {
        Self {
            bits,
            granularity: Granularity::Channel,
            start: Start::default(),
            importance: ValueImportance::default(),
        }
    }

    /// Chooses which weights share a codebook.
    #[must_use]
    pub fn granularity(self, granularity: Granularity) -> Self {
        Self { granularity, ..self }
    }

    /// Chooses where the search for centroids starts; the best ones are found unless chosen otherwise.
    #[must_use]
    pub fn start(self, start: Start) -> Self {
        Self { start, ..self }
    }

    /// Chooses how much the error of each weight counts.
    #[must_use]
    pub fn importance(self, importance: ValueImportance) -> Self {
        Self { importance, ..self }
    }

    /// Codebooks under which the error of each weight counts as much as `importance` says, such as the diagonal of the
    /// Fisher information.
    ///
    /// # Shapes
    /// `importance` has one number, finite and at least 0, for every weight.
    ///
    /// # Errors
    /// When it has not, or a weight is not finite.
    pub fn compress_by(
        &self,
        layer: &Layer<'_>,
        importance: &[f32],
    ) -> Result<CompressedWeight, MethodError> {
        WeightError::check_len("importances", layer.values.len(), importance.len())?;
        if let Some(wrong) = importance.iter().find(|x| !(x.is_finite() && **x >= 0.0)) {
            return Err(MethodError::Option {
                option: "an importance",
                value: f64::from(*wrong),
                expected: "finite and at least 0",
            });
        }
        self.fit(layer, Some(&|row, col| importance[row * layer.cols() + col]))
    }

    fn grid(&self, layer: &Layer<'_>) -> ScaleGrid {
        self.granularity.grid(layer.rows(), layer.cols())
    }

    fn fit(&self, layer: &Layer<'_>, importance: Option<&By<'_>>) -> Result<CompressedWeight, MethodError> {
        layer.check()?;
        let (grid, cols) = (self.grid(layer), layer.cols());
        // what is not stored needs no value; a dense zero does
        let zero = layer.mask.is_some() && layer.layout == LayoutKind::Dense;
        let of_tile = |(values, weights): &mut (Vec<f32>, Vec<f32>), tile: usize| {
            values.clear();
            weights.clear();
            for (row, col) in positions(grid, tile, layer) {
                if !is_pruned(layer, row, col) {
                    values.push(layer.values[row * cols + col]);
                    weights.extend(importance.map(|of| of(row, col)));
                }
            }
            self.book(values, importance.map(|_| weights.as_slice()), zero, layer)
        };
        let whole = (grid.len() == 1 && layer.mask.is_none() && importance.is_none()).then_some(layer.values);
        let books: Vec<Vec<f32>> = match whole {
            // a large tensor is not copied, and worked on by all threads
            Some(values) => vec![self.book(values, None, zero, layer)?],
            None => (0..grid.len())
                .into_par_iter()
                .map_init(Default::default, of_tile)
                .collect::<Result<_, MethodError>>()?,
        };
        let mut codes = vec![0u8; layer.values.len()];
        if cols > 0 && grid.len() == 1 {
            nearest(layer.values, &books[0], &mut codes);
        } else if cols > 0 {
            let rows = codes.par_chunks_mut(cols).zip(layer.values.par_chunks(cols)).enumerate();
            rows.for_each(|(row, (codes, values))| {
                let runs = codes.chunks_mut(grid.block_cols).zip(values.chunks(grid.block_cols));
                for (run, (codes, values)) in runs.enumerate() {
                    nearest(values, &books[grid.index(row, run * grid.block_cols)], codes);
                }
            });
        }
        let entries = self.bits.entries();
        let padded = books.into_iter().flat_map(|book| {
            let last = book[book.len() - 1];
            book.into_iter().chain(std::iter::repeat(last)).take(entries)
        });
        let books = Codebooks::new(self.bits, self.granularity, layer.precision, padded.collect())?;
        let values = DenseValues::Codebook(&codes, &books);
        Ok(CompressedWeight::encode(layer.shape, layer.layout, layer.mask, values)?)
    }

    /// The codebook of some values, ascending, in the layer's precision; at least one value.
    fn book(
        &self,
        values: &[f32],
        weights: Option<&[f32]>,
        zero: bool,
        layer: &Layer<'_>,
    ) -> Result<Vec<f32>, MethodError> {
        let clusters = self.bits.entries() - usize::from(zero);
        let mut book = centroids(values, weights, clusters, self.start)?;
        for value in &mut book {
            *value = layer.precision.round(*value);
        }
        let at = book.partition_point(|value| *value < 0.0);
        if book.is_empty() || (zero && book.get(at).is_none_or(|value| *value != 0.0)) {
            book.insert(at, 0.0);
        }
        // values that one precision told apart can be the same in another
        book.dedup();
        Ok(book)
    }
}

/// The importance of the weight at a row and column.
type By<'a> = dyn Fn(usize, usize) -> f32 + Sync + 'a;

/// Rows and columns of a tile.
fn positions(
    grid: ScaleGrid,
    tile: usize,
    layer: &Layer<'_>,
) -> impl Iterator<Item = (usize, usize)> + use<> {
    let first = [tile / grid.cols * grid.block_rows, tile % grid.cols * grid.block_cols];
    let rows = first[0]..(first[0] + grid.block_rows).min(layer.rows());
    let cols = first[1]..(first[1] + grid.block_cols).min(layer.cols());
    rows.flat_map(move |row| cols.clone().map(move |col| (row, col)))
}

impl Method for KMeans {
    fn name(&self) -> String {
        let what = match self.start {
            Start::Optimal => "k-means",
            Start::Linear => "k-means from linear",
            Start::Density => "k-means from density",
            Start::Random { .. } => "k-means from random",
        };
        let by = match self.importance {
            ValueImportance::Equal => "",
            ValueImportance::Inputs => " by inputs",
        };
        format!("{what}{by}, codebook{}, {}", self.bits.get(), self.granularity)
    }

    fn coding(&self, before: Coding) -> Coding {
        let values = match before {
            Coding::Float(precision) => precision,
            Coding::F8E4M3 { scales, .. } | Coding::Int { scales, .. } => scales,
            Coding::Codebook { values, .. } => values,
        };
        Coding::Codebook { bits: self.bits, granularity: self.granularity, values }
    }

    fn needs(&self) -> Needs {
        self.importance.needs()
    }

    fn scratch_bytes(&self, shape: &[usize]) -> u64 {
        let (rows, cols) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product());
        let grid = self.granularity.grid(rows, cols);
        let tile = grid.block_rows.min(rows) * grid.block_cols.min(cols);
        let at_once = grid.len().min(rayon::current_num_threads());
        // gathered values and weights, their sorted points (or bins), and the table over them
        let points = (1usize << 17).min(tile);
        let bins = if tile > 1 << 17 { rayon::current_num_threads().min(8) << 24 } else { 0 };
        let table = 4 * self.bits.entries() * points.min((1 << 20) / self.bits.entries());
        let compared =
            if self.importance == ValueImportance::Inputs { comparison_bytes(rows, cols) } else { 0 };
        (at_once * (8 * tile + 64 * points + table) + bins + rows * cols + compared) as u64
    }

    fn row_block(&self) -> Option<NonZeroUsize> {
        if self.importance == ValueImportance::Inputs {
            return None;
        }
        match self.granularity {
            Granularity::Tensor => None,
            Granularity::Channel | Granularity::Group(_) => NonZeroUsize::new(1),
            Granularity::Block(rows, _) => Some(rows),
        }
    }

    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError> {
        if self.importance == ValueImportance::Equal {
            return Ok(Compressed::plain(self.fit(layer, None)?));
        }
        let (stats, products) = hessian(layer, || self.name())?;
        let size = stats.size();
        let by_column: Vec<f32> = (0..size).map(|col| products[col * size + col]).collect();
        let equal = self.fit(layer, None)?;
        let weighted = self.fit(layer, Some(&|_, col| by_column[col]))?;
        let (output, [equal_error, weighted_error]) = squared_errors(layer, [&equal, &weighted], products);
        // a negative sum is a rounding error of nearly nothing
        let relative = |squared: f64| if squared <= 0.0 { 0.0 } else { squared / output };
        let (equal_error, weighted_error) = (relative(equal_error), relative(weighted_error));
        let mut notes = Vec::new();
        let (weight, method_error) = if weighted_error <= equal_error {
            (weighted, weighted_error)
        } else {
            notes.push("codebooks of equal importance are better, and were kept".to_owned());
            (equal, equal_error)
        };
        // one bit rounds to no integers
        let plain_error = match Bits::new(self.bits.get()) {
            Some(bits) => {
                let target = IntTarget { granularity: self.granularity, ..IntTarget::new(bits) };
                let rounded = target.rounding().compress(layer)?.weight;
                let (_, [error]) = squared_errors(layer, [&rounded], products);
                relative(error)
            }
            None => f64::INFINITY,
        };
        // an error that is not a number is no better either
        if method_error.is_nan() || method_error >= plain_error && plain_error > 0.0 {
            notes.push("no better than integers of as many bits, rounded to nearest".to_owned());
        }
        let outcome = Outcome {
            plain: Alternative::Rounding,
            plain_error,
            method_error,
            kept_plain: false,
            damping: 0.0,
            dead_channels: stats.abs_max().iter().filter(|x| **x == 0.0).count(),
            tokens: stats.tokens(),
            notes,
        };
        Ok(Compressed { weight, clamped: 0, outcome: Some(outcome) })
    }
}
