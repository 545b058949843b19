//! tersor beside other libraries: the Rust half of the comparison, driven by the script `run`.
//!
//! `peers cases` lists the rows of the table, one JSON object a line. `peers work THREADS` reads such lines; after each it
//! makes everyone ready, lets them take a turn for every line `turn`, and answers `end` with the results. So contenders of
//! this process and of the Python one alternate. `write-checkpoint` and `file-rates` serve the measurement of
//! whole files, which `run` does itself.

mod cases;
mod data;
mod file;
mod limits;
mod ours;
mod peers;
mod race;
mod report;

use std::io::{self, BufRead, Write};

use cases::{Case, Float, Operation};
use limits::Limits;
use race::Contender;
use report::{Ready, Results};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["cases"] => cases::all().iter().try_for_each(|case| answer(case).map_err(Failure::from)),
        ["work", threads] => {
            let threads = threads.parse()?;
            // within the pool, so that no call has to enter it first
            rayon::ThreadPoolBuilder::new().num_threads(threads).build()?.install(|| work(threads))
        }
        ["write-checkpoint", path] => Ok(file::write_checkpoint(path.as_ref())?),
        ["file-rates", path] => Ok(answer(&file::rates(path.as_ref())?)?),
        _ => Err("usage: peers cases | work THREADS | write-checkpoint PATH | file-rates PATH".into()),
    }
}

fn work(threads: usize) -> Result<(), Failure> {
    let mut limits = Limits::new(threads);
    let mut lines = io::stdin().lock().lines();
    while let Some(line) = lines.next() {
        let case: Case = serde_json::from_str(&line?)?;
        let inputs = Inputs::new(&case);
        let mut contenders = inputs.contenders(&case, threads);
        for contender in &mut contenders {
            contender.check(&inputs.reference, case.tolerance(), case.first_runs());
        }
        answer(&Ready {
            unit: case.unit(),
            work: case.work(),
            floor_seconds: case.floor(&mut limits, contenders[0].weight_bytes()),
            limits: limits.measured(),
        })?;
        for line in lines.by_ref() {
            if line? == "end" {
                break;
            }
            contenders.iter_mut().for_each(Contender::turn);
            answer(&())?;
        }
        answer(&Results { results: contenders.into_iter().map(Contender::result).collect() })?;
    }
    Ok(())
}

fn answer(message: &impl serde::Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, message)?;
    writeln!(out)?;
    out.flush()
}

/// What the contenders of a case are given, and what they should find.
struct Inputs {
    /// The weight `[rows, cols]`, or all of them.
    weight: Vec<f32>,
    /// Activations `[batch, cols]`.
    x: Vec<f32>,
    reference: Vec<f32>,
}

impl Inputs {
    fn new(case: &Case) -> Self {
        let (rows, cols) = (case.rows, case.cols);
        let count = if let Operation::Prune { tensors } = case.operation { tensors } else { 1 };
        let weight = data::normal(case.values() * count, 1);
        let mut inputs = Self { weight, x: Vec::new(), reference: Vec::new() };
        let batch = match case.operation {
            Operation::Quantize { .. } | Operation::QuantizeMse { .. } | Operation::Cast { .. } => {
                inputs.reference.clone_from(&inputs.weight);
                return inputs;
            }
            Operation::Prune { .. } => {
                inputs.reference = data::half_pruned(&inputs.weight);
                return inputs;
            }
            Operation::Int8Linear { batch, .. }
            | Operation::Int4Linear { batch, .. }
            | Operation::F32Linear { batch } => batch,
            Operation::SparseLinear { pattern } => {
                data::prune(&mut inputs.weight, pattern);
                1
            }
        };
        inputs.x = data::normal(batch * cols, 2);
        inputs.reference = data::product(&inputs.x, &inputs.weight, rows, cols);
        inputs
    }

    fn contenders(&self, case: &Case, threads: usize) -> Vec<Contender<'_>> {
        let (w, x, shape) = (self.weight.as_slice(), self.x.as_slice(), [case.rows, case.cols]);
        match case.operation {
            Operation::Quantize { bits, group } => {
                let mut all =
                    vec![ours::quantize(w, shape, bits, group), ours::quantize_method(w, shape, bits, group)];
                all.extend(peers::candle_quantize(w, shape, bits, group));
                all
            }
            Operation::QuantizeMse { bits, group } => vec![ours::quantize_mse(w, shape, bits, group)],
            Operation::Cast { from: Float::F32, to } => vec![ours::narrow(w, to), peers::half_narrow(w, to)],
            Operation::Cast { from, .. } => vec![ours::widen(w, from), peers::half_widen(w, from)],
            Operation::Int8Linear { cold, .. } => {
                let mut all = vec![ours::int8_linear(w, x, shape, cold)];
                all.push(peers::candle_linear(w, x, shape, 8, cold));
                if !cold {
                    all.extend(peers::rten_linear(w, x, shape));
                }
                all
            }
            Operation::Int4Linear { cold, float, .. } => {
                let mut all = vec![ours::int4_linear(w, x, shape, cold, float)];
                if !float {
                    all.push(peers::candle_linear(w, x, shape, 4, cold));
                }
                all
            }
            Operation::F32Linear { .. } => {
                vec![ours::f32_linear(w, x, shape), peers::gemm_linear(w, x, shape, threads)]
            }
            Operation::SparseLinear { pattern } => vec![
                ours::sparse_linear(w, x, shape, pattern),
                ours::int8_linear(w, x, shape, false).named("the same, stored densely"),
            ],
            Operation::Prune { .. } => vec![ours::prune(w, shape), peers::std_prune(w)],
        }
    }
}
