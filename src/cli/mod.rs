//! Parse, call the library, print.

mod args;
mod compare;
mod compress;
mod demo;
mod distill;
mod eval;
mod files;
mod generate;
mod inspect;
mod output;
mod plan;
mod sample;
mod shrink;
mod task;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use args::{Arguments, Command};
use output::Output;

/// What a subcommand can fail with; printed as one line.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How a subcommand that did not fail ended.
enum Outcome {
    Done,
    /// `verify` found differences.
    Different,
}

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const DIFFERENT: u8 = 3;
const STOPPED: u8 = 130;

pub(crate) fn main() -> ExitCode {
    let arguments = match Arguments::read() {
        Ok(arguments) => arguments,
        Err(error) => {
            // help and version go to stdout and are no errors
            let code = if error.use_stderr() { USAGE } else { 0 };
            error.print().ok();
            return ExitCode::from(code);
        }
    };
    match run(&arguments) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Different) => ExitCode::from(DIFFERENT),
        Err(error) => {
            // `eprintln!` would panic when nobody reads
            writeln!(std::io::stderr(), "error: {}", tersor::one_line(error.as_ref())).ok();
            let stopped = matches!(error.downcast_ref(), Some(tersor::PipelineError::Stopped));
            ExitCode::from(if stopped { STOPPED } else { FAILED })
        }
    }
}

fn run(arguments: &Arguments) -> Result<Outcome, Failure> {
    if let Some(threads) = arguments.common.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global()?;
    }
    // a level that was asked for and cannot be had is an error, not a silent other level
    if let Some(level) = tersor::CpuLevel::from_env()? {
        level.set_current()?;
    }
    let output = Output::new(&arguments.common);
    match &arguments.command {
        Command::Inspect(args) => inspect::run(args, &output),
        Command::Plan(args) => plan::run(args, arguments.common.seed, &output),
        Command::Compress(args) => compress::run(args, arguments.common.seed, &output),
        Command::Shrink(args) => shrink::run(args, arguments.common.seed, &output),
        Command::Eval(args) => eval::run(args, &output),
        Command::Compare(args) => compare::run(args, &output),
        Command::Generate(args) => generate::run(args, arguments.common.seed, &output),
        Command::Sample(args) => sample::run(args, arguments.common.seed, &output),
        Command::Distill(args) => distill::run(args, arguments.common.seed, &output),
        Command::Verify(args) => verify::run(args, &output),
        Command::Demo(args) => demo::run(args, &output),
    }
}
