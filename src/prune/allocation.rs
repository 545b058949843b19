use super::magnitude::Sparsity;

/// How much of a common sparsity each of several layers takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Allocation {
    /// As much as the smallest magnitudes of all layers, taken together, are in it.
    Global,
    /// By shape: small layers keep more, see [`erdos_renyi_kernel`].
    ErdosRenyiKernel,
    /// By what pruning costs each layer, see [`by_sensitivity`](crate::by_sensitivity): with calibration samples, its output
    /// ([`Plan::calibrated`](crate::Plan::calibrated)); without, its weights.
    Sensitivity,
}

/// The sparsities of layers by their shapes, so that all together lose the share that is asked for: a layer keeps a fraction
/// proportional to the sum of its dimensions by their product, and all of it where that would be more than all.
///
/// Evci et al., "Rigging the Lottery: Making All Tickets Winners" (2020), section 3: Erdős–Rényi-Kernel; for linear layers
/// that of Mocanu et al. (2018).
///
/// ```
/// use tersor::{Sparsity, erdos_renyi_kernel};
///
/// let of = erdos_renyi_kernel(&[&[300, 784], &[100, 300], &[10, 100]], Sparsity::new(0.9)?);
/// let percent: Vec<f64> = of.iter().map(|s| (s.get() * 100.0).round()).collect();
/// assert_eq!(percent, [92.0, 77.0, 0.0]);
/// # Ok::<(), tersor::MethodError>(())
/// ```
pub fn erdos_renyi_kernel(shapes: &[&[usize]], sparsity: Sparsity) -> Vec<Sparsity> {
    let product = |shape: &[usize]| shape.iter().product::<usize>() as f64;
    let sum = |shape: &[usize]| shape.iter().sum::<usize>() as f64;
    let all: f64 = shapes.iter().map(|shape| product(shape)).sum();
    // what stays of the layers that are not kept whole; a layer of a share s keeps factor · sum of dimensions
    let mut stays = all * (1.0 - sparsity.get());
    let mut whole = vec![false; shapes.len()];
    loop {
        let rest = || shapes.iter().enumerate().filter(|(i, _)| !whole[*i]).map(|(_, shape)| *shape);
        let factor = stays / rest().map(sum).sum::<f64>();
        // the densest first: without it the others get less
        let density = |shape: &[usize]| factor * sum(shape) / product(shape);
        let densest = rest().map(density).fold(0.0, f64::max);
        if densest <= 1.0 || densest.is_nan() {
            let of = |(i, shape): (usize, &&[usize])| {
                let share = if whole[i] || product(shape) == 0.0 { 0.0 } else { 1.0 - density(shape) };
                Sparsity::new(share).unwrap_or(sparsity)
            };
            return shapes.iter().enumerate().map(of).collect();
        }
        for (i, shape) in shapes.iter().enumerate() {
            if !whole[i] && density(shape) >= densest {
                whole[i] = true;
                stays -= product(shape);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_more_than_whole_is_whole_and_the_total_is_that_asked_for() {
        let shapes: [&[usize]; 4] = [&[300, 784], &[100, 300], &[10, 100], &[6, 1, 5, 5]];
        for asked in [0.0, 0.3, 0.5, 0.9, 0.98] {
            let of = erdos_renyi_kernel(&shapes, Sparsity::new(asked).unwrap());
            let count = |shape: &[usize]| shape.iter().product::<usize>() as f64;
            let gone: f64 = shapes.iter().zip(&of).map(|(shape, s)| count(shape) * s.get()).sum();
            let all: f64 = shapes.iter().map(|shape| count(shape)).sum();
            assert!((gone / all - asked).abs() < 1e-9, "{asked}: {gone} of {all}");
            // those that are not whole keep in proportion to the sum of their dimensions
            let factors: Vec<f64> = shapes
                .iter()
                .zip(&of)
                .filter(|(_, s)| s.get() > 0.0)
                .map(|(shape, s)| (1.0 - s.get()) * count(shape) / shape.iter().sum::<usize>() as f64)
                .collect();
            assert!(factors.windows(2).all(|w| (w[0] / w[1] - 1.0).abs() < 1e-9), "{asked}: {factors:?}");
        }
    }

    #[test]
    fn nothing_and_empty_layers_are_no_trouble() {
        let half = Sparsity::new(0.5).unwrap();
        assert!(erdos_renyi_kernel(&[], half).is_empty());
        assert_eq!(erdos_renyi_kernel(&[&[0, 5], &[2, 2]], half)[1].get(), 0.5);
    }
}
