//! Several libraries doing the same thing, taking turns.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::report::Measured;

/// How long a contender runs in one round, and how long everyone rests before it, so that the threads of the one before
/// have stopped spinning.
const TURN: Duration = Duration::from_millis(40);
const REST: Duration = Duration::from_millis(20);

/// One library's way to do an operation.
pub(crate) struct Contender<'a> {
    name: String,
    task: Box<dyn Task + 'a>,
    error: f64,
    fault: Option<String>,
    seconds: Vec<f64>,
    weight_bytes: usize,
}

trait Task {
    fn prepare(&mut self);
    fn run(&mut self);
    fn values(&mut self) -> Vec<f32>;
}

struct Closures<O, P, R, V> {
    output: O,
    prepare: P,
    run: R,
    values: V,
}

impl<O, P: FnMut(&mut O), R: FnMut(&mut O), V: FnMut(&O) -> Vec<f32>> Task for Closures<O, P, R, V> {
    fn prepare(&mut self) {
        (self.prepare)(&mut self.output);
    }

    fn run(&mut self) {
        (self.run)(&mut self.output);
        black_box(&mut self.output);
    }

    fn values(&mut self) -> Vec<f32> {
        (self.values)(&self.output)
    }
}

impl<'a> Contender<'a> {
    /// `run` is what is timed and leaves its result in `output`; `values` shows the result as f32 values.
    pub(crate) fn new<O: 'a>(
        name: impl Into<String>,
        output: O,
        run: impl FnMut(&mut O) + 'a,
        values: impl FnMut(&O) -> Vec<f32> + 'a,
    ) -> Self {
        Self::in_place(name, output, |_| {}, run, values)
    }

    /// The same for what changes its input: `prepare` restores it before every run, and is not timed.
    pub(crate) fn in_place<O: 'a>(
        name: impl Into<String>,
        output: O,
        prepare: impl FnMut(&mut O) + 'a,
        run: impl FnMut(&mut O) + 'a,
        values: impl FnMut(&O) -> Vec<f32> + 'a,
    ) -> Self {
        let task = Box::new(Closures { output, prepare, run, values });
        let (error, seconds) = (f64::NAN, Vec::new());
        Self { name: name.into(), task, error, fault: None, seconds, weight_bytes: 0 }
    }

    /// The same, and says how many bytes its weight takes.
    pub(crate) fn with_weight_bytes(self, weight_bytes: usize) -> Self {
        Self { weight_bytes, ..self }
    }

    /// Bytes of the weight that a product reads; 0 where nobody has said.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    /// The same under another name.
    pub(crate) fn named(self, name: &str) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Makes the first runs; whoever is further than `tolerance` from the reference takes no part.
    pub(crate) fn check(&mut self, reference: &[f32], tolerance: f64, runs: usize) {
        for _ in 0..runs {
            self.timed_run();
        }
        let values = self.task.values();
        self.error = relative_error(&values[..reference.len().min(values.len())], reference);
        if self.error.is_nan() || self.error > tolerance {
            self.fault = Some(format!("wrong result: relative error {:.2e}", self.error));
        }
    }

    /// One turn: some runs to warm up, then as many timed ones as fit, but at least one.
    pub(crate) fn turn(&mut self) {
        if self.fault.is_some() {
            return;
        }
        std::thread::sleep(REST);
        let turn = TURN.as_secs_f64();
        let mut spent = 0.0;
        while spent < turn / 6.0 {
            let seconds = self.timed_run();
            spent += seconds;
            if seconds > turn {
                // so slow that nothing has to warm up
                self.seconds.push(seconds);
                return;
            }
        }
        spent = 0.0;
        while spent < turn {
            let seconds = self.timed_run();
            spent += seconds;
            self.seconds.push(seconds);
        }
    }

    fn timed_run(&mut self) -> f64 {
        self.task.prepare();
        let clock = Instant::now();
        self.task.run();
        clock.elapsed().as_secs_f64()
    }

    pub(crate) fn result(mut self) -> Measured {
        let best = self.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let timed = !self.seconds.is_empty();
        Measured {
            name: self.name,
            seconds: timed.then(|| median(&mut self.seconds)),
            best: timed.then_some(best),
            runs: self.seconds.len(),
            error: self.error.is_finite().then_some(self.error),
            not_measured: self.fault,
        }
    }
}

/// The middle value; 0 for none.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Norm of the difference over norm of the reference; NaN if there are not as many values.
fn relative_error(values: &[f32], reference: &[f32]) -> f64 {
    if values.len() != reference.len() {
        return f64::NAN;
    }
    let norm = |squares: f64| squares.sqrt();
    let difference: f64 = values.iter().zip(reference).map(|(v, r)| f64::from(v - r).powi(2)).sum();
    let size: f64 = reference.iter().map(|r| f64::from(*r).powi(2)).sum();
    norm(difference) / norm(size)
}
