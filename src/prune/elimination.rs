//! Units that go one after the other, each time the one whose loss the others can make good best.

use std::ops::Range;

use rayon::prelude::*;

use super::consumer::Consumer;
use crate::kernels::cholesky::solve_rows;
use crate::kernels::level::Isa;
use crate::layer::MethodError;

/// Rounds of choosing; of more units, several go at a time.
const MAX_ROUNDS: usize = 512;

/// Which units stay when so many go.
pub(super) fn eliminate(consumer: &Consumer<'_>, remove: usize) -> Result<Vec<bool>, MethodError> {
    const METHOD: &str = "the reconstruction error of units";
    let (units, width, size) = (consumer.units(), consumer.width, consumer.layer.cols());
    let mut kept = vec![true; units];
    if remove == 0 {
        return Ok(kept);
    }
    let hessian = consumer.weights_of_errors(METHOD)?;
    let (factor, _) = consumer.factor(&hessian, &(0..size).collect::<Vec<_>>())?;
    let mut state = State::new(consumer, &factor);
    drop(factor);

    let at_once = remove.div_ceil(MAX_ROUNDS);
    let mut left = remove.min(units);
    while left > 0 {
        let candidates: Vec<usize> = (0..units).filter(|unit| kept[*unit]).collect();
        let mut scored = candidates
            .par_iter()
            .map(|unit| Some((state.error_without(unit * width..(unit + 1) * width)?, *unit)))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| singular(consumer))?;
        scored.sort_by(|(a, i), (b, j)| a.total_cmp(b).then(j.cmp(i)));
        let gone: Vec<usize> = scored.iter().take(at_once.min(left)).map(|(_, unit)| *unit).collect();
        let channels = gone.iter().flat_map(|unit| unit * width..(unit + 1) * width).collect::<Vec<_>>();
        state.remove(&channels).ok_or_else(|| singular(consumer))?;
        left -= gone.len();
        for unit in gone {
            kept[unit] = false;
        }
    }
    Ok(kept)
}

fn singular(consumer: &Consumer<'_>) -> MethodError {
    MethodError::Hessian {
        size: consumer.layer.cols(),
        damping: consumer.damping,
        reason: "a unit's part of its inverse is not positive definite".into(),
    }
}

/// The weights and the inverse of the Hessian, as they are without the units that have gone.
struct State {
    size: usize,
    /// The weights that take each channel, `[size, rows]`.
    columns: Vec<f32>,
    rows: usize,
    /// `[size, size]`, symmetric.
    inverse: Vec<f32>,
}

impl State {
    fn new(consumer: &Consumer<'_>, factor: &[f32]) -> Self {
        let (size, rows) = (consumer.layer.cols(), consumer.layer.rows());
        let mut columns = vec![0f32; size * rows];
        columns.par_chunks_exact_mut(rows.max(1)).enumerate().for_each(|(channel, column)| {
            let weights = consumer.layer.values.iter().skip(channel).step_by(size);
            column.iter_mut().zip(weights).for_each(|(to, w)| *to = *w);
        });
        let mut inverse = vec![0f32; size * size];
        inverse.iter_mut().step_by(size + 1).for_each(|x| *x = 1.0);
        solve_rows(Isa::current(), factor, size, &mut inverse);
        Self { size, columns, rows, inverse }
    }

    /// What the output loses without some channels, when the others make good what they can; `None` if that cannot be told.
    fn error_without(&self, channels: Range<usize>) -> Option<f64> {
        let factor = Small::new(&self.inverse, self.size, &channels.clone().collect::<Vec<_>>())?;
        let columns = &self.columns[channels.start * self.rows..channels.end * self.rows];
        let mut columns: Vec<f64> = columns.iter().map(|w| f64::from(*w)).collect();
        // ‖L⁻¹·w‖² is w·(L·Lᵀ)⁻¹·w
        factor.forward(&mut columns, self.rows);
        Some(columns.iter().map(|x| x * x).sum())
    }

    /// Takes channels out.
    fn remove(&mut self, channels: &[usize]) -> Option<()> {
        let Self { size, rows, .. } = *self;
        let factor = Small::new(&self.inverse, size, channels)?;
        // (H⁻¹_gg)⁻¹ · H⁻¹_g:
        let mut shares: Vec<f64> = Vec::with_capacity(channels.len() * size);
        for channel in channels {
            shares.extend(self.inverse[channel * size..][..size].iter().map(|x| f64::from(*x)));
        }
        factor.forward(&mut shares, size);
        factor.backward(&mut shares, size);
        let shares: Vec<f32> = shares.into_iter().map(|x| x as f32).collect();
        let of_channel = |channel: usize| shares.iter().skip(channel).step_by(size);
        let gone: Vec<f32> =
            channels.iter().flat_map(|channel| &self.columns[channel * rows..][..rows]).copied().collect();

        let columns = self.columns.par_chunks_exact_mut(rows.max(1));
        columns.zip(self.inverse.par_chunks_exact_mut(size)).enumerate().for_each(
            |(channel, (column, row))| {
                if channels.contains(&channel) {
                    column.fill(0.0);
                    row.fill(0.0);
                    return;
                }
                let theirs: Vec<f32> = channels.iter().map(|other| row[*other]).collect();
                for (gone, share) in gone.chunks_exact(rows.max(1)).zip(of_channel(channel)) {
                    column.iter_mut().zip(gone).for_each(|(to, w)| *to -= share * w);
                }
                for (factor, share) in theirs.iter().zip(shares.chunks_exact(size)) {
                    row.iter_mut().zip(share).for_each(|(to, x)| *to -= factor * x);
                }
                for other in channels {
                    row[*other] = 0.0;
                }
            },
        );
        Some(())
    }
}

/// The lower Cholesky factor of a small matrix, in `f64`.
struct Small {
    size: usize,
    factor: Vec<f64>,
}

impl Small {
    /// Factorizes the block of a matrix that some rows and columns form; `None` if it is not positive definite.
    fn new(matrix: &[f32], stride: usize, channels: &[usize]) -> Option<Self> {
        let size = channels.len();
        let mut factor = vec![0f64; size * size];
        for (i, a) in channels.iter().enumerate() {
            for (j, b) in channels[..=i].iter().enumerate() {
                let dot: f64 = (0..j).map(|k| factor[i * size + k] * factor[j * size + k]).sum();
                let rest = f64::from(matrix[a * stride + b]) - dot;
                factor[i * size + j] = if i > j {
                    rest / factor[j * size + j]
                } else if rest > 0.0 && rest.is_finite() {
                    rest.sqrt()
                } else {
                    return None;
                };
            }
        }
        Some(Self { size, factor })
    }

    /// Replaces `B`, `[size, cols]`, by `L⁻¹·B`.
    fn forward(&self, rows: &mut [f64], cols: usize) {
        if cols == 0 {
            return;
        }
        for i in 0..self.size {
            let (before, row) = rows.split_at_mut(i * cols);
            let row = &mut row[..cols];
            for (k, other) in before.chunks_exact(cols).enumerate() {
                let factor = self.factor[i * self.size + k];
                row.iter_mut().zip(other).for_each(|(to, x)| *to -= factor * x);
            }
            let pivot = self.factor[i * (self.size + 1)];
            for x in row.iter_mut() {
                *x /= pivot;
            }
        }
    }

    /// Replaces `B`, `[size, cols]`, by `L⁻ᵀ·B`.
    fn backward(&self, rows: &mut [f64], cols: usize) {
        if cols == 0 {
            return;
        }
        for i in (0..self.size).rev() {
            let (row, after) = rows[i * cols..].split_at_mut(cols);
            for (k, other) in after.chunks_exact(cols).enumerate() {
                let factor = self.factor[(i + 1 + k) * self.size + i];
                row.iter_mut().zip(other).for_each(|(to, x)| *to -= factor * x);
            }
            let pivot = self.factor[i * (self.size + 1)];
            for x in row.iter_mut() {
                *x /= pivot;
            }
        }
    }
}
