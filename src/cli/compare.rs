use std::path::Path;

use tersor::report::Variant;
use tersor::{Checkpoint, Comparison, Execution, Network, Score, Task};

use super::args::CompareArgs;
use super::files;
use super::output::Output;
use super::{Failure, Outcome};

pub(super) fn run(args: &CompareArgs, output: &Output) -> Result<Outcome, Failure> {
    // before hours of work
    args.html.iter().try_for_each(|path| files::check(path))?;
    args.plots.iter().try_for_each(|folder| files::check_folder(folder))?;
    let pricing = args.pricing()?;
    let execution = args.task.execution();
    let mut comparison = Comparison::new();
    args.task.files().try_for_each(|path| comparison.add_data(path))?;
    let source = Checkpoint::open(&args.source)?;
    // kept in memory only by those who are held against it
    let reference = args.task.needs_reference().then(|| Network::open(&source, Execution::default()));
    let reference = reference.transpose()?;
    let tasks = args.task.tasks(&source, reference.as_ref())?;
    let source_scores = scores(&source, execution, &tasks)?;
    comparison.add_reference(&name(&args.source), &source, source_scores)?;
    for path in &args.outputs {
        let checkpoint = Checkpoint::open(path)?;
        let scores = scores(&checkpoint, execution, &tasks)?;
        comparison.add(&name(path), &checkpoint, scores)?;
    }
    if let Some(pricing) = pricing {
        comparison.price(pricing);
    }
    if let Some(keep) = args.keep {
        comparison.keep(keep);
    }
    let mut summary: Vec<String> = comparison.variants.iter().filter_map(not_compared).collect();
    summary.extend(comparison.verdicts.iter().map(|verdict| format!("\n{}", verdict.sentence)));
    if let Some(path) = &args.html {
        files::replace(path, &comparison.to_html()?)?;
        summary.push(format!("\nreport in {}", path.display()));
    }
    if let Some(folder) = &args.plots {
        files::create_folder(folder)?;
        for (name, svg) in comparison.plots() {
            files::replace(&folder.join(name), &svg)?;
        }
        summary.push(format!("plots in {}", folder.display()));
    }
    output.print(&comparison, &comparison.table(), &summary.join("\n"))?;
    Ok(Outcome::Done)
}

/// What every task says of a model.
pub(super) fn scores(
    checkpoint: &Checkpoint,
    execution: Execution,
    tasks: &[Box<dyn Task<Network> + '_>],
) -> Result<Vec<Score>, Failure> {
    let mut scores = Vec::new();
    if !tasks.is_empty() {
        let network = Network::open(checkpoint, execution)?;
        for task in tasks {
            scores.extend(task.score(&network)?);
        }
    }
    // what is measured next is not to count it
    checkpoint.release_memory();
    Ok(scores)
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
