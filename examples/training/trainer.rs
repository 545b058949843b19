//! Epochs, a learning rate that changes, early stopping, checkpoints to go on from, and a line about each epoch.

use std::collections::{BTreeMap, HashMap};
use std::f64::consts::PI;
use std::fs;
use std::io::{IsTerminal, Write, stderr};
use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tersor::one_line;

use super::Result;
use super::optimizer::Resumable;

/// How the learning rate changes from step to step.
#[derive(Clone, Copy)]
pub(crate) enum Decay {
    /// It falls to zero along half a cosine.
    Cosine,
    /// It is multiplied by `factor` after every so many epochs.
    Steps { factor: f64, epochs: usize },
}

/// The learning rate: `peak`, which is reached linearly in so many steps, then decays.
#[derive(Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) peak: f64,
    pub(crate) warm_up: usize,
    pub(crate) decay: Decay,
}

impl Schedule {
    pub(crate) fn cosine(peak: f64) -> Self {
        Self { peak, warm_up: 0, decay: Decay::Cosine }
    }

    /// The learning rate of a step, counted from 0.
    fn at(&self, step: usize, steps: usize, steps_per_epoch: usize) -> f64 {
        if step < self.warm_up {
            return self.peak * (step + 1) as f64 / self.warm_up as f64;
        }
        let decay = match self.decay {
            Decay::Cosine => {
                let progress = (step - self.warm_up) as f64 / (steps - self.warm_up).max(1) as f64;
                0.5 * (1.0 + (PI * progress).cos())
            }
            Decay::Steps { factor, epochs } => factor.powf((step / steps_per_epoch / epochs.max(1)) as f64),
        };
        self.peak * decay
    }
}

/// A run of training.
pub(crate) struct Trainer<'a> {
    /// What the progress lines begin with.
    pub(crate) name: &'a str,
    pub(crate) epochs: usize,
    pub(crate) batch: usize,
    pub(crate) schedule: Schedule,
    /// After so many epochs without a smaller validation loss training ends, with the parameters of the best epoch.
    pub(crate) patience: Option<usize>,
    /// A file that is written after every epoch, and from which an interrupted run goes on.
    pub(crate) resume: Option<&'a Path>,
}

/// How an epoch ended.
pub(crate) struct Validation {
    /// What early stopping looks at.
    pub(crate) loss: f64,
    /// What the progress line says of it.
    pub(crate) text: String,
}

/// Where a run stands.
struct State {
    epoch: usize,
    seconds: f64,
    best: Option<(f64, usize)>,
    order: Vec<u32>,
}

impl<'a> Trainer<'a> {
    pub(crate) fn new(name: &'a str, epochs: usize, batch: usize, learning_rate: f64) -> Self {
        let schedule = Schedule::cosine(learning_rate);
        Self { name, epochs, batch, schedule, patience: None, resume: None }
    }

    /// Trains: `loss(rows, rng)` gives the loss of a batch of the `samples`, `validate(epoch)` what came of an epoch. Returns the
    /// seconds it took.
    pub(crate) fn run<O: Resumable>(
        &self,
        parameters: &BTreeMap<String, Var>,
        optimizer: &mut O,
        samples: usize,
        rng: &mut ChaCha8Rng,
        mut loss: impl FnMut(&[usize], &mut ChaCha8Rng) -> Result<Tensor>,
        mut validate: impl FnMut(usize) -> Result<Validation>,
    ) -> Result<f64> {
        let mut state = State { epoch: 0, seconds: 0.0, best: None, order: (0..samples as u32).collect() };
        let mut best = BTreeMap::new();
        if let Some(path) = self.resume.filter(|path| path.exists()) {
            (state, best) = self
                .load(path, parameters, optimizer, samples, rng)
                .map_err(|e| format!("{}: cannot go on from it: {}", path.display(), one_line(e.as_ref())))?;
            println!("{}: goes on after epoch {}", self.name, state.epoch);
        }
        let steps_per_epoch = samples.div_ceil(self.batch);
        let steps = self.epochs * steps_per_epoch;
        let (start, before) = (Instant::now(), state.seconds);
        while state.epoch < self.epochs {
            state.order.shuffle(rng);
            let mut total = 0.0;
            for (number, rows) in state.order.chunks(self.batch).enumerate() {
                let step = state.epoch * steps_per_epoch + number;
                optimizer.set_learning_rate(self.schedule.at(step, steps, steps_per_epoch));
                let rows: Vec<usize> = rows.iter().map(|row| *row as usize).collect();
                let loss = loss(&rows, rng)?;
                optimizer.backward_step(&loss)?;
                let value = f64::from(loss.to_scalar::<f32>()?);
                if !value.is_finite() {
                    return Err(format!("{}: the loss of step {step} is {value}", self.name).into());
                }
                total += value * rows.len() as f64;
                if stderr().is_terminal() && number % 32 == 0 {
                    let percent = 100 * number / steps_per_epoch;
                    eprint!("\r{}: epoch {}: {percent} % ", self.name, state.epoch + 1);
                    stderr().flush()?;
                }
            }
            if stderr().is_terminal() {
                eprint!("\r\x1b[K");
            }
            state.epoch += 1;
            state.seconds = before + start.elapsed().as_secs_f64();
            let Validation { loss, text } = validate(state.epoch)?;
            println!(
                "{}: epoch {}/{}: loss {:.4}, {text}, {:.0} s",
                self.name,
                state.epoch,
                self.epochs,
                total / samples as f64,
                state.seconds
            );
            if let Some(patience) = self.patience {
                if state.best.is_none_or(|(least, _)| loss < least) {
                    state.best = Some((loss, state.epoch));
                    best = copies(parameters)?;
                } else if let Some((_, epoch)) = state.best
                    && state.epoch - epoch >= patience
                {
                    println!("{}: stops; epoch {epoch} was the best", self.name);
                    break;
                }
            }
            if let Some(path) = self.resume {
                self.save(path, &state, parameters, &best, optimizer, rng)?;
            }
        }
        for (name, value) in &best {
            parameters[name].set(value)?;
        }
        if let Some(path) = self.resume.filter(|path| path.exists()) {
            fs::remove_file(path)?;
        }
        Ok(state.seconds)
    }

    fn save<O: Resumable>(
        &self,
        path: &Path,
        state: &State,
        parameters: &BTreeMap<String, Var>,
        best: &BTreeMap<String, Tensor>,
        optimizer: &O,
        rng: &ChaCha8Rng,
    ) -> Result<()> {
        let (moments, steps) = optimizer.state();
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        tensors.extend(
            parameters.iter().map(|(name, var)| (format!("parameter.{name}"), var.as_detached_tensor())),
        );
        tensors.extend(best.iter().map(|(name, value)| (format!("best.{name}"), value.clone())));
        for (number, moments) in moments.into_iter().enumerate() {
            let length = moments.len();
            tensors.insert(format!("optimizer.{number}"), Tensor::from_vec(moments, length, &Device::Cpu)?);
        }
        tensors.insert("order".into(), Tensor::new(state.order.as_slice(), &Device::Cpu)?);
        let number = |value: f64| value.to_bits().to_string();
        let metadata = HashMap::from([
            ("name".to_owned(), self.name.to_owned()),
            ("epoch".to_owned(), state.epoch.to_string()),
            ("epochs".to_owned(), self.epochs.to_string()),
            ("seconds".to_owned(), number(state.seconds)),
            ("best_loss".to_owned(), number(state.best.map_or(f64::INFINITY, |best| best.0))),
            ("best_epoch".to_owned(), state.best.map_or(0, |best| best.1).to_string()),
            ("optimizer_steps".to_owned(), steps.to_string()),
            ("random_position".to_owned(), rng.get_word_pos().to_string()),
        ]);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let part = path.with_extension("part");
        fs::write(&part, safetensors::serialize(&tensors, Some(metadata))?)?;
        Ok(fs::rename(&part, path)?)
    }

    fn load<O: Resumable>(
        &self,
        path: &Path,
        parameters: &BTreeMap<String, Var>,
        optimizer: &mut O,
        samples: usize,
        rng: &mut ChaCha8Rng,
    ) -> Result<(State, BTreeMap<String, Tensor>)> {
        let bytes = fs::read(path)?;
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let text = |key: &str| metadata.get(key).cloned().ok_or(format!("it lacks `{key}`"));
        let float = |key: &str| -> Result<f64> { Ok(f64::from_bits(text(key)?.parse()?)) };
        if text("name")? != self.name {
            return Err(format!("it is of {}, not of {}", text("name")?, self.name).into());
        }
        if text("epochs")? != self.epochs.to_string() {
            return Err(format!("it is of {} epochs, not of {}", text("epochs")?, self.epochs).into());
        }
        let mut tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        let mut take = |name: String| tensors.remove(&name).ok_or(format!("it has no tensor `{name}`"));
        for (name, var) in parameters {
            var.set(&take(format!("parameter.{name}"))?)?;
        }
        let moments = (0..optimizer.state().0.len())
            .map(|number| Ok(take(format!("optimizer.{number}"))?.to_vec1()?))
            .collect::<Result<_>>()?;
        optimizer.resume(moments, text("optimizer_steps")?.parse()?);
        let order: Vec<u32> = take("order".into())?.to_vec1()?;
        if order.len() != samples {
            return Err(format!("it is of {} samples, not of {samples}", order.len()).into());
        }
        rng.set_word_pos(text("random_position")?.parse()?);
        let best_epoch: usize = text("best_epoch")?.parse()?;
        let best = match best_epoch {
            0 => BTreeMap::new(),
            _ => parameters
                .keys()
                .map(|name| Ok((name.clone(), take(format!("best.{name}"))?)))
                .collect::<Result<_>>()?,
        };
        let state = State {
            epoch: text("epoch")?.parse()?,
            seconds: float("seconds")?,
            best: (best_epoch > 0).then_some((float("best_loss")?, best_epoch)),
            order,
        };
        Ok((state, best))
    }
}

fn copies(parameters: &BTreeMap<String, Var>) -> Result<BTreeMap<String, Tensor>> {
    parameters.iter().map(|(name, var)| Ok((name.clone(), var.as_tensor().copy()?.detach()))).collect()
}
