use crate::evaluate::Better;

/// Which of some points no other beats: none is at most as large and at least as good, and better in one of the two.
///
/// `points` are a size (or another cost, of which less is better) and a quality, of which `better` tells the direction.
/// Points that are equal in both beat each other not; one with NaN is never on the front.
pub fn pareto_front(points: &[[f64; 2]], better: Better) -> Vec<bool> {
    let gain = |point: &[f64; 2]| if better == Better::Higher { point[1] } else { -point[1] };
    let is_number = |point: &[f64; 2]| point.iter().all(|value| !value.is_nan());
    let beats =
        |a: &[f64; 2], b: &[f64; 2]| a[0] <= b[0] && gain(a) >= gain(b) && (a[0] < b[0] || gain(a) > gain(b));
    points.iter().map(|point| is_number(point) && !points.iter().any(|other| beats(other, point))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_by_hand() {
        // equal points stay together; (2, 5) is beaten by (1, 5), (3, 6) by (3, 7)
        let points =
            [[1.0, 5.0], [2.0, 5.0], [3.0, 7.0], [3.0, 6.0], [1.0, 5.0], [0.5, 1.0], [0.1, f64::NAN]];
        assert_eq!(pareto_front(&points, Better::Higher), [true, false, true, false, true, true, false]);
        // of perplexities the lowest: now (0.5, 1) beats all
        assert_eq!(pareto_front(&points, Better::Lower), [false, false, false, false, false, true, false]);
        assert!(pareto_front(&[], Better::Lower).is_empty());
    }
}
