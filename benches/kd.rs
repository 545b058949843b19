//! Knowledge distillation, value and gradient: seconds a run and peak memory, for `benches/peers/kd.py`.
//!
//! Arguments: rows and classes of the logits, number of runs. The pool has as many threads as `RAYON_NUM_THREADS` says.

use std::time::Instant;

use ndarray::Array2;
use tersor::distill::{KnowledgeDistillation, Labels};

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let [rows, classes, runs] = numbers[..] else {
        // a plain `cargo bench` only shows that it runs
        return measure(64, 1000, 1);
    };
    measure(rows, classes, runs);
}

fn measure(rows: usize, classes: usize, runs: usize) {
    let logits = |seed: usize| {
        Array2::from_shape_fn((rows, classes), |(i, j)| {
            ((i * 31 + j * 7919 + seed) % 1013) as f32 / 100.0 - 5.0
        })
    };
    let (student, teacher) = (logits(0), logits(517));
    let labels: Vec<i64> = (0..rows).map(|i| (i * 37 % classes) as i64).collect();
    let loss = KnowledgeDistillation::new(0.9, 2.0);
    for _ in 0..runs {
        let begin = Instant::now();
        let out = loss.evaluate(student.view(), teacher.view(), Labels::new(&labels)).expect("finite logits");
        let seconds = begin.elapsed().as_secs_f64();
        println!("run: {seconds:.4} s, value {:.9}", out.value.total());
    }
    let tensors = (3 * rows * classes * size_of::<f32>()) >> 20;
    println!(
        "inputs and gradient: {tensors} MiB, peak: {} MiB",
        peak().map_or("?".into(), |mib| mib.to_string())
    );
}

/// The process's largest resident memory in MiB, where the system tells.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? >> 10)
}
