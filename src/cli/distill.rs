use tersor::pipeline::{Distillation, Distilled};
use tersor::report::{Align, Table};
use tersor::{Checkpoint, Cut};

use super::args::DistillArgs;
use super::compress::read_samples;
use super::output::Output;
use super::plan::left_behind;
use super::{Failure, Outcome};

pub(super) fn run(args: &DistillArgs, seed: u64, output: &Output) -> Result<Outcome, Failure> {
    let [compressed, original] = [&args.model, &args.original].map(Checkpoint::open);
    let (compressed, original) = (compressed?, original?);
    let cut = Cut { samples: args.samples.get(), context: args.context.get(), seed };
    let samples = read_samples(&args.calibration, cut, &original)?;
    let distillation = Distillation::new(args.steps).rate(args.rate);
    let mut progress = output.steps()?;
    let distilled = distillation.run(&compressed, &original, &samples, &args.output, &mut progress)?;
    if let Some(note) = left_behind(distilled.left_behind.iter().map(AsRef::as_ref)) {
        output.note(&format!("note: {note}"));
    }
    output.print(&distilled, &table(&distilled), &summary(&distilled))?;
    Ok(Outcome::Done)
}

fn table(distilled: &Distilled) -> Table {
    let columns = ["steps", "samples", "weights", "scales", "nats/token before", "after"];
    let mut table = Table::new(columns.map(|name| (name, Align::Right)));
    let Distilled { steps, samples, weights, scales, before, after, .. } = distilled;
    let counts = [*steps, *samples, *weights, *scales].map(|count| (count as u64).into());
    table.row(counts.into_iter().chain([*before, *after].map(|nats| format!("{nats:.4}").into())));
    table
}

fn summary(distilled: &Distilled) -> String {
    let Distilled { held_out, held_out_tokens, left_alone, output, .. } = distilled;
    let mut text = format!(
        "\nDivergence from the original's predictions on {held_out} samples ({held_out_tokens} tokens) that were not learned from.\n"
    );
    if !left_alone.is_empty() {
        text.push_str(&format!(
            "{} compressed weights keep their scales: {}\n",
            left_alone.len(),
            left_alone.join(", ")
        ));
    }
    text.push_str(&format!("Written to {}\n", output.display()));
    text
}
