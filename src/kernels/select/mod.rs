//! Exact selection by magnitude: no sort and no copy of the weights.

mod portable;

pub(crate) use portable::{RADIX_PASSES, keep_n_of_m, magnitude_bits, radix_digit, radix_histogram};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n_of_m_keeps_the_largest_and_the_first_of_equals() {
        let mut keep = [false; 4];
        keep_n_of_m(&[1.0, -3.0, 2.0, 0.5], 2, &mut keep);
        assert_eq!(keep, [false, true, true, false]);
        keep_n_of_m(&[1.0, -1.0, 1.0, 1.0], 2, &mut keep);
        assert_eq!(keep, [true, true, false, false]);
        keep_n_of_m(&[0.0, 0.0, 0.0, 5.0], 2, &mut keep);
        assert_eq!(keep, [true, false, false, true]);
        let mut tail = [false; 3];
        keep_n_of_m(&[1.0, 2.0, 3.0], 5, &mut tail);
        assert_eq!(tail, [true; 3]);
    }

    #[test]
    fn magnitude_bits_order_like_magnitudes() {
        let values = [0.0f32, -1e-45, 1e-40, -0.5, 0.5f32.next_up(), -3e38];
        assert!(values.windows(2).all(|w| magnitude_bits(w[0]) < magnitude_bits(w[1])));
        assert_eq!(magnitude_bits(-0.0), magnitude_bits(0.0));
    }
}
