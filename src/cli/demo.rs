use std::fs;
use std::path::{Path, PathBuf};

use tersor::{
    Checkpoint, Classification, Comparison, Execution, ImageSet, Latency, Network, Plan, Recipe, Task,
};

use super::args::DemoArgs;
use super::compare::scores;
use super::files;
use super::output::Output;
use super::{Failure, Outcome};

const IMAGES: [&str; 2] = ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"];

const NETWORKS: [&str; 2] = ["fashion-mlp", "fashion-lenet"];

/// Images that go through together when a network is timed.
const TIMED_BATCH: usize = 100;

/// What the demo does to each network: a name, and a recipe.
const WAYS: [(&str, &str); 12] = [
    ("fp16", "[[step]]\nquantize = { type = \"f16\" }\nclasses = [\"linear\", \"conv\", \"bias\"]"),
    ("fp8", "[[step]]\nquantize = { type = \"f8_e4m3\" }"),
    ("int8", "[[step]]\nquantize = { bits = 8 }"),
    ("int6", "[[step]]\nquantize = { bits = 6 }"),
    ("int4-g64", "[[step]]\nquantize = { bits = 4, group_size = 64 }"),
    ("int4-g64-mse", "[[step]]\nquantize = { bits = 4, group_size = 64, observer = \"mse\" }"),
    ("int3-g32-asym", "[[step]]\nquantize = { bits = 3, group_size = 32, symmetric = false }"),
    ("2-4", "[[step]]\nprune = { method = \"n:m\", pattern = \"2:4\" }"),
    (
        "2-4-int8",
        "[[step]]\nprune = { method = \"n:m\", pattern = \"2:4\" }\n[[step]]\nquantize = { bits = 8 }",
    ),
    ("50%", "[[step]]\nprune = { method = \"magnitude\", sparsity = 0.5 }"),
    ("70%-global", "[[step]]\nprune = { method = \"magnitude\", sparsity = 0.7, scope = \"global\" }"),
    (
        "70%-global-int4",
        "[[step]]\nprune = { method = \"magnitude\", sparsity = 0.7, scope = \"global\" }\n\
         [[step]]\nquantize = { bits = 4, group_size = 64, observer = \"mse\" }",
    ),
];

pub(super) fn run(args: &DemoArgs, output: &Output) -> Result<Outcome, Failure> {
    let fixtures = find_fixtures(args.fixtures.as_deref())?;
    let data = fixtures.join("fashion-mnist");
    let images = ImageSet::open(data.join(IMAGES[0]), data.join(IMAGES[1]))?;
    let sources = NETWORKS.map(|network| Checkpoint::open(fixtures.join(network)));
    let sources = sources.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut comparison = Comparison::new();
    for name in IMAGES {
        comparison.add_data(data.join(name))?;
    }
    let count = images.len();
    let latency = Latency { batch: TIMED_BATCH, ..Latency::default() };
    let tasks: [Box<dyn Task<Network>>; 2] = [Box::new(Classification { images }), Box::new(latency)];
    let scores = |checkpoint: &Checkpoint| scores(checkpoint, Execution::default(), &tasks);
    for (network, source) in NETWORKS.iter().zip(&sources) {
        let before = scores(source)?;
        comparison.add_reference(network, source, before)?;
        for (name, recipe) in WAYS {
            let name = format!("{network}-{name}");
            output.note(&format!("{name} …"));
            let recipe = Recipe::from_toml(recipe)?;
            let target = args.output.join("models").join(&name);
            remove_earlier(&target)?;
            Plan::new(source, &recipe)?.run(&target, &mut output.progress()?)?;
            let checkpoint = Checkpoint::open(&target)?;
            let after = scores(&checkpoint)?;
            comparison.add(&name, &checkpoint, after)?;
        }
    }
    let table = comparison.table();
    let report = format!(
        "# What compression costs\n\nAccuracy on the {} images of the Fashion-MNIST test set; {} thread{}.\n\n{}",
        count,
        comparison.environment.threads,
        if comparison.environment.threads == 1 { "" } else { "s" },
        table.to_markdown()
    );
    files::replace(&args.output.join("report.json"), &serde_json::to_string_pretty(&comparison)?)?;
    files::replace(&args.output.join("report.md"), &report)?;
    files::replace(&args.output.join("report.html"), &comparison.to_html()?)?;
    let summary = format!("\nmodels and report in {}", args.output.display());
    output.print(&comparison, &table, &summary)?;
    Ok(Outcome::Done)
}

/// Removes what an earlier demo wrote, and nothing else.
fn remove_earlier(target: &Path) -> Result<(), Failure> {
    if target.join("tersor.json").is_file() {
        fs::remove_dir_all(target).map_err(|e| format!("{}: cannot remove: {e}", target.display()))?;
    }
    Ok(())
}

fn find_fixtures(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let candidates = match given {
        Some(folder) => vec![folder.to_path_buf()],
        None => vec![PathBuf::from("fixtures"), Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")],
    };
    let complete = |folder: &PathBuf| NETWORKS.iter().all(|n| folder.join(n).is_dir());
    candidates.iter().find(|f| complete(f)).cloned().ok_or_else(|| {
        format!(
            "{}: does not hold the demo's networks ({}); they come with the source of tersor, in its folder `fixtures` \
             (run the demo there, or name the folder with --fixtures), and its example `train_fashion` makes them anew",
            candidates[0].display(),
            NETWORKS.join(", ")
        )
        .into()
    })
}
