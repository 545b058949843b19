mod recipe;

use std::num::{NonZeroUsize, ParseFloatError};
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use tersor::pipeline::Distillation;
use tersor::report::{Keep, Pricing};
use tersor::{Amount, BlockChoice, Importance};

pub(super) use self::recipe::RecipeArgs;
use super::Failure;
use super::task::{ActivationChoice, Reference, TaskArgs};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed; one line on stderr says why, and no half-written output is left
  2    the command line is wrong
  3    verify found differences
  130  stopped by Ctrl-C; nothing was written";

/// Makes trained neural networks smaller, and says what it cost.
#[derive(Parser)]
#[command(name = "tersor", version, styles = STYLES, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(subcommand)]
    pub(super) command: Command,
}

impl Arguments {
    /// Reads the command line.
    pub(super) fn read() -> Result<Self, clap::Error> {
        let arguments = Self::try_parse()?;
        let (subcommand, checked) = match &arguments.command {
            Command::Eval(args) => ("eval", args.task.check(Reference::Option)),
            Command::Compare(args) => ("compare", args.task.check(Reference::Source)),
            _ => return Ok(arguments),
        };
        checked.map(|()| arguments).map_err(|(kind, message)| {
            let mut command = Self::command();
            command.build();
            command
                .find_subcommand_mut(subcommand)
                .map_or_else(|| clap::Error::new(kind), |subcommand| subcommand.error(kind, message))
        })
    }
}

#[derive(Args)]
#[command(next_help_heading = "Options of every command")]
#[allow(clippy::struct_excessive_bools)] // flags of a command line
pub(super) struct Common {
    /// Print one JSON document on stdout
    #[arg(long, global = true, group = "style")]
    pub(super) json: bool,
    /// Print the table as Markdown
    #[arg(long, global = true, group = "style")]
    pub(super) markdown: bool,
    /// Print the table as comma-separated values
    #[arg(long, global = true, group = "style")]
    pub(super) csv: bool,
    /// Number of threads; by default as many as there are cores
    #[arg(long, global = true, value_name = "N")]
    pub(super) threads: Option<NonZeroUsize>,
    /// Seed of everything random
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    /// No progress bar and no notes on stderr
    #[arg(long, short, global = true)]
    pub(super) quiet: bool,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the tensors of a checkpoint: class, shape, form, bytes
    Inspect(InspectArgs),
    /// Say what a recipe would do to every tensor, and why, without doing it
    Plan(PlanArgs),
    /// Compress a checkpoint into a new folder
    Compress(CompressArgs),
    /// Leave out neurons, heads, channels or blocks: an ordinary smaller model
    Shrink(ShrinkArgs),
    /// Score a model
    Eval(EvalArgs),
    /// Put checkpoints side by side: size, accuracy, time, worst layer
    Compare(CompareArgs),
    /// Go on with a text
    Generate(GenerateArgs),
    /// Let a model write the text that it is calibrated on
    Sample(SampleArgs),
    /// Let a compressed model learn its scales from what the original predicts
    Distill(DistillArgs),
    /// Check a compressed folder against its source
    Verify(VerifyArgs),
    /// Compress two small networks in many ways and show what each costs
    Demo(DemoArgs),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  tersor inspect model.safetensors
  tersor inspect SmolLM2-135M --json | jq '.tensors[] | select(.class == \"linear\") | .name'")]
pub(super) struct InspectArgs {
    /// A safetensors file, or a folder with one or several
    pub(super) source: PathBuf,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  tersor plan SmolLM2-135M --preset int4 --group-size 64
  tersor plan SmolLM2-135M --recipe recipe.toml --json")]
pub(super) struct PlanArgs {
    /// A safetensors file, or a folder with one or several
    pub(super) source: PathBuf,
    #[command(flatten)]
    pub(super) recipe: RecipeArgs,
    #[command(flatten)]
    pub(super) calibration: CalibrationArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  tersor compress SmolLM2-135M --preset int8 -o SmolLM2-135M-int8
  tersor compress SmolLM2-135M --preset int4 --group-size 64 --ignore '*.down_proj' -o out
  tersor compress model.safetensors --preset 2:4+int8 -o out
  tersor compress SmolLM2-135M --preset int4 --group-size 64 --method gptq --calibration tinystories.txt -o out
  tersor compress SmolLM2-135M --preset 50% --pruning wanda --calibration tinystories.txt -o out
  tersor compress SmolLM2-135M --preset 2:4+int4 --pruning sparsegpt --method gptq --calibration tinystories.txt -o out
  tersor compress SmolLM2-135M --preset int4 --group-size 64 --transform awq --method clip --calibration tinystories.txt -o out
  tersor compress SmolLM2-135M --preset rank70%-weighted --calibration tinystories.txt -o out
  tersor compress SmolLM2-135M --preset codebook4 --entropy -o out
  tersor compress SmolLM2-135M-int8 --entropy -o out
  tersor compress SmolLM2-135M --recipe recipe.toml -o out --json

An interrupted calibrated run keeps its finished blocks in OUT.unfinished; the same command goes on from there.")]
pub(super) struct CompressArgs {
    /// A safetensors file, or a folder with one or several
    pub(super) source: PathBuf,
    #[command(flatten)]
    pub(super) recipe: RecipeArgs,
    #[command(flatten)]
    pub(super) calibration: CalibrationArgs,
    /// The folder to write; must not exist
    #[arg(long, short, value_name = "DIR")]
    pub(super) output: PathBuf,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  tersor shrink SmolLM2-135M --neurons 25%
  tersor shrink SmolLM2-135M --neurons 25% --calibration tinystories.txt -o SmolLM2-115M
  tersor shrink SmolLM2-135M --blocks 3 --by distance --heads 1 --calibration tinystories.txt -o out
  tersor shrink fixtures/fashion-mlp --neurons 50% --importance magnitude --no-repair -o out

What comes out is an ordinary model, to be compressed further with `tersor compress`.")]
pub(super) struct ShrinkArgs {
    /// A safetensors file, or a folder with one or several
    pub(super) source: PathBuf,
    /// Leave out neurons between two linear layers: a share of every layer's, such as 25%, or a number
    #[arg(long, value_name = "AMOUNT", required_unless_present_any = ["heads", "channels", "blocks"])]
    pub(super) neurons: Option<Amount>,
    /// Leave out attention heads; those that share keys and values go together and count as one
    #[arg(long, value_name = "AMOUNT")]
    pub(super) heads: Option<Amount>,
    /// Leave out channels of convolutions
    #[arg(long, value_name = "AMOUNT")]
    pub(super) channels: Option<Amount>,
    /// Leave out whole blocks
    #[arg(long, value_name = "AMOUNT")]
    pub(super) blocks: Option<Amount>,
    /// By what blocks are judged
    #[arg(long, value_name = "NAME", default_value = "influence", requires = "blocks", long_help = names_help("By what blocks are judged:", &BlockChoice::NAMES))]
    pub(super) by: Named<BlockChoice>,
    /// By what neurons, heads and channels are judged
    #[arg(long, value_name = "NAME", default_value = "wanda", long_help = names_help("By what neurons, heads and channels are judged:", &Importance::NAMES))]
    pub(super) importance: Named<Importance>,
    /// Do not fit the layers that took what is left out anew to what stays
    #[arg(long)]
    pub(super) no_repair: bool,
    /// Round the neurons and channels that stay up to a multiple; by default, of a share, to that of the largest power of
    /// two up to 32 that divides the number there was
    #[arg(long, value_name = "N")]
    pub(super) multiple: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(super) calibration: CalibrationArgs,
    /// The folder to write; must not exist. Without it, only say what would become of every tensor
    #[arg(long, short, value_name = "DIR")]
    pub(super) output: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  tersor sample SmolLM2-135M -o own-text.jsonl
  tersor distill SmolLM2-135M-int2 --original SmolLM2-135M --calibration own-text.jsonl -o SmolLM2-135M-int2-distilled
  tersor distill SmolLM2-135M-int3 --original SmolLM2-135M --calibration own-text.jsonl --steps 64 --rate 0.003 -o out

An interrupted run keeps what has been learned in OUT.unfinished; the same command goes on from there.")]
pub(super) struct DistillArgs {
    /// A compressed decoder: one with layers of integers or e4m3
    pub(super) model: PathBuf,
    /// The model that it was compressed from, whose predictions it learns
    #[arg(long, value_name = "DIR")]
    pub(super) original: PathBuf,
    /// What both read: text, JSON lines with `text` or `input_ids`, or safetensors with `input_ids`; best what the original writes
    /// itself, with `tersor sample`
    #[arg(long, value_name = "FILE")]
    pub(super) calibration: PathBuf,
    /// Samples to take of it; one of eight, 16 at most, judges and is not learned from
    #[arg(long, value_name = "N", default_value = "128")]
    pub(super) samples: NonZeroUsize,
    /// Most tokens of a sample
    #[arg(long, value_name = "N", default_value = "512")]
    pub(super) context: NonZeroUsize,
    /// Steps, of two samples each
    #[arg(long, value_name = "N", default_value = "128")]
    pub(super) steps: NonZeroUsize,
    /// How far the first step moves the least of symmetric codes, in distances between codes; later ones go less far, along a cosine
    #[arg(long, value_name = "RATE", default_value_t = Distillation::RATE)]
    pub(super) rate: f32,
    /// The folder to write; must not exist
    #[arg(long, short, value_name = "DIR")]
    pub(super) output: PathBuf,
}

/// A choice that the library knows by its name.
#[derive(Clone, Copy)]
pub(super) struct Named<T>(pub(super) T);

impl FromStr for Named<BlockChoice> {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        BlockChoice::from_name(name).map(Self).ok_or_else(|| unknown(&BlockChoice::NAMES))
    }
}

impl FromStr for Named<Importance> {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Importance::from_name(name).map(Self).ok_or_else(|| unknown(&Importance::NAMES))
    }
}

fn unknown(names: &[(&str, &str)]) -> String {
    format!("it is one of {}", names.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "))
}

#[derive(Args)]
#[command(next_help_heading = "Calibration")]
pub(super) struct CalibrationArgs {
    /// What the network runs on: text, JSON lines with `text` or `input_ids`, or safetensors with `input_ids` or `inputs`;
    /// `tersor sample` lets a model write some
    #[arg(long, value_name = "FILE")]
    pub(super) calibration: Option<PathBuf>,
    /// Samples to take of it
    #[arg(long, value_name = "N", default_value = "128", requires = "calibration")]
    pub(super) samples: NonZeroUsize,
    /// Most tokens of a sample
    #[arg(long, value_name = "N", default_value = "512", requires = "calibration")]
    pub(super) context: NonZeroUsize,
    /// What the layers see
    #[arg(long, value_name = "WHICH", default_value = "compressed", requires = "calibration")]
    pub(super) inputs: Inputs,
    /// Keep what the layers see in this folder, or take it from there; for dense inputs
    #[arg(long, value_name = "DIR", requires = "calibration")]
    pub(super) statistics: Option<PathBuf>,
    /// Stop where a method loses to plain rounding or magnitude pruning, or something else does not go as asked
    #[arg(long, requires = "calibration")]
    pub(super) strict: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Inputs {
    /// What the compressed layers before give
    Compressed,
    /// What they got before anything was compressed
    Dense,
}

fn names_help(help: &str, names: &[(&str, &str)]) -> String {
    let lines = names.iter().map(|(name, what)| format!("  {name:<15} {what}"));
    std::iter::once(help.to_owned()).chain(lines).collect::<Vec<_>>().join("\n")
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  tersor eval SmolLM2-135M-int8 --task perplexity --data wikitext2-test.txt --context 512
  tersor eval SmolLM2-135M-int8 --task agreement --reference SmolLM2-135M --data wikitext2-test.txt --activations int8
  tersor eval all-MiniLM-L6-v2 --task sts,latency --data stsb-test.csv --batch 32 --length 64
  tersor eval fixtures/fashion-mlp --task classify \\
      --images fixtures/fashion-mnist/t10k-images-idx3-ubyte.gz --labels fixtures/fashion-mnist/t10k-labels-idx1-ubyte.gz")]
#[command(mut_arg("task", |a| a.required(true)))]
pub(super) struct EvalArgs {
    /// A checkpoint, compressed or not
    pub(super) model: PathBuf,
    #[command(flatten)]
    pub(super) task: TaskArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  tersor compare model model-int8 model-int4
  tersor compare fixtures/fashion-mlp out-int8 out-int4 --task classify --images IMAGES.gz --labels LABELS.gz --html report.html
  tersor compare model model-int8 --task … --keep 99% --price-per-hour 0.34 --currency EUR --volume 1e9")]
pub(super) struct CompareArgs {
    /// The checkpoint that the others were made from
    pub(super) source: PathBuf,
    /// Compressed checkpoints
    #[arg(required = true)]
    pub(super) outputs: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) task: TaskArgs,
    /// Write the report with plots as one HTML page that needs no network; its folder must exist
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Write the plots as SVG files into this folder, which is made if the one above it exists
    #[arg(long, value_name = "DIR")]
    pub(super) plots: Option<PathBuf>,
    /// Work out what each costs on a machine with this price, from its score of throughput
    #[arg(long, value_name = "X", value_parser = positive)]
    pub(super) price_per_hour: Option<f64>,
    /// What the price is paid in
    #[arg(long, value_name = "NAME", default_value = "$", requires = "price_per_hour")]
    pub(super) currency: String,
    /// Predictions or tokens a year, such as 1e9
    #[arg(long, value_name = "N", value_parser = positive, requires = "price_per_hour")]
    pub(super) volume: Option<f64>,
    /// Say which is the cheapest (without a price: the smallest) that keeps this part of the first score, such as 99%
    #[arg(long, value_name = "PART")]
    pub(super) keep: Option<Keep>,
}

impl CompareArgs {
    pub(super) fn pricing(&self) -> Result<Option<Pricing>, Failure> {
        let Some(per_hour) = self.price_per_hour else { return Ok(None) };
        let pricing = Pricing::new(per_hour)?.currency(&self.currency);
        Ok(Some(match self.volume {
            Some(volume) => pricing.volume(volume)?,
            None => pricing,
        }))
    }
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  tersor verify model model-int8
  tersor verify model model-int4 --max-relative-error 0.15")]
pub(super) struct VerifyArgs {
    /// The checkpoint that the output was made from
    pub(super) source: PathBuf,
    /// The compressed folder
    pub(super) output: PathBuf,
    /// Largest relative error of a tensor; by default what rounding to nearest explains, which ranges that clip
    /// (percentile, entropy) can exceed
    #[arg(long, value_name = "X", value_parser = positive)]
    pub(super) max_relative_error: Option<f64>,
}

fn positive(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|e: ParseFloatError| e.to_string())?;
    if value >= 0.0 { Ok(value) } else { Err("must not be negative".into()) }
}

#[derive(Args)]
#[command(after_help = "\
Example:
  cargo run --release -- demo")]
pub(super) struct DemoArgs {
    /// Where models and report are written
    #[arg(long, short, value_name = "DIR", default_value = "target/demo")]
    pub(super) output: PathBuf,
    /// Where the fixture networks and images are; by default `fixtures` here or where tersor was built
    #[arg(long, value_name = "DIR")]
    pub(super) fixtures: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  tersor generate SmolLM2-135M-int8 --prompt 'The lighthouse was built'
  tersor generate stories260k --prompt 'Once upon a time' --temperature 0.8 --top-p 0.9 --seed 7")]
pub(super) struct GenerateArgs {
    /// A decoder with its tokenizer, compressed or not
    pub(super) model: PathBuf,
    /// The text to go on with
    #[arg(long, value_name = "TEXT")]
    pub(super) prompt: String,
    /// Most tokens to add
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(super) max_new_tokens: usize,
    /// Draw tokens at random, from logits divided by this; without it the likeliest is taken
    #[arg(long, value_name = "T")]
    pub(super) temperature: Option<f64>,
    /// Draw from the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, requires = "temperature")]
    pub(super) top_p: f64,
    /// How activations enter products with integer weights
    #[arg(long, value_name = "HOW")]
    pub(super) activations: Option<ActivationChoice>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  tersor sample SmolLM2-135M -o own-text.jsonl
  tersor compress SmolLM2-135M --preset int4 --group-size 64 --method gptq --calibration own-text.jsonl -o SmolLM2-135M-int4")]
pub(super) struct SampleArgs {
    /// A decoder with its tokenizer
    pub(super) model: PathBuf,
    /// The file to write: on every line a JSON object with the `input_ids` of a sample
    #[arg(long, short, value_name = "FILE.jsonl")]
    pub(super) output: PathBuf,
    /// Number of samples
    #[arg(long, value_name = "N", default_value = "128")]
    pub(super) samples: NonZeroUsize,
    /// Tokens of each
    #[arg(long, value_name = "N", default_value = "512")]
    pub(super) context: NonZeroUsize,
    /// Tokens are drawn from logits divided by this
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    pub(super) temperature: f64,
    /// Draw from the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub(super) top_p: f64,
    /// Tokens to begin with, as ids with commas between; by default the one that `config.json` says begins a text or, if it
    /// names none, ends one
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub(super) start: Vec<u32>,
    /// Samples that are drawn at the same time; each takes memory for its keys and values. With another number, some samples can
    /// be others
    #[arg(long, value_name = "N", default_value = "16")]
    pub(super) at_once: NonZeroUsize,
}
