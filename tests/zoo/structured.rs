//! Networks that lose whole neurons.

use std::path::Path;

use libtest_mimic::Failed;
use tersor::pipeline::{Shrink, ShrinkPlan};
use tersor::{Calibration, Checkpoint, Cut, Importance, Samples, Tokenizer};

use crate::common::Folder;
use crate::scores::{FLOAT, of_stories};
use crate::{Add, check, go};

pub(crate) fn add(add: &mut Add<'_>) {
    add("perplexity_of_stories260k_with_fewer_neurons", stories, "stories260k");
}

/// Fitting the next layers anew keeps more than leaving the smallest neurons out.
fn stories(zoo: &Path, model: &str) -> Result<(), Failed> {
    let checkpoint = Checkpoint::open(zoo.join(model))?;
    let cut = Cut { samples: 32, context: 256, seed: 0 };
    let tokenizer = Tokenizer::of(&checkpoint)?;
    let samples = Samples::read(zoo.join("text/tinystories.txt"), cut, true, Some(&tokenizer))?;
    let folder = Folder::new();
    let perplexity = |shrink: Shrink, name: &str| -> Result<f64, Failed> {
        let output = folder.path().join(name);
        let shrunk =
            ShrinkPlan::new(&checkpoint, shrink)?.run(&output, Some(Calibration::new(&samples)), &mut go)?;
        // 172 are a multiple of 4
        check(shrunk.units.iter().all(|units| (units.before, units.after) == (172, 132)), || {
            format!("{:?}", shrunk.units.first())
        })?;
        of_stories(zoo, &Checkpoint::open(&output)?, FLOAT)
    };
    let shrink = Shrink::new().neurons("25%".parse()?);
    let repaired = perplexity(shrink, "repaired")?;
    let naive = perplexity(shrink.importance(Importance::Magnitude).repair(false), "naive")?;
    // 7.006918 before: repair takes back at least half of what naive removal costs
    let dense = 7.006_918;
    check(repaired > dense && repaired - dense < (naive - dense) / 2.0, || {
        format!("{repaired}, left out {naive}")
    })
}
