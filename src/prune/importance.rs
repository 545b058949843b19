use super::consumer::Consumer;
use super::elimination::eliminate;
use crate::layer::{MethodError, Needs};

/// By what units are judged: those that count least are left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Importance {
    /// The Euclidean norm of all weights that go with the unit, in the layers that make it and in the one that takes it (Li et
    /// al., "Pruning Filters for Efficient `ConvNets`", 2017; groups as in Fang et al., "`DepGraph`", 2023).
    Magnitude,
    /// The mean square of what the unit gives.
    Activation,
    /// `Σ |W|·‖x‖` over the weights that the unit's channels meet: Wanda's score (Sun et al., 2023), summed over the rows.
    #[default]
    Wanda,
    /// What the output of the layer that takes it loses without the unit when the others make good what they can, one unit after
    /// the other: `W_g·(H⁻¹_gg)⁻¹·W_gᵀ`, after which `W` and `H⁻¹` are what they are without it (Kurtić et al., `ZipLM`, 2023,
    /// algorithm 1; Hassibi & Stork, 1993).
    Reconstruction,
}

impl Importance {
    /// Names that [`from_name`](Self::from_name) knows, and what they are.
    pub const NAMES: [(&'static str, &'static str); 4] = [
        ("wanda", "weights that take it times the norm of what it gives"),
        ("activation", "mean square of what the unit gives"),
        ("magnitude", "norm of all weights that go with the unit; needs no calibration"),
        ("reconstruction", "what the next layer's output loses when the other units make good what they can"),
    ];

    /// The importance of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "magnitude" => Some(Self::Magnitude),
            "activation" => Some(Self::Activation),
            "wanda" => Some(Self::Wanda),
            "reconstruction" => Some(Self::Reconstruction),
            _ => None,
        }
    }

    /// What must be known of the input of the layer that takes the units.
    pub fn needs(self) -> Needs {
        match self {
            Self::Magnitude => Needs::Nothing,
            Self::Activation | Self::Wanda => Needs::Channels,
            Self::Reconstruction => Needs::Hessian,
        }
    }

    /// Which units stay: the `keep` most important; among equals the ones with the lower index.
    ///
    /// # Shapes
    /// `makers` has for every unit the sum of the squared weights that make it; only [`Magnitude`](Self::Magnitude) looks
    /// at it. The result has one entry per unit.
    ///
    /// # Errors
    /// When calibration did not see what is needed, a weight is not finite, or the number of units is not the layer's.
    pub fn choose(
        self,
        consumer: &Consumer<'_>,
        makers: &[f64],
        keep: usize,
    ) -> Result<Vec<bool>, MethodError> {
        let units = consumer.units();
        // this also checks weights and units
        consumer.channels(&vec![true; units])?;
        let scores = match self {
            Self::Reconstruction => return eliminate(consumer, units.saturating_sub(keep)),
            Self::Magnitude => {
                let taken = of_units(consumer, |w, _| w * w, &[]);
                taken.iter().zip(makers.iter().chain(std::iter::repeat(&0.0))).map(|(a, b)| a + b).collect()
            }
            Self::Activation => {
                let squares = consumer.stats("the mean square of units")?.mean_square();
                squares.chunks(consumer.width).map(|unit| unit.iter().sum()).collect()
            }
            Self::Wanda => {
                let squares = consumer.stats("Wanda's score")?.mean_square();
                let norms: Vec<f64> = squares.into_iter().map(f64::sqrt).collect();
                of_units(consumer, |w, norm| w.abs() * norm, &norms)
            }
        };
        let mut order: Vec<usize> = (0..units).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        let mut kept = vec![false; units];
        for unit in order.into_iter().take(keep) {
            kept[unit] = true;
        }
        Ok(kept)
    }
}

/// Sums over the weights that meet a unit's channels, in one order.
fn of_units(consumer: &Consumer<'_>, of: impl Fn(f64, f64) -> f64, norms: &[f64]) -> Vec<f64> {
    let cols = consumer.layer.cols();
    let mut sums = vec![0f64; cols];
    for row in consumer.layer.values.chunks_exact(cols.max(1)) {
        for (channel, (sum, w)) in sums.iter_mut().zip(row).enumerate() {
            *sum += of(f64::from(*w), norms.get(channel).copied().unwrap_or(1.0));
        }
    }
    sums.chunks(consumer.width).map(|unit| unit.iter().sum()).collect()
}
