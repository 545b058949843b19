use std::path::Path;

use tersor::pipeline::{BlockInputs, Calibration};
use tersor::report::layers_table;
use tersor::{Checkpoint, Cut, Execution, Needs, Network, Plan, Recipe, Samples, Tokenizer};

use super::args::{CalibrationArgs, CompressArgs, Inputs};
use super::output::{Output, human};
use super::plan::notes;
use super::{Failure, Outcome};

pub(super) fn run(args: &CompressArgs, seed: u64, output: &Output) -> Result<Outcome, Failure> {
    let checkpoint = Checkpoint::open(&args.source)?;
    let recipe = args.recipe.read()?;
    let samples = args.calibration.samples(&checkpoint, seed)?;
    let plan = args.calibration.plan(&checkpoint, &recipe, samples.as_ref(), output)?;
    for note in notes(&plan) {
        output.note(&format!("note: {note}"));
    }
    let run = match &samples {
        None => plan.run(&args.output, &mut output.progress()?)?,
        Some(samples) => {
            if plan.needs() == Needs::Nothing && !recipe.measures_sensitivity() {
                output.note("note: nothing in this recipe looks at the calibration samples");
            }
            let calibration = args.calibration.of(samples)?;
            plan.run_calibrated(&args.output, calibration, &mut output.progress()?)?
        }
    };
    let clamped: u64 = run.layers.iter().map(|l| l.clamped).sum();
    if clamped > 0 {
        output.note(&format!(
            "note: {clamped} values were beyond the largest finite one and were clamped to it"
        ));
    }
    let summary = format!(
        "\n{} → {} ({:.2}× smaller) in {}",
        human(run.bytes_before),
        human(run.bytes_after),
        run.bytes_before as f64 / run.bytes_after.max(1) as f64,
        run.output.display(),
    );
    output.print(&run, &layers_table(&run.layers), &summary)?;
    Ok(Outcome::Done)
}

impl CalibrationArgs {
    /// The samples, if some are asked for.
    pub(super) fn samples(&self, checkpoint: &Checkpoint, seed: u64) -> Result<Option<Samples>, Failure> {
        let Some(path) = &self.calibration else { return Ok(None) };
        let cut = Cut { samples: self.samples.get(), context: self.context.get(), seed };
        Ok(Some(read_samples(path, cut, checkpoint)?))
    }

    /// The plan of a recipe, which may go by what the samples say.
    pub(super) fn plan<'c>(
        &self,
        checkpoint: &'c Checkpoint,
        recipe: &'c Recipe,
        samples: Option<&Samples>,
        output: &Output,
    ) -> Result<Plan<'c>, Failure> {
        match samples {
            Some(samples) if recipe.measures_sensitivity() => {
                let calibration = self.of(samples)?;
                Ok(Plan::calibrated(checkpoint, recipe, calibration, &mut output.progress()?)?)
            }
            _ => Ok(Plan::new(checkpoint, recipe)?),
        }
    }

    pub(super) fn of<'s>(&'s self, samples: &'s Samples) -> Result<Calibration<'s>, Failure> {
        let inputs = match self.inputs {
            Inputs::Compressed => BlockInputs::Compressed,
            Inputs::Dense => BlockInputs::Dense,
        };
        let calibration = Calibration::new(samples).inputs(inputs).strict(self.strict);
        match (&self.statistics, self.inputs) {
            (None, _) => Ok(calibration),
            (Some(folder), Inputs::Dense) => Ok(calibration.statistics(folder)),
            (Some(_), Inputs::Compressed) => {
                Err("--statistics: what compressed layers give is not the same for every recipe; add `--inputs dense`".into())
            }
        }
    }
}

/// Samples for a network.
pub(super) fn read_samples(path: &Path, cut: Cut, checkpoint: &Checkpoint) -> Result<Samples, Failure> {
    let is_decoder = Network::open(checkpoint, Execution::default())?.decoder().is_ok();
    // only texts need one
    let tokenizer = Tokenizer::of(checkpoint).ok();
    Ok(Samples::read(path, cut, is_decoder, tokenizer.as_ref())?)
}
