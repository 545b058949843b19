//! Products with pruned weights beside the same weights stored densely, and how fast their bytes are read. (`benches/peers` holds
//! two of them against the machine's limit.)
//!
//! Arguments: `all` (every shape, sparsity and batch; otherwise 4096 × 4096 and one row of activations), and a number of rounds.
//! A figure is the fastest run of all rounds, in each of which every contender has a turn: what else the machine does only adds.

use std::hint::black_box;
use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tersor::{
    ActivationCodes, Activations, Bits, CompressedWeight, Epilogue, Layer, LayoutKind, Magnitude, Mask,
    Method, NofM, PackedWeight, Precision, RoundToNearest, Sparsity, SparsityPattern,
};

/// Seconds that a turn takes at least.
const TURN: f64 = 0.02;

/// A coding, and how activations meet it.
#[derive(Clone, Copy)]
enum Kind {
    Float(Precision),
    /// 8-bit codes and activations as they are.
    Int8Float,
    /// 8-bit codes and 8-bit activations.
    Int8,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Float(Precision::F32) => "f32",
            Self::Float(Precision::F16) => "f16",
            Self::Float(Precision::Bf16) => "bf16",
            Self::Int8Float => "int8 × f32",
            Self::Int8 => "int8 × int8",
        }
    }

    fn activations(self) -> Activations {
        match self {
            Self::Int8 => Activations::Int8(ActivationCodes::PerToken),
            Self::Float(_) | Self::Int8Float => Activations::Float,
        }
    }

    /// The weight as it is stored with and without its zeros.
    fn weights(self, values: &[f32], shape: [usize; 2], pattern: SparsityPattern) -> [CompressedWeight; 2] {
        let precision = match self {
            Self::Float(precision) => precision,
            Self::Int8Float | Self::Int8 => Precision::F32,
        };
        let layer = Layer::new(&shape, values, precision);
        let mask: Mask = Magnitude::from(pattern).mask(&layer).expect("finite weights");
        let mut zeroed = values.to_vec();
        mask.apply(&mut zeroed).expect("a mask of this weight");
        let layout = match pattern {
            SparsityPattern::NofM(pattern) => LayoutKind::NofM(pattern),
            SparsityPattern::Unstructured(_) => LayoutKind::Bitmask,
        };
        let dense = Layer { values: &zeroed, ..layer };
        let sparse = Layer { layout, mask: Some(&mask), ..dense };
        let cast = tersor::FloatCast::to(precision);
        let int8 = RoundToNearest::int(Bits::new(8).expect("2 to 8 bits"));
        let method: &dyn Method = if matches!(self, Self::Float(_)) { &cast } else { &int8 };
        [sparse, dense].map(|layer| method.compress(&layer).expect("finite weights").weight)
    }
}

/// Least seconds of every contender.
fn in_turns(contenders: &mut [&mut dyn FnMut()], rounds: usize) -> Vec<f64> {
    let mut seconds = vec![f64::INFINITY; contenders.len()];
    for _ in 0..rounds {
        for (run, least) in contenders.iter_mut().zip(&mut seconds) {
            run();
            let turn = Instant::now();
            while turn.elapsed().as_secs_f64() < TURN {
                let begin = Instant::now();
                run();
                *least = least.min(begin.elapsed().as_secs_f64());
            }
        }
    }
    seconds
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let all = words.iter().any(|word| word == "all");
    let rounds = words.iter().find_map(|word| word.parse().ok()).unwrap_or(7);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    pool.install(|| table(all, rounds));
}

fn table(all: bool, rounds: usize) {
    let shapes: &[[usize; 2]] =
        if all { &[[1536, 576], [1024, 1024], [4096, 4096]] } else { &[[4096, 4096]] };
    let batches: &[usize] = if all { &[1, 4, 8, 32, 128] } else { &[1] };
    let shares: &[f64] = if all { &[0.5, 0.7, 0.8, 0.9, 0.95] } else { &[0.5, 0.7, 0.9, 0.95] };
    let share = |share: &f64| SparsityPattern::Unstructured(Sparsity::new(*share).expect("a fraction"));
    let mut patterns: Vec<SparsityPattern> = shares.iter().map(share).collect();
    patterns.push(SparsityPattern::NofM(NofM::new(2, 4).expect("2 of 4")));
    println!("| weight | coding | zeros | batch | µs | stored densely, µs | ratio | MB | GB/s |");
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for shape in shapes {
        let [rows, cols] = *shape;
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let values: Vec<f32> = (0..rows * cols).map(|_| random.random_range(-1.0..1.0f32)).collect();
        for kind in [Kind::Float(Precision::F32), Kind::Float(Precision::F16), Kind::Int8Float, Kind::Int8] {
            for pattern in &patterns {
                let weights = kind.weights(&values, *shape, *pattern);
                let [sparse, dense] = weights.map(|weight| {
                    PackedWeight::new(&weight, kind.activations()).expect("a weight that can be run")
                });
                // many rows of activations make more of it
                let bytes = sparse.bytes();
                for batch in batches {
                    let x: Vec<f32> = (0..batch * cols).map(|_| random.random_range(-1.0..1.0f32)).collect();
                    let (mut y, mut z) = (vec![0.0; batch * rows], vec![0.0; batch * rows]);
                    let product = |weight: &PackedWeight, y: &mut [f32]| {
                        weight.matmul_into(black_box(&x), Epilogue::default(), y).expect("lengths that fit");
                    };
                    let times = in_turns(
                        &mut [&mut || product(&sparse, &mut y), &mut || product(&dense, &mut z)],
                        rounds,
                    );
                    println!(
                        "| {rows} × {cols} | {} | {pattern} | {batch} | {:.1} | {:.1} | {:.2} | {:.1} | {:.0} |",
                        kind.name(),
                        times[0] * 1e6,
                        times[1] * 1e6,
                        times[1] / times[0],
                        bytes as f64 / 1e6,
                        bytes as f64 / times[0] / 1e9,
                    );
                }
            }
        }
    }
}
