use std::borrow::Cow;

use rayon::prelude::*;

use crate::kernels::cholesky::{factor_upper, solve_rows};
use crate::kernels::gram::quadratic_form;
use crate::kernels::level::Isa;
use crate::kernels::reduce;
use crate::kernels::symmetric::SymmetricTiles;
use crate::kernels::update::PANEL;
use crate::layer::{Layer, LayerStats, Method, MethodError};
use crate::quantize::FloatCast;
use crate::weight::{CompressedWeight, matrix_shape};

/// Where damping ends, as a fraction of the mean diagonal.
const MOST_DAMPING: f64 = 1.0;

/// A layer whose input channels belong to units that can be left out: the neurons of a hidden layer, attention heads, the
/// channels of a convolution.
#[derive(Debug, Clone, Copy)]
pub struct Consumer<'a> {
    /// The layer that takes them, with what calibration saw at its input.
    pub layer: Layer<'a>,
    /// Channels of one unit; they follow each other.
    pub width: usize,
    /// Whether it has a bias, which can make up for what the lost channels gave on average.
    pub has_bias: bool,
    /// What is added to the Hessian's diagonal, as a fraction of its mean, where something is solved.
    pub damping: f64,
}

/// A layer after it has lost input channels.
#[derive(Debug, Clone, PartialEq)]
pub struct Repaired {
    /// What is left of the weight, in the layer's precision.
    ///
    /// # Shapes
    /// As the layer's, with fewer input features.
    pub weight: CompressedWeight,
    /// What is to be added to the layer's bias; `None` if it has none.
    pub bias: Option<Vec<f32>>,
    /// The error of the output, `‖(W − Ŵ)·Xᵀ‖² / ‖W·Xᵀ‖²`, if the channels were only left out.
    pub naive_error: f64,
    /// The error of the output with these weights and this bias.
    pub error: f64,
    /// What was added to the Hessian's diagonal, as a fraction of its mean.
    pub damping: f64,
}

impl<'a> Consumer<'a> {
    /// Fraction of the Hessian's mean diagonal that is added to it unless something else is said.
    pub const DAMPING: f64 = 1e-3;

    /// A layer without a bias.
    pub fn new(layer: Layer<'a>, width: usize) -> Self {
        Self { layer, width, has_bias: false, damping: Self::DAMPING }
    }

    /// Number of units.
    pub fn units(&self) -> usize {
        self.layer.cols() / self.width.max(1)
    }

    /// Which channels are those of units that stay.
    pub(super) fn channels(&self, kept: &[bool]) -> Result<Vec<bool>, MethodError> {
        self.layer.check()?;
        if self.width == 0 || !self.layer.cols().is_multiple_of(self.width) || kept.len() != self.units() {
            return Err(MethodError::Option {
                option: "number of units",
                value: kept.len() as f64,
                expected: "that of the layer's input features, by the features of one",
            });
        }
        Ok(kept.iter().flat_map(|kept| std::iter::repeat_n(*kept, self.width)).collect())
    }

    /// What calibration saw.
    pub(super) fn stats(&self, method: &str) -> Result<&'a LayerStats, MethodError> {
        let Some(stats) = self.layer.stats.filter(|stats| stats.tokens() > 0) else {
            return Err(MethodError::NotCalibrated { method: method.to_owned(), what: "samples" });
        };
        if stats.size() != self.layer.cols() {
            return Err(MethodError::StatsShape { expected: self.layer.cols(), actual: stats.size() });
        }
        Ok(stats)
    }

    fn hessian(&self, method: &str) -> Result<&'a [f32], MethodError> {
        let missing =
            || MethodError::NotCalibrated { method: method.to_owned(), what: "the products of all channels" };
        self.stats(method)?.hessian().ok_or_else(missing)
    }

    /// What the squared error of the output is weighted with: the Hessian, or, where the bias makes good what is constant, the
    /// covariance.
    pub(super) fn weights_of_errors(&self, method: &str) -> Result<Cow<'a, [f32]>, MethodError> {
        let (stats, hessian) = (self.stats(method)?, self.hessian(method)?);
        if !self.has_bias {
            return Ok(Cow::Borrowed(hessian));
        }
        let (mean, size) = (stats.mean(), stats.size());
        let mut covariance = hessian.to_vec();
        covariance.par_chunks_mut(size.max(1)).zip(&mean).for_each(|(row, mine)| {
            row.iter_mut().zip(&mean).for_each(|(h, other)| *h = (f64::from(*h) - mine * other) as f32);
        });
        Ok(Cow::Owned(covariance))
    }

    /// Leaves units out, and makes good what that does to the layer's output as far as the others can: the least squares
    /// solution over the calibration inputs.
    ///
    /// With the kept channels `S` and the others `R` it is `Ŵ = W_S + W_R·H_RS·(H_SS + λI)⁻¹`, of all weights those with the
    /// smallest `‖(W − Ŵ)·Xᵀ‖² + λ‖W_S − Ŵ‖²`: the damping `λ` holds the weights where they were, not at zero. A bias `b`
    /// becomes `b + (W − Ŵ)·E[x]`, and `H` the covariance. What always was zero can be left out without any change.
    ///
    /// When the factorization fails, ten times the damping is taken, up to the mean of the diagonal. The result depends on
    /// neither the number of threads nor the instruction level.
    ///
    /// # Shapes
    /// `kept` has one entry per unit.
    ///
    /// # Errors
    /// When the layer was not calibrated with its Hessian, a weight is not finite, `kept` is of another number of units, the
    /// Hessian cannot be factorized, or a weight overflows the layer's precision.
    pub fn repair(&self, kept: &[bool]) -> Result<Repaired, MethodError> {
        const METHOD: &str = "least-squares repair";
        let channels = self.channels(kept)?;
        let (stats, hessian) = (self.stats(METHOD)?, self.hessian(METHOD)?);
        let weights_of_errors = self.weights_of_errors(METHOD)?;
        let (values, size) = (self.layer.values, self.layer.cols());
        let all: Vec<usize> = (0..size).filter(|channel| channels[*channel]).collect();

        let removed: Vec<f32> =
            values.iter().zip(channels.iter().cycle()).map(|(w, k)| if *k { 0.0 } else { *w }).collect();
        let mut fitted = self.correction(&removed, &weights_of_errors, &all)?;
        for (row, before) in fitted.0.chunks_exact_mut(all.len().max(1)).zip(values.chunks_exact(size.max(1)))
        {
            row.iter_mut().zip(&all).for_each(|(to, channel)| *to += before[*channel]);
        }
        let (fitted, damping) = fitted;
        let shape = self.shape_with(all.len())?;
        let layer = Layer::new(&shape, &fitted, self.layer.precision);
        let weight = FloatCast::to(self.layer.precision).compress(&layer)?.weight;

        let mut difference = values.to_vec();
        let decoded = weight.dequantize();
        let rows = decoded.as_slice().unwrap_or_default().chunks_exact(all.len().max(1));
        for (row, left) in difference.chunks_exact_mut(size.max(1)).zip(rows) {
            left.iter().zip(&all).for_each(|(w, channel)| row[*channel] -= w);
        }
        let bias = self.has_bias.then(|| {
            let mean = stats.mean();
            let lost =
                |row: &[f32]| row.iter().zip(&mean).map(|(w, x)| f64::from(*w) * x).sum::<f64>() as f32;
            difference.chunks_exact(size.max(1)).map(lost).collect()
        });
        let of_output = quadratic_form(values, size, hessian);
        let relative = |error: f64| if error <= 0.0 { 0.0 } else { error / of_output };
        let naive_error = relative(quadratic_form(&removed, size, hessian));
        let error = relative(quadratic_form(&difference, size, &weights_of_errors));
        Ok(Repaired { weight, bias, naive_error, error, damping })
    }

    /// `W_R·H_RS·(H_SS + λI)⁻¹`, and the damping that it took.
    fn correction(
        &self,
        removed: &[f32],
        hessian: &[f32],
        kept: &[usize],
    ) -> Result<(Vec<f32>, f64), MethodError> {
        let (size, left) = (self.layer.cols(), kept.len());
        if left == 0 || removed.is_empty() {
            return Ok((Vec::new(), self.damping));
        }
        let mut rows = vec![0f32; self.layer.rows() * left];
        let tiles = SymmetricTiles::new(hessian, size);
        rows.par_chunks_mut(PANEL * left).zip(removed.par_chunks(PANEL * size)).for_each(
            |(rows, removed)| {
                let mut product = vec![0f32; removed.len()];
                tiles.product(removed, &mut product);
                for (row, product) in rows.chunks_exact_mut(left).zip(product.chunks_exact(size)) {
                    row.iter_mut().zip(kept).for_each(|(to, channel)| *to = product[*channel]);
                }
            },
        );
        drop(tiles);
        let (factor, damping) = self.factor(hessian, kept)?;
        solve_rows(Isa::current(), &factor, left, &mut rows);
        Ok((rows, damping))
    }

    /// The factor of what is left of a Hessian, damped, and the damping that it took.
    pub(super) fn factor(&self, hessian: &[f32], kept: &[usize]) -> Result<(Vec<f32>, f64), MethodError> {
        let (size, left) = (self.layer.cols(), kept.len());
        if !(self.damping > 0.0 && self.damping <= MOST_DAMPING) {
            let (option, expected) = ("damping", "above 0 and at most 1");
            return Err(MethodError::Option { option, value: self.damping, expected });
        }
        let failed = |damping: f64, reason: &dyn ToString| MethodError::Hessian {
            size: left,
            damping,
            reason: reason.to_string(),
        };
        if let Some(found) = reduce::first_non_finite(hessian) {
            return Err(failed(0.0, &found));
        }
        let diagonal = || kept.iter().map(|i| f64::from(hessian[i * (size + 1)])).filter(|x| *x > 0.0);
        let count = diagonal().count();
        // nothing was ever seen: whatever is on the diagonal, nothing changes
        let mean = if count > 0 { diagonal().sum::<f64>() / count as f64 } else { 1.0 };
        let mut damping = self.damping;
        loop {
            let mut factor = vec![0f32; left * left];
            factor.par_chunks_mut(left.max(1)).enumerate().for_each(|(i, row)| {
                let from = &hessian[kept[i] * size..][..size];
                row[i..].iter_mut().zip(&kept[i..]).for_each(|(to, j)| *to = from[*j]);
                row[i] = (f64::from(row[i]).max(0.0) + damping * mean) as f32;
            });
            let Err(pivot) = factor_upper(Isa::current(), &mut factor, left) else {
                return Ok((factor, damping));
            };
            if damping >= MOST_DAMPING {
                return Err(failed(damping, &pivot));
            }
            damping = (damping * 10.0).min(MOST_DAMPING);
        }
    }

    /// The weight's shape with so many input features.
    fn shape_with(&self, features: usize) -> Result<Vec<usize>, MethodError> {
        matrix_shape(self.layer.shape)?;
        let mut shape = self.layer.shape.to_vec();
        if let [_, inputs, window @ ..] = shape.as_mut_slice() {
            *inputs = features / window.iter().product::<usize>().max(1);
        }
        Ok(shape)
    }
}
