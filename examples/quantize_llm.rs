//! Compresses a language model in nine ways and holds perplexity against the bits of a weight; then lets every model go on
//! with the same sentence.
//!
//! ```text
//! cargo run --release --example quantize_llm -- MODEL TEXT.txt [OUT]
//! ```
//!
//! MODEL is a Hugging Face folder of a decoder like LLaMA, TEXT.txt what it is to predict: the first 4,096 tokens, in windows
//! of 512. The tables are printed; OUT, by default `target/quantize_llm`, gets a page of HTML, with its plots beside it. For
//! SmolLM2-135M-Instruct in f16 and the test set of WikiText-2:
//!
//! ```text
//! model          bits per weight    file bytes   perplexity         more
//! ──────────────────────────────────────────────────────────────────────
//! dense                    16.00   269,060,280        30.36        +0.0%
//! int8                      8.02   163,299,168        30.46        +0.3%
//! int6-g64                  6.25   139,767,048        31.77        +4.7%
//! int4-g128                 4.14   111,703,984        81.43      +168.2%
//! int4-g64                  4.25   113,224,432        68.15      +124.5%
//! int4-g32                  4.50   116,542,440        50.04       +64.8%
//! int4-g32-mse              4.50   116,542,440        49.99       +64.7%
//! int3-g32                  3.50   103,271,104       802.96     +2544.9%
//! fp8                       8.02   163,266,584        31.26        +3.0%
//! 2:4                       9.00   176,246,744     61755.68   +203318.8%
//!
//! model          The three most important things to know about the Moon are
//! ───────────────────────────────────────────────────────────────────────────────────────────────────────────
//! dense          …:  1. The Moon is a celestial body that orbits the Earth.
//! int8           …:  1. The Moon is a celestial body that orbits the Earth.
//! int6-g64       …:  1. The Moon is a celestial body that orbits the Earth.
//! int4-g128      … the 3. The 3. The 4. The 5.
//! int4-g64       … the 200-year cycle of the Moon, the cycles of the
//! int4-g32       … the gravitational pull, the gravitational pull of the Earth, and the gravitational pull of
//! int4-g32-mse   … its phases and phases of the Moon's cycle. The Earth's orbit around the
//! int3-g32       …?"  " 'T''? '' and'''? '
//! fp8            …:  1. The Moon is a celestial body that orbits the Earth.
//! 2:4            … different syce al f f and dialects usuris say think imagine peoples think global
//!
//! report and plots in target/quantize_llm
//! ```
//!
//! Bits are those of the layers that a recipe names, scales and positions included; the embeddings, which are the output
//! layer too, stay as they are. Nothing is calibrated or retrained: 8 and 6 bits do without, 4 bits and fewer do not in a model as small
//! as this, and 2:4 by magnitude leaves less than guessing, whose perplexity is the vocabulary's 49,152.

use std::error::Error;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tersor::evaluate::read_text;
use tersor::report::Align;
use tersor::{
    Checkpoint, Comparison, Decoder, Entry, Execution, GenerateOptions, Perplexity, Plan, Recipe, Table,
    Task, TensorClass, Tokenizer, Windows, one_line,
};

const NEEDED: &str = "needs MODEL TEXT.txt [OUT]: any Hugging Face folder of a decoder like LLaMA, such as \
    HuggingFaceTB/SmolLM2-135M-Instruct, and a text in UTF-8, such as the test set of WikiText-2";

const TOKENS: usize = 4096;
const CONTEXT: usize = 512;
const PROMPT: &str = "The three most important things to know about the Moon are";

/// Name and recipe. The groups of 128 do not divide the 576 columns of SmolLM2, for which `compressed-tensors` has no
/// name: the format of tersor's own takes them.
const WAYS: [(&str, &str); 9] = [
    ("int8", "step = [{ quantize = { bits = 8 } }]"),
    ("int6-g64", "step = [{ quantize = { bits = 6, group_size = 64 } }]"),
    ("int4-g128", "format = 'tersor'\nstep = [{ quantize = { bits = 4, group_size = 128 } }]"),
    ("int4-g64", "step = [{ quantize = { bits = 4, group_size = 64 } }]"),
    ("int4-g32", "step = [{ quantize = { bits = 4, group_size = 32 } }]"),
    ("int4-g32-mse", "step = [{ quantize = { bits = 4, group_size = 32, observer = 'mse' } }]"),
    ("int3-g32", "step = [{ quantize = { bits = 3, group_size = 32 } }]"),
    ("fp8", "step = [{ quantize = { type = 'f8_e4m3' } }]"),
    ("2:4", "step = [{ prune = { method = 'n:m', pattern = '2:4' } }]"),
];

fn run(arguments: &[PathBuf]) -> Result<(), Box<dyn Error>> {
    let (model, text, out) = match arguments {
        [model, text] => (model, text, Path::new("target/quantize_llm")),
        [model, text, out] => (model, text, out.as_path()),
        _ => return Err(NEEDED.into()),
    };
    let source = Checkpoint::open(model)?;
    let tokenizer = Tokenizer::of(&source)?;
    let mut tokens = tokenizer.encode(&read_text(text)?, false)?;
    tokens.truncate(TOKENS);
    let perplexity = Perplexity { texts: vec![tokens], windows: Windows::of(CONTEXT) };
    fs::create_dir_all(out).map_err(|e| format!("{}: cannot create: {e}", out.display()))?;
    let models = tempfile::tempdir_in(out)?;

    let measure = |checkpoint: &Checkpoint| -> Result<_, Box<dyn Error>> {
        let decoder = Decoder::open(checkpoint, Execution::default())?;
        let bits = bits_per_weight(checkpoint);
        Ok((perplexity.score(&decoder)?, (bits, continuation(&decoder, &tokenizer)?)))
    };
    let mut comparison = Comparison::new();
    comparison.add_data(text)?;
    let (scores, dense) = measure(&source)?;
    comparison.add_reference("dense", &source, scores)?;
    let mut measured = vec![dense];
    for (name, recipe) in WAYS {
        eprintln!("{name} …");
        let folder = models.path().join(name);
        Plan::new(&source, &Recipe::from_toml(recipe)?)?.run(&folder, &mut |_| ControlFlow::Continue(()))?;
        let compressed = Checkpoint::open(&folder)?;
        let (scores, model) = measure(&compressed)?;
        comparison.add(name, &compressed, scores)?;
        measured.push(model);
    }

    let columns = ["bits per weight", "file bytes", "perplexity", "more"].map(|name| (name, Align::Right));
    let mut table = Table::new([("model", Align::Left)].into_iter().chain(columns));
    let mut texts = Table::new([("model", Align::Left), (PROMPT, Align::Left)]);
    let dense = comparison.variants[0].scores[0].value;
    for (variant, (bits, text)) in comparison.variants.iter().zip(measured) {
        let perplexity = variant.scores[0].value;
        table.row([
            variant.name.as_str().into(),
            format!("{bits:.2}").into(),
            variant.file_bytes.into(),
            format!("{perplexity:.2}").into(),
            format!("{:+.1}%", 100.0 * (perplexity / dense - 1.0)).into(),
        ]);
        texts.row([variant.name.as_str().into(), text.into()]);
    }
    let write = |name: &str, text: &str| {
        let path = out.join(name);
        fs::write(&path, text).map_err(|e| format!("{}: cannot write: {e}", path.display()))
    };
    write("report.html", &comparison.to_html()?)?;
    comparison.plots().iter().try_for_each(|(name, svg)| write(name, svg))?;
    println!("{table}\n\n{texts}\n\nreport and plots in {}", out.display());
    Ok(())
}

/// Bits of a weight of the linear layers, with whatever is stored beside the values.
fn bits_per_weight(checkpoint: &Checkpoint) -> f64 {
    let linear = || checkpoint.entries().iter().filter(|entry| entry.class == TensorClass::Linear);
    let weights: usize = linear().map(Entry::elements).sum();
    8.0 * linear().map(|entry| entry.bytes).sum::<u64>() as f64 / weights as f64
}

/// The likeliest tokens after the prompt, on one line.
fn continuation(decoder: &Decoder, tokenizer: &Tokenizer) -> Result<String, Box<dyn Error>> {
    let options =
        GenerateOptions { max_new_tokens: 16, stop: tokenizer.eos().to_vec(), ..GenerateOptions::default() };
    let mut tokens = Vec::new();
    decoder.generate(&tokenizer.encode(PROMPT, false)?, &options, &mut |token| {
        tokens.push(token);
        ControlFlow::Continue(())
    })?;
    Ok(format!("…{}", tokenizer.decode(&tokens)?.replace('\n', " ")))
}

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quantize_llm: {}", one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
