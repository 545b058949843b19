use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::file::infinite;
use crate::kernels::CHUNK;
use crate::kernels::compare::{self, Sums};

/// How far a compressed weight is from the original.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WeightErrors {
    /// `‖w − ŵ‖ / ‖w‖`; 0 when both are zero, infinite when only the original is.
    #[serde(deserialize_with = "infinite")]
    pub relative: f64,
    /// Signal-to-quantization-noise ratio `20 · log10(‖w‖ / ‖w − ŵ‖)` in decibels; `None` without error.
    pub sqnr_db: Option<f64>,
    /// Cosine of the angle between them; 1 when both are zero.
    pub cosine: f64,
    /// Largest `|w − ŵ|`.
    pub max_abs: f64,
}

impl WeightErrors {
    /// Compares two weights of the same length. Sums are made in `f64`, in an order that does not depend on threads.
    ///
    /// # Shapes
    /// Both slices have the same length; beyond the shorter one nothing is compared.
    pub fn between(original: &[f32], compressed: &[f32]) -> Self {
        let len = original.len().min(compressed.len());
        let pieces: Vec<Sums> = original[..len]
            .par_chunks(CHUNK)
            .zip(compressed[..len].par_chunks(CHUNK))
            .map(|(original, compressed)| compare::sums(original, compressed))
            .collect();
        Self::from_sums(pieces.into_iter().fold(Sums::default(), |all, piece| all + piece))
    }

    /// The figures that follow from the sums over all values.
    pub(crate) fn from_sums(all: Sums) -> Self {
        let norms = (all.original * all.compressed).sqrt();
        Self {
            relative: if all.error == 0.0 { 0.0 } else { (all.error / all.original).sqrt() },
            sqnr_db: (all.error > 0.0).then(|| 10.0 * (all.original / all.error).log10()),
            cosine: if all.error == 0.0 {
                1.0
            } else if norms == 0.0 {
                0.0
            } else {
                (all.product / norms).min(1.0)
            },
            max_abs: all.max_abs,
        }
    }
}

/// Rows of a matrix whose sums are made together when it is compared block by block: the order of additions follows from
/// the number of columns alone, as long as every block but the last has a multiple of these rows.
pub(crate) fn piece_rows(cols: usize) -> usize {
    let rows = (CHUNK / cols.max(1)).max(1);
    // a power of two: its multiples are mostly those that packed codes ask for
    1 << rows.ilog2()
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_by_hand() {
        let errors = WeightErrors::between(&[3.0, 4.0], &[3.0, 3.0]);
        assert_eq!((errors.relative, errors.max_abs), (0.2, 1.0));
        assert!((errors.sqnr_db.unwrap() - 20.0 * 5f64.log10()).abs() < 1e-12);
        assert!((errors.cosine - 21.0 / (5.0 * 18f64.sqrt())).abs() < 1e-12);
        let none = WeightErrors::between(&[0.0, 1.0], &[0.0, 1.0]);
        assert_eq!((none.relative, none.sqnr_db, none.cosine), (0.0, None, 1.0));
        assert_eq!(WeightErrors::between(&[0.0], &[1.0]).relative, f64::INFINITY);
        let lost = WeightErrors::between(&[2.0], &[0.0]);
        assert_eq!((lost.relative, lost.cosine, lost.sqnr_db), (1.0, 0.0, Some(0.0)));
    }
}
