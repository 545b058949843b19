//! Compresses a sentence encoder in eight ways and asks of each: does it still know which sentences mean the same, how
//! many bytes is it, and how long does it take?
//!
//! ```text
//! cargo run --release --example quantize_embeddings -- MODEL PAIRS.csv [OUT]
//! ```
//!
//! MODEL is a Hugging Face folder of the `model_type` `bert`, PAIRS.csv the pairs of the STS benchmark (`sts-test.csv`).
//! The table is printed; OUT, by default `target/quantize_embeddings`, gets it as a page of HTML, with its plots beside
//! it. For all-MiniLM-L6-v2 and the 1,379 pairs of the test set, on two cores that were busy with other work too:
//!
//! ```text
//! model                      file bytes   smaller   weights smaller   spearman        drop   p50 latency   peak memory   worst layer                                     rel. error
//! ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
//! float                      90,868,376     1.00×             1.00×     0.8203          +0      117.8 ms      136.9 MB   –                                                        0
//! int8                       58,677,256     1.55×             1.55×     0.8199   +0.000412      109.9 ms      107.4 MB   encoder.layer.0.output.dense.weight                   2.1%
//! int8-a8                    58,677,256     1.55×             1.55×     0.8182    +0.00209      46.71 ms      107.4 MB   encoder.layer.0.output.dense.weight                   2.1%
//! int8-a8, embeddings too    23,049,272     3.94×             3.96×     0.8189    +0.00143      46.60 ms      89.75 MB   embeddings.token_type_embeddings.weight               3.4%
//! int4-g128                  53,547,656     1.70×             1.70×     0.8186    +0.00168      114.6 ms      114.7 MB   encoder.layer.1.output.dense.weight                  14.2%
//! int4-g64                   53,884,000     1.69×             1.69×     0.8151    +0.00526      118.8 ms      114.9 MB   encoder.layer.1.output.dense.weight                  12.4%
//! int4-g32                   54,556,800     1.67×             1.67×     0.8187     +0.0016      112.2 ms      114.7 MB   encoder.layer.1.output.dense.weight                  10.8%
//! fp8                        58,671,464     1.55×             1.55×     0.8207    -0.00036      123.8 ms      114.7 MB   encoder.layer.5.output.dense.weight                   2.6%
//! 2:4                        70,700,400     1.29×             1.29×     0.7721     +0.0482      213.8 ms      135.1 MB   encoder.layer.4.attention.output.dense.weight        36.5%
//!
//! report and plots in target/quantize_embeddings
//! ```
//!
//! `a8` rounds activations to 8 bits on the way. Half of the file is the table of words, which only the recipe that names
//! embeddings compresses. The 95 % interval of each correlation is about ±0.02: the pairs do not settle which group size is
//! best.

use std::error::Error;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tersor::evaluate::{SentencePair, StsPair, read_sts};
use tersor::{
    ActivationCodes, Activations, Checkpoint, Comparison, Execution, Latency, Network, Plan, Recipe, Score,
    Similarity, Task, Tokenizer, TokenizerError, one_line,
};

const NEEDED: &str = "needs MODEL PAIRS.csv [OUT]: any Hugging Face folder of a bert encoder, such as \
    sentence-transformers/all-MiniLM-L6-v2, and sts-test.csv of the STS benchmark";

const FLOAT: Activations = Activations::Float;
const INT8: Activations = Activations::Int8(ActivationCodes::PerToken);

/// Name, recipe, and how activations enter the products.
const WAYS: [(&str, &str, Activations); 8] = [
    ("int8", "step = [{ quantize = { bits = 8 } }]", FLOAT),
    ("int8-a8", "step = [{ quantize = { bits = 8 } }]", INT8),
    (
        "int8-a8, embeddings too",
        r#"step = [{ quantize = { bits = 8 }, classes = ["linear", "embedding"] }]"#,
        INT8,
    ),
    ("int4-g128", "step = [{ quantize = { bits = 4, group_size = 128 } }]", FLOAT),
    ("int4-g64", "step = [{ quantize = { bits = 4, group_size = 64 } }]", FLOAT),
    ("int4-g32", "step = [{ quantize = { bits = 4, group_size = 32 } }]", FLOAT),
    ("fp8", r#"step = [{ quantize = { type = "f8_e4m3" } }]"#, FLOAT),
    ("2:4", r#"step = [{ prune = { method = "n:m", pattern = "2:4" } }]"#, FLOAT),
];

fn run(arguments: &[PathBuf]) -> Result<(), Box<dyn Error>> {
    let (model, pairs, out) = match arguments {
        [model, pairs] => (model, pairs, Path::new("target/quantize_embeddings")),
        [model, pairs, out] => (model, pairs, out.as_path()),
        _ => return Err(NEEDED.into()),
    };
    let source = Checkpoint::open(model)?;
    let task = similarity(pairs, &Tokenizer::of(&source)?)?;
    fs::create_dir_all(out).map_err(|e| format!("{}: cannot create: {e}", out.display()))?;
    let models = tempfile::tempdir_in(out)?;

    let mut comparison = Comparison::new();
    comparison.add_data(pairs)?;
    comparison.add_reference("float", &source, scores(&source, FLOAT, &task)?)?;
    for (name, recipe, activations) in WAYS {
        eprintln!("{name} …");
        let folder = models.path().join(name);
        Plan::new(&source, &Recipe::from_toml(recipe)?)?.run(&folder, &mut |_| ControlFlow::Continue(()))?;
        let compressed = Checkpoint::open(&folder)?;
        comparison.add(name, &compressed, scores(&compressed, activations, &task)?)?;
    }

    let write = |name: &str, text: &str| {
        let path = out.join(name);
        fs::write(&path, text).map_err(|e| format!("{}: cannot write: {e}", path.display()))
    };
    write("report.html", &comparison.to_html()?)?;
    comparison.plots().iter().try_for_each(|(name, svg)| write(name, svg))?;
    println!("{}\n\nreport and plots in {}", comparison.table(), out.display());
    Ok(())
}

/// The pairs, as the encoder's tokens.
fn similarity(pairs: &Path, tokenizer: &Tokenizer) -> Result<Similarity, Box<dyn Error>> {
    let pair = |StsPair { sentences: [a, b], similarity }| {
        Ok(SentencePair { tokens: [tokenizer.encode(&a, true)?, tokenizer.encode(&b, true)?], similarity })
    };
    Ok(Similarity { pairs: read_sts(pairs)?.into_iter().map(pair).collect::<Result<_, TokenizerError>>()? })
}

/// How well an encoder does, then how fast it is.
fn scores(
    checkpoint: &Checkpoint,
    activations: Activations,
    task: &Similarity,
) -> Result<Vec<Score>, Box<dyn Error>> {
    let network = Network::open(checkpoint, Execution::from(activations))?;
    let mut scores = task.score(&network)?;
    scores.extend(Latency { batch: 16, length: 32, ..Latency::default() }.score(&network)?);
    // what is measured next is not to count it
    checkpoint.release_memory();
    Ok(scores)
}

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quantize_embeddings: {}", one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
