//! What two slices have in common, and how far they are apart.

mod portable;

use super::level::{Isa, multiversion};

/// Sums over pairs of values, in `f64`.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(crate) struct Sums {
    /// `Σ a²`
    pub(crate) original: f64,
    /// `Σ b²`
    pub(crate) compressed: f64,
    /// `Σ a·b`
    pub(crate) product: f64,
    /// `Σ (a − b)²`
    pub(crate) error: f64,
    /// `max |a − b|`
    pub(crate) max_abs: f64,
}

impl std::ops::Add for Sums {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            original: self.original + other.original,
            compressed: self.compressed + other.compressed,
            product: self.product + other.product,
            error: self.error + other.error,
            max_abs: self.max_abs.max(other.max_abs),
        }
    }
}

multiversion! {
    fn sums_of(original: &[f32], compressed: &[f32]) -> Sums = portable::sums
}

/// The sums over two slices of the same length. The order of additions depends on nothing but the length.
pub(crate) fn sums(original: &[f32], compressed: &[f32]) -> Sums {
    debug_assert_eq!(original.len(), compressed.len());
    sums_of(Isa::current(), original, compressed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_gives_the_same_bits_and_the_definition() {
        for n in [0, 1, 15, 16, 17, 1000] {
            let a: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.013).collect();
            let b: Vec<f32> = a.iter().enumerate().map(|(i, x)| x + (i % 7) as f32 * 1e-3).collect();
            let expected = sums_of(Isa::Portable, &a, &b);
            for isa in Isa::all() {
                assert_eq!(sums_of(isa, &a, &b), expected, "{isa:?}, {n}");
            }
            let mut naive = Sums::default();
            for (a, b) in a.iter().zip(&b).map(|(a, b)| (f64::from(*a), f64::from(*b))) {
                naive = naive
                    + Sums {
                        original: a * a,
                        compressed: b * b,
                        product: a * b,
                        error: (a - b).powi(2),
                        max_abs: (a - b).abs(),
                    };
            }
            assert!((expected.original - naive.original).abs() <= 1e-12 * naive.original);
            assert!((expected.compressed - naive.compressed).abs() <= 1e-12 * naive.compressed);
            assert!((expected.product - naive.product).abs() <= 1e-12 * naive.product);
            assert!((expected.error - naive.error).abs() <= 1e-12 * naive.error);
            assert_eq!(expected.max_abs, naive.max_abs);
        }
    }
}
