//! A compressed decoder that learns to predict what the original predicts.

mod state;
mod student;
mod teacher;
mod write;

use std::cmp::Ordering;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use sha2::Digest;

use self::state::Snapshots;
use self::student::Student;
use self::teacher::Teacher;
use self::write::Manifest;
use super::PipelineError;
use super::resume::Unfinished;
use super::run::SMALL_FILES;
use crate::calibrate::{Samples, hash_of_inputs, spread};
use crate::checkpoint::{Checkpoint, OutputFolder};
use crate::file::hex;
use crate::kernels::learn::cosine;
use crate::model::{Decoder, Execution, LanguageModel, Network};

/// Samples of one step.
const BATCH: usize = 2;

/// One sample of so many is not learned from, and the least and most of them.
const HELD_OUT: usize = 8;
const MOST_HELD_OUT: usize = 16;

/// Learns the scales of a compressed decoder so that it predicts what the original predicts; codes, zero points and everything else
/// stay as they are, and so do the files' sizes.
///
/// Every step runs two samples through both networks, compares the probabilities of every next token by the
/// [forward divergence](crate::distill::Divergence::ForwardKl) from the original's, and moves the logarithms of all scales of the
/// blocks' linear layers by one step of Adam (Kingma and Ba 2015); steps become shorter along a cosine. Layers of integers and of e4m3
/// are learned, dense and sparse ones; plain floats, codebooks and layers that factors are added to are not. Inputs that the layers
/// quantize are not quantized while they learn.
///
/// One sample of eight, at least one and at most 16, is not learned from: on these the written network is compared with the one before,
/// in the arithmetic that its forms ask for. What is no nearer to the original is not kept.
///
/// The result depends on neither the number of threads nor the instruction level.
///
/// Sources: Chen et al., "`EfficientQAT`: Efficient Quantization-Aware Training for Large Language Models" (2024), the end-to-end training
/// of quantization parameters; Liu et al., "LLM-QAT" (2023), for the divergence from the original's predictions as the loss and for
/// [text that it writes itself](crate::OwnText) as the samples.
///
/// ```no_run
/// use tersor::pipeline::Distillation;
/// use tersor::{Checkpoint, Cut, Samples, Tokenizer};
///
/// let original = Checkpoint::open("SmolLM2-135M")?;
/// let cut = Cut { samples: 128, context: 512, seed: 0 };
/// let samples = Samples::read("own-text.jsonl", cut, true, Some(&Tokenizer::of(&original)?))?;
/// let compressed = Checkpoint::open("SmolLM2-135M-int2")?;
/// let steps = 128.try_into()?;
/// let distilled = Distillation::new(steps).run(&compressed, &original, &samples, "out", &mut |_| {
///     std::ops::ControlFlow::Continue(())
/// })?;
/// println!("{:.3} → {:.3} nats", distilled.before, distilled.after);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distillation {
    steps: NonZeroUsize,
    rate: f32,
    every: Duration,
}

/// How far a distillation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DistillationProgress {
    /// Steps that have been done.
    pub done: usize,
    /// Steps that will be done.
    pub steps: usize,
    /// The divergence on the samples of the last step, in nats a token; `None` before the first one of this run.
    pub loss: Option<f64>,
}

/// What a distillation did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distilled {
    /// The folder that was written.
    pub output: PathBuf,
    /// Steps that were done.
    pub steps: usize,
    /// Samples that it could learn from.
    pub samples: usize,
    /// Samples that it was judged by.
    pub held_out: usize,
    /// Tokens of these.
    pub held_out_tokens: usize,
    /// Weights whose scales were learned.
    pub weights: usize,
    /// Their scales.
    pub scales: usize,
    /// Compressed weights whose scales stay as they were.
    pub left_alone: Vec<String>,
    /// The divergence from the original's predictions on the samples held out, in nats a token, before.
    pub before: f64,
    /// The same of what was written.
    pub after: f64,
    /// Weights in the folder of the compressed model that the output lacks.
    pub left_behind: Vec<PathBuf>,
}

impl Distillation {
    /// How far the first step moves a weight, unless something else is said: in distances between codes, if it is `2^(bits − 1)` of them
    /// from zero, such as the least code of symmetric integers; of e4m3, about the largest of every power of two.
    pub const RATE: f32 = 0.01;

    /// Distillation in so many steps.
    pub fn new(steps: NonZeroUsize) -> Self {
        Self { steps, rate: Self::RATE, every: Duration::from_secs(20) }
    }

    /// Chooses how far the first step moves a weight, as for [`RATE`](Self::RATE).
    #[must_use]
    pub fn rate(self, rate: f32) -> Self {
        Self { rate, ..self }
    }

    /// Chooses after what time what has been learned is written to the disk again, from where an interrupted run goes on; 20 seconds
    /// unless something else is said.
    #[must_use]
    pub fn keep_every(self, every: Duration) -> Self {
        Self { every, ..self }
    }

    /// Lets `compressed` learn from `original`, and writes a folder with everything that the compressed one's has, which appears under
    /// its name only when everything in it has reached the disk.
    ///
    /// What has been learned is kept in a folder `OUTPUT.unfinished` until the output is complete. If a run is interrupted, the same
    /// one goes on from there, and gives the same bytes.
    ///
    /// # Errors
    /// When one of the two is no decoder, their vocabularies are of different sizes, nothing can be learned, the rate is not above 0, or
    /// the samples are too few or do not fit the networks; when the network diverges, or is no nearer to the original afterwards; when
    /// `output` exists or lies in one of the two folders, or the disk refuses; or when `progress` stops the run.
    pub fn run(
        self,
        compressed: &Checkpoint,
        original: &Checkpoint,
        samples: &Samples,
        output: impl AsRef<Path>,
        progress: &mut dyn FnMut(DistillationProgress) -> ControlFlow<()>,
    ) -> Result<Distilled, PipelineError> {
        let output = output.as_ref();
        let refuse =
            |reason: String| PipelineError::Distill { path: compressed.path().to_path_buf(), reason };
        if !(self.rate > 0.0 && self.rate.is_finite()) {
            return Err(refuse(format!("a rate of {} leads nowhere: give one above 0", self.rate)));
        }
        for input in [compressed, original] {
            OutputFolder::check(output, input.path())?;
        }
        let networks = [compressed, original].map(|network| Network::open(network, Execution::default()));
        let [student, teacher] = networks;
        let (student, teacher) = (student?, teacher?);
        let (decoder, teacher) =
            (student.decoder()?, Teacher { checkpoint: original, decoder: teacher.decoder()? });
        check_pair(decoder, &teacher).map_err(refuse)?;
        let split = Split::of(samples).map_err(refuse)?;
        // rather than when their turn comes
        for tokens in samples.sequences() {
            decoder.embed(tokens)?;
            teacher.decoder.embed(tokens)?;
        }
        let manifest = Manifest::read(compressed)?;
        let student = Student::new(compressed, decoder)?;
        if student.weights().next().is_none() {
            return Err(refuse(
                "no linear layer of a block has scales that can be learned; quantize some to integers or e4m3".into(),
            ));
        }
        let unfinished = Unfinished::open(output, &self.fingerprint([compressed, original], samples)?)?;
        let job = Job { distillation: self, teacher, split, unfinished: &unfinished, output };
        let result = job.run(student, manifest, progress);
        match &result {
            // nobody wants to go on from what is of no use
            Ok(_) | Err(PipelineError::Distill { .. }) => unfinished.remove(),
            Err(_) => unfinished.remove_if_empty(),
        }
        result
    }

    /// A hash of everything that the result depends on.
    fn fingerprint(self, networks: [&Checkpoint; 2], samples: &Samples) -> Result<String, PipelineError> {
        let [compressed, original] = networks;
        let mut hash = hash_of_inputs(compressed, Some(samples), "")?;
        hash.update(hash_of_inputs(original, None, "")?.finalize());
        hash.update(format!("distilled in {} steps of rate {}", self.steps, self.rate));
        Ok(hex(hash))
    }
}

/// A distillation whose inputs have been found to fit.
struct Job<'a> {
    distillation: Distillation,
    teacher: Teacher<'a>,
    split: Split<'a>,
    unfinished: &'a Unfinished,
    output: &'a Path,
}

impl Job<'_> {
    fn run(
        &self,
        mut student: Student<'_>,
        manifest: Manifest,
        progress: &mut dyn FnMut(DistillationProgress) -> ControlFlow<()>,
    ) -> Result<Distilled, PipelineError> {
        let steps = self.distillation.steps.get();
        let path = student.checkpoint.path();
        let held_out = &self.split.held_out;
        let mut look =
            |done: usize, loss: Option<f64>| match progress(DistillationProgress { done, steps, loss }) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(PipelineError::Stopped),
            };
        let mut snapshots = Snapshots::new(self.unfinished, self.distillation.every);
        let first = snapshots.restore(&mut student)?;
        let before = self.teacher.divergence(student.decoder, path, held_out, &mut || look(first, None))?;
        let mut loss = None;
        for step in first..steps {
            if let Err(stopped) = look(step, loss) {
                snapshots.keep(&student, step)?;
                return Err(stopped);
            }
            let samples = &self.split.learned_from;
            let batch: Vec<Sample<'_>> = (step * BATCH..(step + 1) * BATCH)
                .map(|number| samples[spread(number, samples.len())])
                .collect();
            let rate = self.distillation.rate * cosine(step, steps);
            loss = Some(student.descend(&self.teacher, &batch, step, rate, self.unfinished.folder())?);
            snapshots.keep_now_and_then(&student, step + 1)?;
        }
        snapshots.keep(&student, steps)?;

        let companions = student.checkpoint.companions()?;
        let needed = student.checkpoint.file_bytes() + companions.carried_bytes(path) + SMALL_FILES;
        let folder = OutputFolder::create(self.output, path, needed)?;
        student.write(&folder, &companions)?;
        let written = Checkpoint::open(folder.path())?;
        let network = Network::open(&written, Execution::default())?;
        let after = self.teacher.divergence(network.decoder()?, path, held_out, &mut || look(steps, loss))?;
        // what is no number is no better
        if !matches!(after.partial_cmp(&before), Some(Ordering::Less)) {
            let reason = format!(
                "after {steps} steps it is {after:.4} nats a token from the original on the samples held out, and was {before:.4}: \
                 nothing is written; give more samples, a lower rate, or other text"
            );
            return Err(PipelineError::Distill { path: path.to_path_buf(), reason });
        }
        let scales =
            student.weights().map(|weight| weight.scales().map_or(0, |scales| scales.scales().len()));
        let distilled = Distilled {
            output: PathBuf::new(),
            steps,
            samples: self.split.learned_from.len(),
            held_out: held_out.len(),
            held_out_tokens: held_out.iter().map(|sample| sample.tokens.len()).sum(),
            weights: student.weights().count(),
            scales: scales.sum(),
            left_alone: student.left_alone(),
            before,
            after,
            left_behind: companions.left_behind,
        };
        manifest.write(&folder, &student, &distilled)?;
        Ok(Distilled { output: folder.finish()?, ..distilled })
    }
}

/// Student and teacher must have tokens in common.
fn check_pair(student: &Decoder, teacher: &Teacher<'_>) -> Result<(), String> {
    let (ours, theirs) = (student.vocab_size(), teacher.decoder.vocab_size());
    if ours == theirs {
        return Ok(());
    }
    Err(format!(
        "its vocabulary has {ours} tokens, that of {} has {theirs}: give the model that it was compressed from",
        teacher.checkpoint.path().display()
    ))
}

/// A sample, and its number among all, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Sample<'s> {
    number: usize,
    tokens: &'s [u32],
}

/// Samples, by what is done with them.
struct Split<'s> {
    learned_from: Vec<Sample<'s>>,
    /// Spread over all.
    held_out: Vec<Sample<'s>>,
}

impl<'s> Split<'s> {
    fn of(samples: &'s Samples) -> Result<Self, String> {
        let all = samples.sequences();
        if all.len() < 2 {
            return Err(format!(
                "{} samples of tokens are too few: one is learned from, another one judges; give text, or more of it",
                all.len()
            ));
        }
        let count = (all.len() / HELD_OUT).clamp(1, MOST_HELD_OUT);
        let every = all.len() / count;
        let all = all.iter().enumerate().map(|(number, tokens)| Sample { number, tokens });
        let (held_out, learned_from) =
            all.partition(|sample| sample.number % every == every - 1 && sample.number / every < count);
        Ok(Self { learned_from, held_out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_samples_are_held_out() {
        for (samples, expected) in [(2, 1), (9, 1), (16, 2), (100, 12), (128, 16), (1000, 16)] {
            let sequences = (0..samples).map(|number| vec![number]).collect();
            let samples = Samples::tokens(sequences).unwrap();
            let Split { learned_from, held_out } = Split::of(&samples).unwrap();
            assert_eq!(held_out.len(), expected);
            let mut all = [learned_from, held_out].concat();
            all.sort_unstable();
            let whole = samples.sequences().iter().enumerate();
            assert!(all.into_iter().eq(whole.map(|(number, tokens)| Sample { number, tokens })));
        }
        let one = Samples::tokens(vec![vec![1, 2]]).unwrap();
        assert!(Split::of(&one).err().unwrap().contains("too few"));
    }
}
