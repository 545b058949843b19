use std::path::Path;

use tersor::report::Variant;
use tersor::{Checkpoint, Comparison};

use super::args::CompareArgs;
use super::output::Output;
use super::{Failure, Outcome};

pub(super) fn run(args: &CompareArgs, output: &Output) -> Result<Outcome, Failure> {
    let images = args.task.images()?;
    let source = Checkpoint::open(&args.source)?;
    let mut comparison = Comparison::new();
    comparison.add_reference(&name(&args.source), &source, images.as_ref())?;
    for path in &args.outputs {
        comparison.add(&name(path), &Checkpoint::open(path)?, images.as_ref())?;
    }
    let summary: Vec<String> = comparison.variants.iter().filter_map(not_compared).collect();
    output.print(&comparison, &comparison.table(), &summary.join("\n"))?;
    Ok(Outcome::Done)
}

/// What a comparison left out.
fn not_compared(variant: &Variant) -> Option<String> {
    let first = variant.not_compared.first()?;
    let others = match variant.not_compared.len() - 1 {
        0 => String::new(),
        n => format!(" and {n} others (all with --json)"),
    };
    Some(format!("note: {}: not compared: `{}` ({}){others}", variant.name, first.name, first.reason))
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}
