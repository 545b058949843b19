//! What holds of every method that quantizes by more than rounding to nearest.

use std::num::NonZeroUsize;

use ndarray::Array2;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tersor::{
    AutoRound, AwqOptions, Bits, ClippedRounding, CodeType, CpuLevel, Granularity, Hqq, HqqOptions, Layer,
    LayerStats, Mask, Method, MethodError, Needs, Precision, Smoothing, awq_scales, bias_correction,
    smooth_scales,
};

const ROWS: usize = 37;
const COLS: usize = 40;

struct Sample {
    values: Vec<f32>,
    stats: LayerStats,
}

impl Sample {
    fn new(needs: Needs) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let values = (0..ROWS * COLS).map(|_| rng.random_range(-1.0f32..1.0).powi(3)).collect();
        let common: Vec<f32> = (0..COLS).map(|i| if i % 7 == 0 { 8.0 } else { 1.0 }).collect();
        let x = Array2::from_shape_fn((90, COLS), |(_, j)| common[j] * rng.random_range(-0.4..1.0));
        let mut stats = LayerStats::new(COLS, needs);
        stats.observe(x.view()).unwrap();
        Self { values, stats }
    }

    fn layer(&self) -> Layer<'_> {
        let layer = Layer::new(&[ROWS, COLS], &self.values, Precision::Bf16);
        Layer { stats: Some(&self.stats), ..layer }
    }
}

fn methods() -> Vec<Box<dyn Method>> {
    let three = Bits::new(3).unwrap();
    let size = |size| NonZeroUsize::new(size).unwrap();
    let mut methods: Vec<Box<dyn Method>> = Vec::new();
    for granularity in [
        Granularity::Tensor,
        Granularity::Channel,
        Granularity::Group(size(16)),
        Granularity::Block(size(5), size(12)),
    ] {
        for symmetric in [true, false] {
            methods.push(Box::new(ClippedRounding::int(three).granularity(granularity).symmetric(symmetric)));
            methods.push(Box::new(Hqq::int(three).granularity(granularity).symmetric(symmetric)));
            let learned = AutoRound::int(three).granularity(granularity).symmetric(symmetric);
            methods.push(Box::new(learned.iterations(20)));
        }
    }
    methods
}

#[test]
fn results_depend_on_neither_threads_nor_instructions() {
    let sample = Sample::new(Needs::Hessian);
    let layer = sample.layer();
    let before = CpuLevel::current();
    for method in methods() {
        let whole = method.compress(&layer).unwrap();
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        for level in CpuLevel::ALL.into_iter().filter(|level| *level <= CpuLevel::detected()) {
            level.set_current().unwrap();
            assert_eq!(one.install(|| method.compress(&layer)).unwrap(), whole, "{} {level}", method.name());
        }
        before.set_current().unwrap();
    }
}

#[test]
fn calibrated_methods_are_never_worse_than_rounding_and_say_what_they_did() {
    let sample = Sample::new(Needs::Hessian);
    for method in methods() {
        let result = method.compress(&sample.layer()).unwrap();
        assert_eq!(result.weight.form().coding(), method.coding(tersor::Coding::Float(Precision::Bf16)));
        if method.needs() == Needs::Nothing {
            assert_eq!(result.outcome, None);
            continue;
        }
        let outcome = result.outcome.unwrap();
        assert_eq!(outcome.tokens, 90);
        if outcome.kept_plain {
            assert!(outcome.method_error > outcome.plain_error, "{}", method.name());
        } else {
            assert!(outcome.method_error <= outcome.plain_error, "{}", method.name());
        }
        // a few steps with scales that many rows share may find nothing
        let few_share = method.name().contains("channel") || method.name().contains("group");
        if method.name().starts_with("auto-round") && few_share {
            assert!(outcome.method_error < 0.9 * outcome.plain_error, "{}: {outcome:?}", method.name());
        }
    }
}

#[test]
fn what_was_pruned_stays_zero() {
    let sample = Sample::new(Needs::Hessian);
    let mask = Mask::from_fn(ROWS, COLS, |row, col| (row + col) % 3 != 0);
    let mut values = sample.values.clone();
    mask.apply(&mut values).unwrap();
    for layout in [tersor::LayoutKind::Dense, tersor::LayoutKind::Bitmask] {
        let layer = Layer { values: &values, mask: Some(&mask), layout, ..sample.layer() };
        for method in methods() {
            let decoded = method.compress(&layer).unwrap().weight.dequantize();
            for ((row, col), w) in decoded.indexed_iter() {
                assert!(mask.keeps(row, col) || *w == 0.0, "{} {row} {col}: {w}", method.name());
            }
        }
    }
}

#[test]
fn what_is_missing_or_wrong_is_said() {
    let sample = Sample::new(Needs::Channels);
    let layer = sample.layer();
    for method in methods().iter().filter(|method| method.needs() == Needs::Hessian) {
        let error = method.compress(&layer).unwrap_err();
        assert!(error.to_string().contains("products of all channels"), "{error}");
        let error = method.compress(&Layer { stats: None, ..layer }).unwrap_err();
        assert!(matches!(error, MethodError::NotCalibrated { what: "samples", .. }), "{error}");
    }
    let codes = CodeType::Int { bits: Bits::new(4).unwrap(), symmetric: true };
    let scales = |layers: &[Layer<'_>], stats, options| {
        awq_scales(layers, stats, codes, Granularity::Channel, options)
    };
    let options = AwqOptions::default();
    assert!(matches!(scales(&[layer], &sample.stats, options), Err(MethodError::NotCalibrated { .. })));
    let full = Sample::new(Needs::Hessian);
    assert!(scales(&[], &full.stats, options).is_err());
    assert!(scales(&[layer], &full.stats, options.steps(0)).is_err());
    let other = LayerStats::new(3, Needs::Channels);
    assert!(bias_correction(&Layer { stats: Some(&other), ..layer }, &rounded(&layer)).is_err());
    assert!(smooth_scales(&[layer], &sample.stats, Smoothing::Search).is_err());
    assert!(smooth_scales(&[layer], &full.stats, Smoothing::Alpha(1.5)).is_err());
    assert!(smooth_scales(&[layer], &sample.stats, Smoothing::default()).unwrap().error.is_none());
    let bad = HqqOptions { p: 1.5, ..HqqOptions::default() };
    let error = Hqq::int(Bits::new(4).unwrap()).options(bad).compress(&layer).unwrap_err();
    assert_eq!(error.to_string(), "p is 1.5, but must be above 0 and at most 1");
    assert!(AutoRound::int(Bits::new(4).unwrap()).iterations(0).compress(&full.layer()).is_err());
    assert!(ClippedRounding::int(Bits::new(4).unwrap()).grid(20, 1.5).compress(&full.layer()).is_err());
}

fn rounded(layer: &Layer<'_>) -> tersor::CompressedWeight {
    tersor::RoundToNearest::int(Bits::new(2).unwrap()).compress(layer).unwrap().weight
}

#[test]
fn a_corrected_bias_restores_the_mean_output() {
    let sample = Sample::new(Needs::Channels);
    let layer = sample.layer();
    let weight = rounded(&layer);
    let correction = bias_correction(&layer, &weight).unwrap();
    let mean = sample.stats.mean();
    let decoded = weight.dequantize();
    let output = |row: &[f32]| row.iter().zip(&mean).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
    let mut moved = 0.0;
    for (row, bias) in correction.iter().enumerate() {
        let before = output(&sample.values[row * COLS..(row + 1) * COLS]);
        let after = output(decoded.row(row).as_slice().unwrap());
        assert!((after + f64::from(*bias) - before).abs() < 1e-5, "{row}");
        moved += (after - before).abs();
    }
    assert!(moved > 0.1 * ROWS as f64, "nothing to correct: {moved}");
}
