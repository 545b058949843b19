use std::path::Path;

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
    output.print(&comparison, &comparison.table(), "")?;
    Ok(Outcome::Done)
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}
