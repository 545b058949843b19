//! Rotary position embeddings (Su et al., 2021), in the order of Hugging Face: a head's first half of values is the real
//! part, its second half the imaginary part.

use super::level::{Isa, multiversion};

/// Rotates every head of one token by its position's angles.
///
/// # Shapes
/// `cos` and `sin` have a value for each half of a head's values; `heads` is a whole number of heads.
///
/// # Panics
/// When they are not.
pub(crate) fn rotate(isa: Isa, heads: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert_eq!(cos.len(), sin.len(), "angles");
    assert!(heads.len().is_multiple_of((cos.len() * 2).max(1)), "values of whole heads");
    if !cos.is_empty() {
        rotate_in(isa, heads, cos, sin);
    }
}

multiversion! {
    fn rotate_in(heads: &mut [f32], cos: &[f32], sin: &[f32]) = rotate_body
}

#[inline(always)]
fn rotate_body(heads: &mut [f32], cos: &[f32], sin: &[f32]) {
    for head in heads.chunks_exact_mut(cos.len() * 2) {
        let (real, imaginary) = head.split_at_mut(cos.len());
        for (((re, im), cos), sin) in real.iter_mut().zip(imaginary).zip(cos).zip(sin) {
            (*re, *im) = (*re * cos - *im * sin, *im * cos + *re * sin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_turn() {
        let mut heads = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        rotate(Isa::Portable, &mut heads, &[0.0, 1.0], &[1.0, 0.0]);
        assert_eq!(heads, [-3.0, 2.0, 1.0, 4.0, -7.0, 6.0, 5.0, 8.0]);
    }
}
