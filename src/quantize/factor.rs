//! The factorized Hessian that methods go by which make good what becomes of one column in the later ones.

use rayon::prelude::*;

use super::damping::Damping;
use crate::kernels::cholesky::factor_upper;
use crate::kernels::level::Isa;
use crate::kernels::memory::zeros;
use crate::kernels::reduce;
use crate::layer::MethodError;

/// Fractions of the mean diagonal that are tried, from the one asked for on, until the Hessian can be factorized.
const DAMPING: [f64; 5] = [0.01, 0.03, 0.1, 0.3, 1.0];

/// A factorized Hessian, `H + λI = U·Uᵀ`, its columns in the order of their turn.
pub(crate) struct Factor {
    /// `U`, `[size, size]`.
    pub(crate) upper: Vec<f32>,
    /// Numbers of the columns in the order of their turn.
    pub(crate) order: Vec<usize>,
    /// Whether that is from left to right.
    pub(crate) in_order: bool,
    /// Fraction of the mean diagonal that was added.
    pub(crate) damping: f64,
    /// What was added, and what dead channels have been given.
    pub(crate) added: Vec<f32>,
    /// Whether the channel's input was always zero, by turn.
    dead: Vec<bool>,
    asked: f64,
}

impl Factor {
    /// Factorizes a Hessian, with its columns in their order, or those with the largest diagonal elements first.
    ///
    /// Added to the diagonal is a fraction of its mean over the channels that are not dead: `damping`, or where that is not
    /// enough the next larger of 0.01, 0.03, 0.1, 0.3 and 1. [`Damping::shrinkage`] enlarges all of the diagonal.
    ///
    /// # Shapes
    /// `hessian` is `[size, size]`.
    ///
    /// # Errors
    /// When it holds NaN or infinity, or no damping helps.
    pub(crate) fn new(
        hessian: &[f32],
        size: usize,
        largest_first: bool,
        asked: Damping,
    ) -> Result<Self, MethodError> {
        let mut order: Vec<usize> = (0..size).collect();
        if largest_first {
            order.sort_by(|a, b| hessian[b * (size + 1)].total_cmp(&hessian[a * (size + 1)]));
        }
        let failed = |damping: f64, reason: &dyn ToString| MethodError::Hessian {
            size,
            damping,
            reason: reason.to_string(),
        };
        if let Some(found) = reduce::first_non_finite(hessian) {
            return Err(failed(0.0, &found));
        }
        let diagonal = || hessian.iter().step_by(size + 1).map(|x| f64::from(*x)).filter(|x| *x > 0.0);
        let mean = diagonal().sum::<f64>() / diagonal().count().max(1) as f64;
        // what is dead stands alone, whatever is on the diagonal
        let alone = if mean > 0.0 { mean } else { 1.0 };
        let mut damping = asked.mean();
        loop {
            let mut upper = zeros(size * size);
            upper.par_chunks_mut(size.max(1)).enumerate().for_each(|(i, row)| {
                let from = &hessian[order[i] * size..][..size];
                if largest_first {
                    row[i..].iter_mut().zip(&order[i..]).for_each(|(to, j)| *to = from[*j]);
                } else {
                    row[i..].copy_from_slice(&from[i..]);
                }
                let own = if row[i] > 0.0 { f64::from(row[i]) } else { alone };
                row[i] = ((own + damping * mean) * asked.scale()) as f32;
            });
            let diagonal = upper.iter().step_by(size + 1).zip(&order);
            let added = diagonal.map(|(with, j)| with - hessian[j * (size + 1)]).collect();
            let dead = order.iter().map(|j| hessian[j * (size + 1)] <= 0.0).collect();
            let Err(pivot) = factor_upper(Isa::current(), &mut upper, size) else {
                let in_order = order.is_sorted();
                return Ok(Self { upper, order, in_order, damping, added, dead, asked: asked.mean() });
            };
            damping = *DAMPING.iter().find(|next| **next > damping).ok_or_else(|| failed(damping, &pivot))?;
        }
    }

    /// Input features.
    pub(crate) fn size(&self) -> usize {
        self.order.len()
    }

    /// What the output loses, as a square root, for each unit of a weight that is dropped when its column's turn comes, if later
    /// columns make good for it: `U_jj`; nothing where the input was always zero.
    pub(crate) fn cost(&self, turn: usize) -> f32 {
        if self.dead[turn] { 0.0 } else { self.upper[turn * (self.size() + 1)] }
    }

    /// What is to be said when more damping was taken than was asked for.
    pub(crate) fn note(&self) -> Option<String> {
        let Self { asked, damping, .. } = self;
        (damping > asked)
            .then(|| format!("the Hessian could not be factorized with damping {asked}: {damping} was taken"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrinkage_takes_from_what_channels_have_in_common() {
        let hessian = [4.0, 1.0, -0.5, 1.0, 2.0, 0.75, -0.5, 0.75, 1.0];
        let shrunk: Vec<f32> =
            hessian.iter().enumerate().map(|(at, x)| if at % 4 == 0 { *x } else { 0.75 * x }).collect();
        let found = Factor::new(&hessian, 3, false, Damping::of_mean(0.1).shrinkage(0.25)).unwrap();
        let expected = Factor::new(&shrunk, 3, false, Damping::of_mean(0.1)).unwrap();
        for i in 0..3 {
            for j in i..3 {
                let [found, expected] = [&found, &expected].map(|factor| factor.upper[i * 3 + j]);
                approx::assert_relative_eq!(found * 0.75f32.sqrt(), expected, max_relative = 1e-5);
            }
        }
    }

    #[test]
    fn a_hessian_that_is_none_is_refused() {
        let refused =
            |hessian: &[f32]| Factor::new(hessian, 2, false, Damping::default()).err().unwrap().to_string();
        // negative beyond what the largest damping makes good
        let text = refused(&[1.0, 9.0, 9.0, 1.0]);
        assert!(text.contains("of 2 input features") && text.contains("even with 1 of its mean"), "{text}");
        assert!(text.contains("pivot 0 is"), "{text}");
        let text = refused(&[1.0, f32::NAN, 0.0, 1.0]);
        assert!(text.contains("NaN"), "{text}");
    }
}
