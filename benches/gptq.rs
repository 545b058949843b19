//! GPTQ or SparseGPT of one square layer whose Hessian is given: seconds a run, for `benches/peers/gptq.py`.
//!
//! Arguments: input and output features, number of runs, `gptq` (to int4), `50%` or `2:4`. The pool has as many threads as
//! `RAYON_NUM_THREADS` says.

use std::num::NonZeroUsize;
use std::time::Instant;

use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tersor::kernels::gram::quadratic_forms;
use tersor::{
    Bits, Gptq, Granularity, Layer, LayerStats, Method, Needs, NofM, Precision, SparseGpt, Sparsity,
    SparsityPattern,
};

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let (size, runs) = (numbers.first().copied().unwrap_or(512), numbers.get(1).copied().unwrap_or(1));
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut uniform = |rows| Array2::from_shape_fn((rows, size), |_| random.random_range(-1.0..1.0f32));
    let (weights, inputs) = (uniform(size), uniform(2 * size));
    let mut stats = LayerStats::new(size, Needs::Hessian);
    let begin = Instant::now();
    for inputs in inputs.axis_chunks_iter(ndarray::Axis(0), 2048) {
        stats.observe(inputs).expect("finite inputs");
    }
    let hessian = stats.hessian().expect("products were gathered");
    println!("statistics of {} tokens: {:.3} s", 2 * size, begin.elapsed().as_secs_f64());

    let shape = [size, size];
    let values = weights.as_slice().expect("rows lie one after the other");
    let layer = Layer { stats: Some(&stats), ..Layer::new(&shape, values, Precision::F32) };
    let groups = Granularity::Group(NonZeroUsize::new(128).expect("not zero"));
    let gptq = Gptq::int(Bits::new(4).expect("2 to 8 bits")).granularity(groups);
    let half = SparsityPattern::Unstructured(Sparsity::new(0.5).expect("a fraction"));
    let two_of_four = SparsityPattern::NofM(NofM::new(2, 4).expect("2 of 4"));
    let method: &dyn Method = match std::env::args().nth(3).as_deref() {
        Some("50%") => &SparseGpt::new(half),
        Some("2:4") => &SparseGpt::new(two_of_four),
        _ => &gptq,
    };
    for _ in 0..runs {
        let begin = Instant::now();
        let outcome = method.compress(&layer).expect("a layer that can be quantized").outcome;
        let seconds = begin.elapsed().as_secs_f64();
        let outcome = outcome.expect("a calibrated method has an outcome");
        // what it takes to compare the result with the plain alternative: the errors of two matrices
        let begin = Instant::now();
        let output = quadratic_forms(&[values, values], size, hessian)[0];
        let comparison = begin.elapsed().as_secs_f64();
        assert!(output > 0.0);
        let (error, plain, by) = (outcome.method_error, outcome.plain_error, outcome.plain);
        println!(
            "run: {seconds:.4} s, {comparison:.4} s of it the comparison, error {error:.3e}, {by} {plain:.3e}"
        );
    }
}
