use std::io::Write;
use std::ops::ControlFlow;
use std::time::Instant;

use serde_json::json;
use tersor::report::{Align, Table};
use tersor::{Checkpoint, GenerateOptions, Network, Sampling, Tokenizer};

use super::args::GenerateArgs;
use super::output::Output;
use super::task::ActivationChoice;
use super::{Failure, Outcome};

pub(super) fn run(args: &GenerateArgs, seed: u64, output: &Output) -> Result<Outcome, Failure> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let tokenizer = Tokenizer::of(&checkpoint)?;
    let network = Network::open(&checkpoint, ActivationChoice::execution(args.activations))?;
    let model = network.decoder()?;
    let prompt = tokenizer.encode(&args.prompt, true)?;
    if prompt.is_empty() {
        return Err("--prompt has no tokens: give some text to go on with".into());
    }
    let sampling = match args.temperature {
        None => Sampling::Greedy,
        Some(temperature) => Sampling::Nucleus { temperature, top_p: args.top_p, seed },
    };
    let options =
        GenerateOptions { max_new_tokens: args.max_new_tokens, sampling, stop: tokenizer.eos().to_vec() };
    let mut tokens = prompt.clone();
    let mut text = tokenizer.decode(&tokens)?;
    let mut failure = None;
    let mut first = None;
    let stream = output.is_terminal();
    if stream {
        print(&text);
    }
    model.generate(&prompt, &options, &mut |token| {
        first.get_or_insert_with(Instant::now);
        tokens.push(token);
        match tokenizer.decode(&tokens) {
            // a character whose last bytes are still to come
            Ok(longer) if longer.ends_with('\u{fffd}') => {}
            Ok(longer) => {
                if stream {
                    print(longer.strip_prefix(text.as_str()).unwrap_or_default());
                }
                text = longer;
            }
            Err(error) => {
                failure = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    let new = tokens.len() - prompt.len();
    // the first token comes with the prompt
    let seconds = first.map_or(0.0, |start| start.elapsed().as_secs_f64());
    let rate = if new > 1 && seconds > 0.0 { Some((new - 1) as f64 / seconds) } else { None };
    if stream {
        print("\n");
        if let Some(rate) = rate {
            output.note(&format!("{new} tokens, {rate:.1} tokens/s"));
        }
        return Ok(Outcome::Done);
    }
    let value = json!({
        "model": args.model.display().to_string(),
        "prompt_tokens": prompt,
        "tokens": tokens[prompt.len()..],
        "text": text,
        "tokens_per_second": rate,
    });
    let mut table = Table::new([("text", Align::Left), ("new tokens", Align::Right)]);
    table.row([text.as_str().into(), (new as u64).into()]);
    output.print(&value, &table, "")?;
    Ok(Outcome::Done)
}

/// Someone who closes the pipe that is printed to has seen enough.
fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).ok();
}
