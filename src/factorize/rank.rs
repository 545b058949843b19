use std::fmt;
use std::num::NonZeroUsize;

use super::svd::Matrix;
use crate::layer::MethodError;
use crate::weight::{Coding, LowRankForm};

/// How many components a factorization keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rank(Kind);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Fixed(NonZeroUsize),
    Energy(f64),
    Bytes(f64),
}

impl Rank {
    /// So many, or all that a smaller matrix has.
    pub fn fixed(rank: NonZeroUsize) -> Self {
        Self(Kind::Fixed(rank))
    }

    /// As few as keep this share of the weight's energy, the sum of the squares of its values, which is that of its singular
    /// values. Whoever plans such a step reads the weights.
    ///
    /// # Errors
    /// When the share is not above 0 and at most 1.
    pub fn energy(share: f64) -> Result<Self, MethodError> {
        check("the share of energy", share, share > 0.0 && share <= 1.0, "above 0 and at most 1")?;
        Ok(Self(Kind::Energy(share)))
    }

    /// As many as fit in this share of the bytes that the weight takes as dense floats of the model's precision.
    ///
    /// # Errors
    /// When the share is not above 0 and below 1.
    pub fn bytes(share: f64) -> Result<Self, MethodError> {
        check("the share of bytes", share, share > 0.0 && share < 1.0, "above 0 and below 1")?;
        Ok(Self(Kind::Bytes(share)))
    }

    /// Whether it takes the values of a weight to know its rank.
    pub fn depends_on_values(self) -> bool {
        matches!(self.0, Kind::Energy(_))
    }

    /// The rank of factors of a `[rows, cols]` weight; 0 if none fits. `values` is asked for the weight's values if the rank
    /// depends on them.
    ///
    /// # Shapes
    /// The values are `[rows, cols]`, and finite.
    ///
    /// # Errors
    /// That of `values`.
    pub fn of<'v, E>(
        self,
        [rows, cols]: [usize; 2],
        dense: Coding,
        factors: Coding,
        values: impl FnOnce() -> Result<std::borrow::Cow<'v, [f32]>, E>,
    ) -> Result<usize, E> {
        let most = rows.min(cols);
        let bytes = |rank| LowRankForm { rank, coding: factors }.bytes(rows, cols);
        Ok(match self.0 {
            Kind::Fixed(rank) => rank.get().min(most),
            Kind::Bytes(share) => {
                let size = match dense {
                    Coding::Float(precision) => precision.size(),
                    _ => size_of::<f32>(),
                };
                let room = (share * (rows * cols * size) as f64) as u64;
                // bytes grow with the rank: the last that fits
                let (mut fits, mut beyond) = (0, most + 1);
                while beyond - fits > 1 {
                    let rank = usize::midpoint(fits, beyond);
                    if bytes(rank) <= room { fits = rank } else { beyond = rank }
                }
                fits
            }
            Kind::Energy(share) => {
                let values = values()?;
                let squares = Matrix { values: &values, rows, cols }.squared_singular_values();
                let all: f64 = squares.iter().sum();
                let mut sum = 0.0;
                let kept = squares.iter().take_while(|square| {
                    let before = sum;
                    sum += **square;
                    before < share * all
                });
                kept.count().max(usize::from(most > 0))
            }
        })
    }
}

fn check(option: &'static str, value: f64, holds: bool, expected: &'static str) -> Result<(), MethodError> {
    if holds { Ok(()) } else { Err(MethodError::Option { option, value, expected }) }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Kind::Fixed(rank) => write!(f, "rank {rank}"),
            Kind::Energy(share) => write!(f, "rank by {} % of the energy", 100.0 * share),
            Kind::Bytes(share) => write!(f, "rank by {} % of the bytes", 100.0 * share),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::dtype::Precision;

    fn of(rank: Rank, shape: [usize; 2], values: &[f32]) -> usize {
        let coding = Coding::Float(Precision::F16);
        rank.of(shape, coding, coding, || Ok::<_, Infallible>(values.into())).unwrap()
    }

    #[test]
    fn ranks_by_hand() {
        let fixed = Rank::fixed(NonZeroUsize::new(3).unwrap());
        assert_eq!([of(fixed, [5, 9], &[]), of(fixed, [2, 9], &[]), of(fixed, [0, 9], &[])], [3, 2, 0]);
        // 14 values a component, and 45 of the weight
        let bytes = |share| of(Rank::bytes(share).unwrap(), [5, 9], &[]);
        assert_eq!([bytes(0.3), bytes(14.0 / 45.0), bytes(0.99)], [0, 1, 3]);
        // singular values 4, 2, 1: energies 16, 4, 1
        let values = [0.0, 2.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0];
        let energy = |share| of(Rank::energy(share).unwrap(), [3, 4], &values);
        assert_eq!(
            [energy(0.5), energy(0.76), energy(0.77), energy(0.95), energy(0.96), energy(1.0)],
            [1, 1, 2, 2, 3, 3]
        );
        assert_eq!(of(Rank::energy(0.9).unwrap(), [2, 2], &[0.0; 4]), 1);
        for share in [0.0, 1.1, -1.0, f64::NAN] {
            assert!(Rank::energy(share).is_err() && Rank::bytes(share).is_err(), "{share}");
        }
        assert!(Rank::bytes(1.0).is_err());
    }
}
