use tersor::report::layers_table;
use tersor::{Checkpoint, Plan};

use super::args::CompressArgs;
use super::output::{Output, human};
use super::plan::notes;
use super::{Failure, Outcome};

pub(super) fn run(args: &CompressArgs, output: &Output) -> Result<Outcome, Failure> {
    let checkpoint = Checkpoint::open(&args.source)?;
    let recipe = args.recipe.read()?;
    let plan = Plan::new(&checkpoint, &recipe)?;
    for note in notes(&plan) {
        output.note(&format!("note: {note}"));
    }
    let run = plan.run(&args.output, &mut output.progress()?)?;
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
