//! In which order samples are learned from.

/// The samples in an order in which neighbours, which come from one text, are far apart: steps of the golden section.
pub(crate) fn spread(number: usize, samples: usize) -> usize {
    let (round, at) = (number / samples.max(1), number % samples.max(1));
    let mut stride = ((samples as f64 * 0.618_033_988_75) as usize).max(1);
    while gcd(stride, samples) > 1 {
        stride += 1;
    }
    (at * stride + round) % samples.max(1)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_takes_every_sample_once_and_neighbours_are_far_apart() {
        for samples in [1, 2, 3, 12, 128] {
            for round in 0..3 {
                let mut taken: Vec<usize> =
                    (round * samples..(round + 1) * samples).map(|number| spread(number, samples)).collect();
                if samples > 12 {
                    assert!(taken.windows(2).all(|two| two[0].abs_diff(two[1]) > samples / 4));
                }
                taken.sort_unstable();
                assert!(taken.into_iter().eq(0..samples));
            }
        }
    }
}
