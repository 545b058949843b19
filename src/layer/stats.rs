use std::sync::OnceLock;

use ndarray::ArrayView2;

use crate::error::NonFinite;
use crate::kernels::{get_or_make, gram, reduce};

/// What a method needs to know of a layer's input. Each kind includes those before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Needs {
    /// Nothing: it works on the weights alone.
    #[default]
    Nothing,
    /// Magnitudes of every input channel.
    Channels,
    /// The products of all pairs of channels.
    Hessian,
}

/// What calibration saw at a layer's input, gathered batch by batch in constant memory.
///
/// ```
/// use tersor::{LayerStats, Needs};
///
/// let mut stats = LayerStats::new(2, Needs::Hessian);
/// stats.observe(ndarray::array![[1.0, -2.0], [3.0, 0.0]].view())?;
/// assert_eq!(stats.tokens(), 2);
/// assert_eq!(stats.abs_max(), [3.0, 2.0]);
/// assert_eq!(stats.hessian().unwrap(), [5.0, -1.0, -1.0, 2.0]); // XᵀX / 2
/// # Ok::<(), tersor::NonFinite>(())
/// ```
#[derive(Debug, Clone)]
pub struct LayerStats {
    size: usize,
    tokens: u64,
    abs_max: Vec<f32>,
    sum: Vec<f64>,
    sum_abs: Vec<f64>,
    sum_square: Vec<f64>,
    /// Products of all pairs of channels, on and above the diagonal.
    gram: Option<Vec<f64>>,
    /// The mean of the products, once somebody has asked for it.
    hessian: OnceLock<Vec<f32>>,
}

/// What [`LayerStats`] are made of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StatsParts {
    pub(crate) tokens: u64,
    pub(crate) abs_max: Vec<f32>,
    /// Sums of values, magnitudes and squares, `[3, size]`.
    pub(crate) sums: Vec<f64>,
    /// Products of pairs of channels on and above the diagonal, row by row.
    pub(crate) gram: Vec<f64>,
}

impl LayerStats {
    /// Statistics of a layer with `size` input features that has seen nothing.
    pub fn new(size: usize, needs: Needs) -> Self {
        Self {
            size,
            tokens: 0,
            abs_max: vec![0.0; size],
            sum: vec![0.0; size],
            sum_abs: vec![0.0; size],
            sum_square: vec![0.0; size],
            gram: (needs >= Needs::Hessian).then(|| vec![0.0; size * size]),
            hessian: OnceLock::new(),
        }
    }

    /// Bytes of statistics that go so far, with what is made of them and what is needed to add to them.
    pub(crate) fn bytes(size: usize, needs: Needs) -> u64 {
        let of_channels = 4 * size_of::<f64>();
        // sums and their mean; 256 rows of inputs, arranged
        let of_pairs = (size_of::<f64>() + size_of::<f32>()) * size + 512 * size_of::<f32>();
        let bytes = match needs {
            Needs::Nothing => 0,
            Needs::Channels => of_channels,
            Needs::Hessian => of_channels + of_pairs,
        };
        (bytes * size) as u64
    }

    /// Adds some inputs.
    ///
    /// # Shapes
    /// `[tokens, in_features]`.
    ///
    /// # Errors
    /// When a value is NaN or infinite; then none is added.
    ///
    /// # Panics
    /// When the inputs have another number of features.
    pub fn observe(&mut self, inputs: ArrayView2<'_, f32>) -> Result<(), NonFinite> {
        assert_eq!(inputs.ncols(), self.size, "input features");
        let inputs = inputs.as_standard_layout();
        let values: &[f32] = inputs.as_slice().unwrap_or_default();
        reduce::first_non_finite(values).map_or(Ok(()), Err)?;
        for row in values.chunks_exact(self.size.max(1)) {
            for (column, x) in row.iter().enumerate() {
                let wide = f64::from(*x);
                self.abs_max[column] = self.abs_max[column].max(x.abs());
                self.sum[column] += wide;
                self.sum_abs[column] += wide.abs();
                self.sum_square[column] += wide * wide;
            }
        }
        if let Some(products) = &mut self.gram {
            gram::add_gram(values, self.size, products);
        }
        self.tokens += inputs.nrows() as u64;
        self.hessian = OnceLock::new();
        Ok(())
    }

    /// Input features.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Rows of activations that were seen.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Largest magnitude of every channel.
    pub fn abs_max(&self) -> &[f32] {
        &self.abs_max
    }

    /// Mean of every channel; 0 before anything was seen.
    pub fn mean(&self) -> Vec<f64> {
        self.means(&self.sum)
    }

    /// Mean magnitude of every channel; 0 before anything was seen.
    pub fn mean_abs(&self) -> Vec<f64> {
        self.means(&self.sum_abs)
    }

    /// Mean square of every channel; 0 before anything was seen.
    pub fn mean_square(&self) -> Vec<f64> {
        self.means(&self.sum_square)
    }

    /// `XᵀX / tokens`: half the Hessian of the squared error of the layer's output with regard to a row of weights.
    /// `None` unless it was asked for.
    ///
    /// # Shapes
    /// `[in_features, in_features]`, row-major, symmetric.
    pub fn hessian(&self) -> Option<&[f32]> {
        let products = self.gram.as_ref()?;
        let tokens = self.tokens.max(1) as f64;
        let made = get_or_make(&self.hessian, || gram::mean(products, self.size, tokens));
        Some(made.as_slice())
    }

    /// Everything that was seen, to be kept.
    pub(crate) fn parts(&self) -> StatsParts {
        let rows = self.gram.iter().flat_map(|gram| gram.chunks_exact(self.size.max(1)).enumerate());
        StatsParts {
            tokens: self.tokens,
            abs_max: self.abs_max.clone(),
            sums: [&self.sum[..], &self.sum_abs, &self.sum_square].concat(),
            gram: rows.flat_map(|(i, row)| row[i..].iter().copied()).collect(),
        }
    }

    /// The statistics that such parts are of; `None` if their lengths do not fit.
    pub(crate) fn from_parts(parts: StatsParts) -> Option<Self> {
        let StatsParts { tokens, abs_max, sums, gram } = parts;
        let size = abs_max.len();
        if sums.len() != 3 * size || gram.len() != size * (size + 1) / 2 {
            return None;
        }
        let mut square = vec![0.0; size * size];
        let mut rest = gram.as_slice();
        for (i, row) in square.chunks_exact_mut(size.max(1)).enumerate() {
            let upper;
            (upper, rest) = rest.split_at(size - i);
            row[i..].copy_from_slice(upper);
        }
        let sum = |which: usize| sums[which * size..(which + 1) * size].to_vec();
        Some(Self {
            size,
            tokens,
            abs_max,
            sum: sum(0),
            sum_abs: sum(1),
            sum_square: sum(2),
            gram: Some(square),
            hessian: OnceLock::new(),
        })
    }

    /// The statistics of the same inputs with every channel multiplied by a factor.
    ///
    /// # Panics
    /// When there are not as many factors as channels.
    #[must_use]
    pub fn scaled(&self, factors: &[f32]) -> Self {
        assert_eq!(factors.len(), self.size, "factors of the channels");
        let wide: Vec<f64> = factors.iter().map(|f| f64::from(*f)).collect();
        let times = |sums: &[f64], factor: &dyn Fn(f64) -> f64| -> Vec<f64> {
            sums.iter().zip(&wide).map(|(sum, f)| sum * factor(*f)).collect()
        };
        let gram = self.gram.as_ref().map(|gram| {
            let rows = gram.chunks_exact(self.size.max(1)).zip(&wide);
            rows.flat_map(|(row, f)| row.iter().zip(&wide).map(move |(sum, g)| sum * f * g)).collect()
        });
        Self {
            size: self.size,
            tokens: self.tokens,
            abs_max: self.abs_max.iter().zip(factors).map(|(x, f)| x * f.abs()).collect(),
            sum: times(&self.sum, &|f| f),
            sum_abs: times(&self.sum_abs, &f64::abs),
            sum_square: times(&self.sum_square, &|f| f * f),
            gram,
            hessian: OnceLock::new(),
        }
    }

    fn means(&self, sums: &[f64]) -> Vec<f64> {
        sums.iter().map(|sum| sum / self.tokens.max(1) as f64).collect()
    }
}
