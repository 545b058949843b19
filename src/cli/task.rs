use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, ValueEnum};
use tersor::evaluate::{self, Agreement, SentencePair, StsPair, Windows};
use tersor::{
    ActivationCodes, Activations, Checkpoint, Classification, Execution, Generation, ImageSet, Latency,
    Network, Perplexity, PlainWeights, Similarity, Task, Tokenizer,
};

use super::Failure;

/// Tokens of a window, if nothing else is asked for.
const CONTEXT: usize = 512;

/// What to measure, on what, and how the networks run.
#[derive(Args)]
#[command(next_help_heading = "Tasks")]
pub(super) struct TaskArgs {
    /// What to measure; several joined by `,`
    #[arg(long, value_name = "TASK", value_delimiter = ',')]
    task: Vec<TaskName>,
    /// The text (UTF-8) of `perplexity` and `agreement`, or the pairs of `sts` as sts-test.csv has them
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// `perplexity`, `agreement`: tokens that go through the model together [default: 512]; `generation`: of the prompt [default:
    /// 16]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// `perplexity`, `agreement`: tokens from one window to the next [default: the context]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// `perplexity`, `agreement`: the first N tokens of the text alone; `sts`: of every sentence, special ones included
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// `perplexity`, `agreement`: put the token that begins texts in front of every window
    #[arg(long)]
    bos: bool,
    /// `perplexity`, `agreement`: the data are several texts with this between them; each is tokenized and cut by itself
    #[arg(long, value_name = "TEXT")]
    split: Option<String>,
    /// `agreement`: the checkpoint that the model is held against
    #[arg(long, value_name = "SRC")]
    reference: Option<PathBuf>,
    /// `classify`: idx3-ubyte, gzipped or not
    #[arg(long, value_name = "IDX.gz")]
    images: Option<PathBuf>,
    /// `classify`: idx1-ubyte, gzipped or not
    #[arg(long, value_name = "IDX.gz")]
    labels: Option<PathBuf>,
    /// `latency`: inputs that go through together; `generation`: texts that go on together, for which plain weights are arranged
    /// in memory if N is above 1 [default: 1]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// `latency`: tokens of a sequence; `generation`: tokens to add [default: 128]
    #[arg(long, value_name = "N")]
    length: Option<usize>,
    /// How activations enter products with integer weights
    #[arg(long, value_name = "HOW", requires = "task")]
    activations: Option<ActivationChoice>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TaskName {
    /// Top-1 accuracy on labelled images: --images, --labels
    Classify,
    /// Perplexity of a language model: --data, --context, --stride, --max-tokens, --bos, --split
    Perplexity,
    /// KL divergence and top-1 agreement with another language model: as perplexity, and --reference
    Agreement,
    /// Correlation of a sentence encoder with people's similarities: --data, --max-tokens
    Sts,
    /// Times of a pass, throughput and memory: --batch, --length
    Latency,
    /// How fast a language model goes on with texts, token by token: --context, --length, --batch
    Generation,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum ActivationChoice {
    /// As the model says
    Stored,
    /// As they are
    Float,
    /// Rounded to 8 bits, every token with its own scale
    Int8,
}

impl ActivationChoice {
    pub(super) fn execution(choice: Option<Self>) -> Execution {
        let activations = match choice {
            None | Some(Self::Stored) => None,
            Some(Self::Float) => Some(Activations::Float),
            Some(Self::Int8) => Some(Activations::Int8(ActivationCodes::PerToken)),
        };
        Execution { activations, ..Execution::default() }
    }
}

/// Where the reference of a task comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reference {
    /// It is named by an option.
    Option,
    /// It is the source of a comparison.
    Source,
}

impl TaskArgs {
    /// Checks that every option belongs to a task and that none is missing, as clap does for what it knows of.
    pub(super) fn check(&self, reference: Reference) -> Result<(), (ErrorKind, String)> {
        use TaskName::{Agreement, Classify, Generation, Latency, Perplexity, Sts};
        if self.batch.is_some() && self.task.contains(&Generation) && self.task.contains(&Latency) {
            let reason = "'--batch' cannot be used with the tasks 'generation' and 'latency' together: only a decoder generates, \
                          and its latency is that of one sequence; run them in two commands";
            return Err((ErrorKind::ArgumentConflict, reason.to_owned()));
        }
        let required = reference == Reference::Option;
        let agreement: &[TaskName] = if required { &[Agreement] } else { &[] };
        // option, whether it is given, the tasks that take it, and those that need it
        let options: [(&str, bool, &[TaskName], &[TaskName]); 11] = [
            ("--images", self.images.is_some(), &[Classify], &[Classify]),
            ("--labels", self.labels.is_some(), &[Classify], &[Classify]),
            ("--data", self.data.is_some(), &[Perplexity, Agreement, Sts], &[Perplexity, Agreement, Sts]),
            ("--reference", self.reference.is_some(), agreement, agreement),
            ("--context", self.context.is_some(), &[Perplexity, Agreement, Generation], &[]),
            ("--stride", self.stride.is_some(), &[Perplexity, Agreement], &[]),
            ("--max-tokens", self.max_tokens.is_some(), &[Perplexity, Agreement, Sts], &[]),
            ("--bos", self.bos, &[Perplexity, Agreement], &[]),
            ("--split", self.split.is_some(), &[Perplexity, Agreement], &[]),
            ("--batch", self.batch.is_some(), &[Latency, Generation], &[]),
            ("--length", self.length.is_some(), &[Latency, Generation], &[]),
        ];
        for (option, given, takers, needers) in options {
            let chosen = |tasks: &[TaskName]| self.task.iter().copied().find(|task| tasks.contains(task));
            if let (false, Some(task)) = (given, chosen(needers)) {
                let reason = format!("the task '{}' needs '{option}'", name(task));
                return Err((ErrorKind::MissingRequiredArgument, reason));
            }
            if given && chosen(takers).is_none() {
                let reason = if self.task.is_empty() {
                    format!("'{option}' belongs to a task, and none is given")
                } else if takers.is_empty() {
                    format!("'{option}' cannot be used here: the reference is the source")
                } else {
                    let tasks: Vec<String> =
                        self.task.iter().map(|task| format!("'{}'", name(*task))).collect();
                    format!("'{option}' cannot be used with the task {}", tasks.join(", "))
                };
                return Err((ErrorKind::ArgumentConflict, reason));
            }
        }
        Ok(())
    }

    /// How the networks run.
    pub(super) fn execution(&self) -> Execution {
        let several = self.task.contains(&TaskName::Generation) && self.batch.is_some_and(|batch| batch > 1);
        // as one would who serves several texts at a time
        let plain_weights = if several { PlainWeights::Packed } else { PlainWeights::Mapped };
        Execution { plain_weights, ..ActivationChoice::execution(self.activations) }
    }

    /// The network that `--reference` names, with its activations as they are: rounding is what it is there to judge.
    pub(super) fn reference(&self) -> Result<Option<Network>, Failure> {
        let open = |path| Ok(Network::open(&Checkpoint::open(path)?, Execution::default())?);
        self.reference.as_ref().map(open).transpose()
    }

    /// The tasks, ready to score any number of networks. Text becomes tokens with the tokenizer of this checkpoint.
    pub(super) fn tasks<'a>(
        &self,
        checkpoint: &Checkpoint,
        reference: Option<&'a Network>,
    ) -> Result<Vec<Box<dyn Task<Network> + 'a>>, Failure> {
        self.task.iter().map(|task| self.build(*task, checkpoint, reference)).collect()
    }

    /// The files that the tasks read.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.data, &self.images, &self.labels].into_iter().flatten()
    }

    /// Whether a task holds models against another.
    pub(super) fn needs_reference(&self) -> bool {
        self.task.contains(&TaskName::Agreement)
    }

    fn build<'a>(
        &self,
        task: TaskName,
        checkpoint: &Checkpoint,
        reference: Option<&'a Network>,
    ) -> Result<Box<dyn Task<Network> + 'a>, Failure> {
        Ok(match task {
            TaskName::Classify => {
                let images = ImageSet::open(
                    given(self.images.as_ref(), "--images")?,
                    given(self.labels.as_ref(), "--labels")?,
                )?;
                Box::new(Classification { images })
            }
            TaskName::Perplexity => {
                let (texts, windows) = self.texts(checkpoint)?;
                Box::new(Perplexity { texts, windows })
            }
            TaskName::Agreement => {
                let reference = reference.ok_or("a reference is needed")?.language_model()?;
                let (texts, windows) = self.texts(checkpoint)?;
                Box::new(Agreement { reference, texts, windows })
            }
            TaskName::Sts => Box::new(self.pairs(checkpoint)?),
            TaskName::Generation => {
                let default = Generation::default();
                Box::new(Generation {
                    prompt: self.context.unwrap_or(default.prompt),
                    length: self.length.unwrap_or(default.length),
                    batch: self.batch.unwrap_or(default.batch),
                    ..default
                })
            }
            TaskName::Latency => {
                let default = Latency::default();
                let batch = self.batch.unwrap_or(default.batch);
                Box::new(Latency { batch, length: self.length.unwrap_or(default.length), ..default })
            }
        })
    }

    /// The texts' tokens and how they are cut.
    fn texts(&self, checkpoint: &Checkpoint) -> Result<(Vec<Vec<u32>>, Windows), Failure> {
        let text = evaluate::read_text(given(self.data.as_ref(), "--data")?)?;
        let tokenizer = Tokenizer::of(checkpoint)?;
        let mut texts = Vec::new();
        let mut left = self.max_tokens.unwrap_or(usize::MAX);
        let parts: Vec<&str> = match &self.split {
            Some(separator) => {
                text.split(separator.as_str()).map(str::trim).filter(|t| !t.is_empty()).collect()
            }
            None => vec![&text],
        };
        for part in parts {
            if left == 0 {
                break;
            }
            let mut tokens = tokenizer.encode(part, false)?;
            tokens.truncate(left);
            left -= tokens.len();
            texts.push(tokens);
        }
        let mut windows = Windows::of(self.context.unwrap_or(CONTEXT));
        windows.stride = self.stride.unwrap_or(windows.stride);
        if self.bos {
            windows.bos = Some(tokenizer.bos().ok_or_else(|| {
                let path = checkpoint.path().display();
                format!("{path}: config.json names no bos_token_id: leave out --bos")
            })?);
        }
        Ok((texts, windows))
    }

    /// The pairs' tokens.
    fn pairs(&self, checkpoint: &Checkpoint) -> Result<Similarity, Failure> {
        let pairs = evaluate::read_sts(given(self.data.as_ref(), "--data")?)?;
        let tokenizer = Tokenizer::of(checkpoint)?;
        let tokens = |text: &String| match self.max_tokens {
            Some(limit) => tokenizer.encode_truncated(text, limit),
            None => tokenizer.encode(text, true),
        };
        let pair = |StsPair { sentences: [a, b], similarity }: &StsPair| {
            Ok(SentencePair { tokens: [tokens(a)?, tokens(b)?], similarity: *similarity })
        };
        Ok(Similarity { pairs: pairs.iter().map(pair).collect::<Result<_, Failure>>()? })
    }
}

/// What [`TaskArgs::check`] has found to be there.
fn given<'a>(path: Option<&'a PathBuf>, option: &str) -> Result<&'a PathBuf, Failure> {
    path.ok_or_else(|| format!("{option} is needed").into())
}

fn name(task: TaskName) -> String {
    task.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
