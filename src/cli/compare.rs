use std::path::{Path, PathBuf};

use tersor::report::Variant;
use tersor::{
    Better, Checkpoint, Comparison, EvaluateError, Execution, ImageSet, Network, Score, Task, classify,
};

use super::args::{CompareArgs, TaskArgs};
use super::files;
use super::output::Output;
use super::{Failure, Outcome};

/// Something that every model of a comparison is scored on.
pub(super) type Tasks = Vec<Box<dyn Task<Network>>>;

pub(super) fn run(args: &CompareArgs, output: &Output) -> Result<Outcome, Failure> {
    // before hours of work
    args.html.iter().try_for_each(|path| files::check(path))?;
    args.plots.iter().try_for_each(|folder| files::check_folder(folder))?;
    let pricing = args.pricing()?;
    let (tasks, data) = tasks(&args.task)?;
    let mut comparison = Comparison::new();
    data.iter().try_for_each(|path| comparison.add_data(path))?;
    let source = Checkpoint::open(&args.source)?;
    let source_scores = scores(&source, &tasks)?;
    comparison.add_reference(&name(&args.source), &source, source_scores)?;
    for path in &args.outputs {
        let checkpoint = Checkpoint::open(path)?;
        let scores = scores(&checkpoint, &tasks)?;
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

/// The tasks that were asked for, and the files of their data.
fn tasks(args: &TaskArgs) -> Result<(Tasks, Vec<PathBuf>), Failure> {
    let Some(images) = args.images()? else { return Ok((Vec::new(), Vec::new())) };
    let data = args.images.iter().chain(&args.labels).cloned().collect();
    Ok((image_tasks(images), data))
}

/// What is measured on images.
pub(super) fn image_tasks(images: ImageSet) -> Tasks {
    vec![Box::new(OnImages(images))]
}

/// What every task says of a model.
pub(super) fn scores(checkpoint: &Checkpoint, tasks: &Tasks) -> Result<Vec<Score>, Failure> {
    let mut scores = Vec::new();
    if !tasks.is_empty() {
        let network = Network::open(checkpoint, Execution::default())?;
        for task in tasks {
            scores.extend(task.score(&network)?);
        }
    }
    Ok(scores)
}

/// Accuracy on images, and the time that a hundred of them take together.
struct OnImages(ImageSet);

impl Task<Network> for OnImages {
    fn score(&self, network: &Network) -> Result<Vec<Score>, EvaluateError> {
        const BATCH: usize = 100;
        let Network::Sequential(model) = network else {
            network.classifier()?;
            return Ok(Vec::new());
        };
        let time = tersor::evaluate::time_per_sample(model, &self.0, BATCH)?.as_secs_f64().max(1e-12);
        let timed = |metric: &str, value: f64, unit: &str, better| Score {
            task: "latency".into(),
            metric: metric.into(),
            value,
            unit: unit.into(),
            better,
            samples: BATCH,
            interval: [value; 2],
        };
        Ok(vec![
            classify(model, &self.0)?,
            timed("latency_p50", time * BATCH as f64 * 1e3, "ms", Better::Lower),
            timed("samples_per_second", 1.0 / time, "samples/s", Better::Higher),
        ])
    }
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
