use super::affine::Affine;
use super::calibrated::{self, Found, Plain};
use super::damping::Damping;
use super::factor::Factor;
use super::observer::Observer;
use super::round::{self, CodeType, RoundToNearest};
use super::sweep::{self, Codes, Swept};
use crate::kernels::mask::as_signed;
use crate::layer::{Alternative, Compressed, Layer, Method, MethodError, Needs};
use crate::prune::{Magnitude, SparsityPattern};
use crate::weight::{Bits, Coding, CompressedWeight, DenseValues, Granularity, Mask, Scales};

/// GPTQ: rounds column by column, each making good what the rounding of earlier columns did to the layer's output.
///
/// Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022). The paper's
/// equation 3 updates the later weights with rows of the Cholesky factor of `H⁻¹`; here `H + λI = U·Uᵀ` with `U` upper triangular
/// gives the same values without an inverse: column `j` becomes the code nearest to
/// `w_j + Σ_{i<j} U_ij (w_i − q_i) / U_jj`.
///
/// - Scales of a group are found, by the [`Observer`], from its weights as they stand when their turn comes, or with
///   [`static_groups`](Self::static_groups) from the weights of the layer. Whole channels, tensors and blocks always have the
///   latter.
/// - `λ` is a fraction of the mean of `H`'s diagonal over the channels that are not dead; with a [`Damping::shrinkage`] what
///   channels have in common counts for less. When the factorization fails, the next larger of 0.01, 0.03, 0.1, 0.3 and 1 is
///   taken, which the outcome notes.
/// - The weights of dead channels (whose input was always zero) change nothing and are rounded to nearest.
/// - Weights that were pruned before stay zero; the others change without them.
/// - With [`pruning`](Self::pruning) weights are pruned in the same sweep, and the others make good that, too.
/// - Of the result and plain rounding to nearest (of the largest weights, when it prunes) the one with the smaller error of the
///   output is kept.
///
/// ```
/// use tersor::{Bits, Gptq, Layer, LayerStats, Method, Needs, Precision};
///
/// let values = [0.4, 0.4, 7.5];
/// let mut stats = LayerStats::new(3, Needs::Hessian);
/// // the first two channels always are the same, the third is another
/// stats.observe(ndarray::array![[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]].view())?;
/// let mut layer = Layer::new(&[1, 3], &values, Precision::F32);
/// layer.stats = Some(&stats);
///
/// let compressed = Gptq::int(Bits::new(4).unwrap()).compress(&layer)?;
/// // their sum, 0.8, is rounded, not each by itself
/// assert_eq!(compressed.weight.dequantize().as_slice().unwrap(), [0.0, 1.0, 7.0]);
/// let outcome = compressed.outcome.unwrap();
/// assert!(outcome.method_error < outcome.plain_error);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gptq {
    rounding: RoundToNearest,
    act_order: bool,
    static_groups: bool,
    damping: Damping,
    pruning: Option<SparsityPattern>,
}

impl Gptq {
    /// Symmetric integers, one scale per channel, range from smallest to largest value.
    pub fn int(bits: Bits) -> Self {
        Self::codes(CodeType::Int { bits, symmetric: true })
    }

    /// Codes of this type, one scale per channel, range from smallest to largest value.
    pub fn codes(codes: CodeType) -> Self {
        let rounding = RoundToNearest::codes(codes);
        Self { rounding, act_order: false, static_groups: false, damping: Damping::default(), pruning: None }
    }

    /// Chooses which weights share a scale.
    #[must_use]
    pub fn granularity(self, granularity: Granularity) -> Self {
        Self { rounding: self.rounding.granularity(granularity), ..self }
    }

    /// Chooses how the range of each tile is found.
    #[must_use]
    pub fn observer(self, observer: Observer) -> Self {
        Self { rounding: self.rounding.observer(observer), ..self }
    }

    /// Chooses whether columns are rounded in the order of their input's mean square, largest first, instead of from left to
    /// right. Groups then are static, so that they stay where they are.
    #[must_use]
    pub fn act_order(self, act_order: bool) -> Self {
        Self { act_order, ..self }
    }

    /// Chooses whether the scales of groups are those of the weights before anything is rounded.
    #[must_use]
    pub fn static_groups(self, static_groups: bool) -> Self {
        Self { static_groups, ..self }
    }

    /// Chooses what is added to the Hessian's diagonal: a fraction of its mean, 0.01 unless chosen, or more.
    #[must_use]
    pub fn damping(self, damping: impl Into<Damping>) -> Self {
        Self { damping: damping.into(), ..self }
    }

    /// The same with this damping, if it has less; what is no number is found out when a layer is compressed.
    pub(crate) fn damped_at_least(self, damping: Damping) -> Self {
        Self { damping: self.damping.max(damping), ..self }
    }

    /// Prunes to this pattern while it rounds: [`SparseGpt`](crate::SparseGpt) with codes instead of floats. Ranges are those of
    /// the weights that are kept where these are known when a range is found: for groups that are not static.
    ///
    /// Neighbours of an N:M pattern are chosen among when their turn comes; if the columns have another order, or a group has
    /// not a multiple of M columns, by the weights before anything is rounded.
    #[must_use]
    pub fn pruning(self, pattern: SparsityPattern) -> Self {
        Self { pruning: Some(pattern), ..self }
    }

    /// Columns of a group whose scale is found when its turn comes.
    fn dynamic_group(&self) -> Option<usize> {
        match self.rounding.scale_granularity() {
            Granularity::Group(size) if !self.act_order && !self.static_groups => Some(size.get()),
            _ => None,
        }
    }

    /// The layer without regard to its output.
    fn plain(&self, layer: &Layer<'_>) -> Result<Plain, MethodError> {
        let Some(pattern) = self.pruning else {
            let weight = self.rounding.compress(layer)?.weight;
            return Ok(Plain { what: Alternative::Rounding, weight });
        };
        let mask = Magnitude::from(pattern).mask(layer)?;
        let mut values = layer.values.to_vec();
        mask.apply(&mut values)?;
        let pruned = Layer { values: &values, mask: Some(&mask), ..*layer };
        let weight = self.rounding.compress(&pruned)?.weight;
        Ok(Plain { what: Alternative::MagnitudeAndRounding, weight })
    }

    fn encode(
        &self,
        layer: &Layer<'_>,
        mask: Option<&Mask>,
        codes: &[u8],
        tiles: &[Affine],
    ) -> Result<CompressedWeight, MethodError> {
        let (scales, zero_points) = self.rounding.scales_of(tiles);
        let scales = Scales::new(self.rounding.scale_granularity(), layer.precision, scales, zero_points)?;
        let encode = |values| CompressedWeight::encode(layer.shape, layer.layout, mask, values);
        let weight = match self.rounding.code_type() {
            CodeType::F8E4M3 => encode(DenseValues::F8E4M3(codes, &scales))?,
            CodeType::Int { bits, .. } => encode(DenseValues::Int(bits, as_signed(codes), &scales))?,
        };
        round::check_range(layer, &weight)?;
        Ok(weight)
    }
}

impl Method for Gptq {
    fn name(&self) -> String {
        let order = if self.act_order { ", act-order" } else { "" };
        let groups = if self.static_groups && !self.act_order { ", static groups" } else { "" };
        let pruning =
            self.pruning.map_or(String::new(), |pattern| format!("SparseGPT {pattern} jointly with "));
        let shrinkage = self.damping.suffix();
        format!("{pruning}GPTQ to {}{order}{groups}{shrinkage}", self.rounding.target())
    }

    fn coding(&self, before: Coding) -> Coding {
        self.rounding.coding(before)
    }

    fn needs(&self) -> Needs {
        Needs::Hessian
    }

    fn scratch_bytes(&self, shape: &[usize]) -> u64 {
        // codes twice, and the plainly rounded layer; of a layer that is pruned also both masks
        let of_weight = if self.pruning.is_some() { 2 + 1 + 1 } else { 2 + 1 };
        sweep::scratch_bytes(shape, of_weight) + self.rounding.scratch_bytes(shape)
    }

    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError> {
        self.damping.check()?;
        let (stats, hessian) = calibrated::hessian(layer, || self.name())?;
        // this also checks the weights, the mask and the observer
        let plain = self.plain(layer)?;
        if layer.values.is_empty() {
            let found = Found::new(plain.weight.clone());
            return Ok(calibrated::keep_better(layer, (stats, hessian), plain, found));
        }
        let factor = Factor::new(hessian, layer.cols(), self.act_order, self.damping)?;
        let codes = Codes { rounding: &self.rounding, dynamic: self.dynamic_group() };
        let Swept { result: (codes, tiles), mask, squared_error } =
            sweep::to_codes(layer, &factor, codes, self.pruning)?;
        let weight = self.encode(layer, mask.as_ref().or(layer.mask), &codes, &tiles)?;
        let (damping, notes) = (factor.damping, factor.note().into_iter().collect());
        let found = Found { weight, damping, notes, squared_error };
        Ok(calibrated::keep_better(layer, (stats, hessian), plain, found))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use ndarray::Array2;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::dtype::Precision;
    use crate::kernels::gram::quadratic_form;
    use crate::kernels::level::CpuLevel;
    use crate::layer::LayerStats;
    use crate::weight::{LayoutKind, Mask};

    fn int4() -> Gptq {
        Gptq::int(Bits::new(4).unwrap())
    }

    fn groups(size: usize) -> Granularity {
        Granularity::Group(NonZeroUsize::new(size).unwrap())
    }

    /// Weights, and statistics of inputs whose channels go together; `dead` channels are zero.
    fn layer_of(rows: usize, cols: usize, tokens: usize, dead: &[usize]) -> (Vec<f32>, LayerStats) {
        let mut random = ChaCha8Rng::seed_from_u64((rows * cols) as u64);
        let values = (0..rows * cols).map(|_| random.random_range(-1.0..1.0)).collect();
        let common = Array2::from_shape_fn((tokens, 7), |_| random.random_range(-1.0..1.0f32));
        let inputs = Array2::from_shape_fn((tokens, cols), |(t, c)| {
            if dead.contains(&c) { 0.0 } else { common[[t, c % 7]] + random.random_range(-0.4..0.4) }
        });
        let mut stats = LayerStats::new(cols, Needs::Hessian);
        stats.observe(inputs.view()).unwrap();
        (values, stats)
    }

    #[test]
    fn the_output_is_much_closer_than_rounded_whatever_the_codes_and_granularity() {
        let (values, stats) = layer_of(37, 200, 300, &[]);
        let shape = [37, 10, 20];
        for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
            let layer = Layer { stats: Some(&stats), ..Layer::new(&shape, &values, precision) };
            let block = Granularity::Block(NonZeroUsize::new(16).unwrap(), NonZeroUsize::new(24).unwrap());
            let asymmetric = Gptq::codes(CodeType::Int { bits: Bits::new(3).unwrap(), symmetric: false });
            for method in [
                int4().granularity(Granularity::Tensor),
                int4().granularity(block).observer(Observer::Mse),
                int4().granularity(groups(7)),
                int4().granularity(groups(150)).act_order(true),
                asymmetric.granularity(groups(199)),
                Gptq::codes(CodeType::F8E4M3),
                int4().granularity(groups(40)).damping(Damping::default().shrinkage(0.2)),
            ] {
                let compressed = method.compress(&layer).unwrap();
                let outcome = compressed.outcome.unwrap();
                assert_eq!(compressed.weight.form().coding(), method.coding(Coding::Float(precision)));
                assert_eq!((outcome.tokens, outcome.damping, outcome.dead_channels), (300, 0.01, 0));
                assert!(outcome.notes.is_empty() && !outcome.kept_plain);
                let decoded = compressed.weight.dequantize();
                let difference: Vec<f32> = values.iter().zip(&decoded).map(|(w, q)| w - q).collect();
                let hessian = stats.hessian().unwrap();
                let [error, output] = [&difference, &values].map(|x| quadratic_form(x, 200, hessian));
                approx::assert_relative_eq!(outcome.method_error, error / output, max_relative = 1e-4);
                let ratio = outcome.method_error / outcome.plain_error;
                assert!(ratio < 0.6, "{} of {precision:?}: {ratio}", method.name());
            }
        }
    }

    #[test]
    fn threads_and_levels_do_not_change_the_result() {
        let (values, stats) = layer_of(70, 300, 400, &[5]);
        let shape = [70, 300];
        let layer = Layer { stats: Some(&stats), ..Layer::new(&shape, &values, Precision::F32) };
        for method in [int4().granularity(groups(32)), int4().granularity(groups(32)).act_order(true)] {
            let before = CpuLevel::current();
            let expected = method.compress(&layer).unwrap();
            for level in CpuLevel::ALL.into_iter().filter(|level| level.set_current().is_ok()) {
                for threads in [1, 3] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let found = pool.install(|| method.compress(&layer).unwrap());
                    assert!(found == expected, "{level} with {threads} threads");
                }
            }
            before.set_current().unwrap();
        }
    }

    #[test]
    fn dead_channels_are_rounded_to_nearest_and_counted() {
        let (values, stats) = layer_of(5, 40, 100, &[3, 39]);
        let layer = Layer { stats: Some(&stats), ..Layer::new(&[5, 40], &values, Precision::F32) };
        let found = int4().compress(&layer).unwrap();
        let rounded =
            RoundToNearest::int(Bits::new(4).unwrap()).compress(&layer).unwrap().weight.dequantize();
        let outcome = found.outcome.unwrap();
        assert_eq!(outcome.dead_channels, 2);
        let decoded = found.weight.dequantize();
        for column in [3, 39] {
            assert_eq!(decoded.column(column), rounded.column(column));
        }
        assert!(!outcome.kept_plain && decoded != rounded);
    }

    #[test]
    fn a_layer_of_dead_channels_only_is_rounded() {
        let values = [1.0, -0.4, 7.5];
        let mut stats = LayerStats::new(3, Needs::Hessian);
        stats.observe(Array2::zeros((4, 3)).view()).unwrap();
        let layer = Layer { stats: Some(&stats), ..Layer::new(&[1, 3], &values, Precision::F32) };
        let found = int4().compress(&layer).unwrap();
        assert_eq!(found.weight.dequantize().as_slice().unwrap(), [1.0, 0.0, 7.0]);
        let outcome = found.outcome.unwrap();
        assert_eq!((outcome.dead_channels, outcome.method_error, outcome.plain_error), (3, 0.0, 0.0));
    }

    #[test]
    fn pruned_weights_stay_zero_and_the_others_make_good_for_it() {
        let (mut values, stats) = layer_of(40, 64, 200, &[]);
        let mask = Mask::from_fn(40, 64, |row, col| (row + col) % 2 == 0);
        mask.apply(&mut values).unwrap();
        for (layout, symmetric) in
            [(LayoutKind::Dense, true), (LayoutKind::Dense, false), (LayoutKind::Bitmask, false)]
        {
            let layer = Layer {
                stats: Some(&stats),
                mask: Some(&mask),
                layout,
                ..Layer::new(&[40, 64], &values, Precision::F32)
            };
            let codes = CodeType::Int { bits: Bits::new(4).unwrap(), symmetric };
            let found = Gptq::codes(codes).granularity(groups(16)).compress(&layer).unwrap();
            let decoded = found.weight.dequantize();
            assert!(decoded.indexed_iter().all(|((row, col), x)| mask.keeps(row, col) || *x == 0.0));
            let outcome = found.outcome.unwrap();
            assert!(outcome.method_error < 0.7 * outcome.plain_error, "{outcome:?}");
        }
    }

    #[test]
    fn damping_grows_until_the_hessian_can_be_factorized() {
        // 20 tokens of 60 channels: singular
        let (values, stats) = layer_of(8, 60, 20, &[]);
        let layer = Layer { stats: Some(&stats), ..Layer::new(&[8, 60], &values, Precision::F32) };
        let outcome = int4().damping(0.0).compress(&layer).unwrap().outcome.unwrap();
        assert_eq!(outcome.damping, 0.01);
        assert_eq!(
            outcome.notes,
            [
                "the Hessian could not be factorized with damping 0: 0.01 was taken",
                "20 tokens say little of 60 input features: calibrate with more"
            ]
        );
        assert_eq!(int4().damping(0.2).compress(&layer).unwrap().outcome.unwrap().damping, 0.2);
    }

    #[test]
    fn what_is_missing_is_named() {
        let values = [1.0; 6];
        let layer = Layer::new(&[2, 3], &values, Precision::F32);
        let text = |layer: &Layer<'_>, method: Gptq| method.compress(layer).unwrap_err().to_string();
        assert!(text(&layer, int4()).contains("GPTQ to int4, channel needs samples"));
        let stats = layer_of(1, 4, 3, &[]).1;
        assert!(text(&Layer { stats: Some(&stats), ..layer }, int4()).contains("4 input features"));
        let mut stats = LayerStats::new(3, Needs::Channels);
        stats.observe(Array2::ones((2, 3)).view()).unwrap();
        assert!(
            text(&Layer { stats: Some(&stats), ..layer }, int4()).contains("the products of all channels")
        );
        let stats = layer_of(1, 3, 9, &[]).1;
        let layer = Layer { stats: Some(&stats), ..layer };
        assert!(text(&layer, int4().damping(f64::NAN)).contains("damping is NaN"));
        for shrinkage in [-0.1, 1.0, f64::NAN] {
            let method = int4().damping(Damping::default().shrinkage(shrinkage));
            assert!(text(&layer, method).contains("shrinkage is"), "{shrinkage}");
        }
        let broken = [1.0, f32::INFINITY, 0.0, 0.0, 0.0, 0.0];
        assert!(text(&Layer { values: &broken, ..layer }, int4()).contains("index 1"));
        let empty = Layer { values: &[], ..Layer { shape: &[0, 3], ..layer } };
        assert_eq!(int4().compress(&empty).unwrap().weight.shape(), [0, 3]);
    }

    #[test]
    fn rounding_is_kept_where_it_is_better() {
        let (values, stats) = layer_of(3, 8, 50, &[]);
        let layer = Layer { stats: Some(&stats), ..Layer::new(&[3, 8], &values, Precision::F32) };
        let rounded = RoundToNearest::int(Bits::new(4).unwrap()).compress(&layer).unwrap().weight;
        let zeros = CompressedWeight::from_f32(&[3, 8], Precision::F32, &[0.0; 24]).unwrap();
        let hessian = stats.hessian().unwrap();
        let plain = Plain { what: Alternative::Rounding, weight: rounded.clone() };
        let kept = calibrated::keep_better(&layer, (&stats, hessian), plain, Found::new(zeros));
        assert_eq!(kept.weight, rounded);
        let outcome = kept.outcome.unwrap();
        assert!(outcome.kept_plain && outcome.plain_error < 0.1);
        // nothing is left of the output
        assert!((outcome.method_error - 1.0).abs() < 1e-6);
    }
}
