use std::fmt::Write;
use std::time::Instant;

use serde_json::json;
use tersor::report::{Align, Table};
use tersor::{Checkpoint, Execution, Network, OwnText, PipelineError, PlainWeights, Tokenizer};

use super::args::SampleArgs;
use super::output::Output;
use super::{Failure, Outcome, files};

pub(super) fn run(args: &SampleArgs, seed: u64, output: &Output) -> Result<Outcome, Failure> {
    files::check(&args.output)?;
    // what reads it goes by the ending
    if !args.output.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("jsonl")) {
        let path = args.output.display();
        return Err(format!("{path}: JSON lines are what is written: give a name that ends in .jsonl").into());
    }
    let checkpoint = Checkpoint::open(&args.model)?;
    let execution = Execution { plain_weights: PlainWeights::Packed, ..Execution::default() };
    let network = Network::open(&checkpoint, execution)?;
    let model = network.decoder()?;
    let tokenizer = Tokenizer::of(&checkpoint)?;
    let mut start = args.start.clone();
    if start.is_empty() {
        // some models have one token for both
        let Some(first) = tokenizer.bos().or(tokenizer.eos().first().copied()) else {
            return Err(format!(
                "{}: names neither `bos_token_id` nor `eos_token_id`: give the token that begins a text with --start",
                args.model.join("config.json").display()
            )
            .into());
        };
        start.push(first);
    }
    let text = OwnText {
        samples: args.samples.get(),
        context: args.context.get(),
        start,
        ends: tokenizer.eos().to_vec(),
        temperature: args.temperature,
        top_p: args.top_p,
        seed,
        at_once: args.at_once.get(),
    };
    let total = text.samples.saturating_mul(text.context) as u64;
    let since = Instant::now();
    let samples = text.draw(model, &mut output.tokens(total)?)?;
    let samples = samples.ok_or(PipelineError::Stopped)?;
    let rate = total as f64 / since.elapsed().as_secs_f64().max(1e-9);
    let mut lines = String::new();
    for tokens in samples.sequences() {
        writeln!(lines, "{}", json!({ "input_ids": tokens }))?;
    }
    files::replace(&args.output, &lines)?;
    let value = json!({
        "model": args.model.display().to_string(),
        "output": args.output.display().to_string(),
        "samples": text.samples,
        "tokens": total,
        "tokens_per_second": rate,
    });
    let columns = [("samples", Align::Right), ("tokens", Align::Right), ("tokens/s", Align::Right)];
    let mut table = Table::new(columns);
    table.row([(text.samples as u64).into(), total.into(), format!("{rate:.1}").into()]);
    output.print(&value, &table, &format!("Written to {}\n", args.output.display()))?;
    Ok(Outcome::Done)
}
