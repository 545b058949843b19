//! Perplexities and correlations, as transformers gives them (`fixtures/golden/zoo/README.md`).

use std::path::Path;

use libtest_mimic::Failed;
use tersor::evaluate::{Perplexity, SentencePair, Similarity, read_sts};
use tersor::{Activations, Checkpoint, CpuLevel, Execution, Network, Task, Tokenizer, Windows};

use crate::networks::with_config;
use crate::{Add, check, check_near, level_is_mine};

pub(crate) fn add(add: &mut Add<'_>) {
    add("perplexity_no_bos", no_bos, "stories260k");
    add("perplexity_story_by_story", story_by_story, "stories260k");
    add("perplexity_babyllama-105", babyllama, "babyllama-105");
    add("perplexity_f8", f8, "awkward/stories260K-f8e4m3");
    add("perplexity_is_the_same_everywhere", same_everywhere, "stories260k");
    add("similarity_all-minilm-l6-v2", similarity, "all-minilm-l6-v2");
}

pub(crate) const FLOAT: Activations = Activations::Float;

/// A text without the character that is cut off at its end.
pub(crate) fn text(path: &Path) -> Result<String, Failed> {
    let mut bytes = std::fs::read(path)?;
    let end = match std::str::from_utf8(&bytes) {
        Ok(_) => bytes.len(),
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Err(error) => return Err(error.into()),
    };
    bytes.truncate(end);
    Ok(String::from_utf8(bytes)?)
}

/// The first 4,096 tokens of a text; the README has their sum.
pub(crate) fn tokens(checkpoint: &Checkpoint, text: &str, sum: u32) -> Result<Vec<u32>, Failed> {
    let mut tokens = Tokenizer::of(checkpoint)?.encode(text, false)?;
    tokens.truncate(4096);
    check(tokens.len() == 4096 && tokens.iter().sum::<u32>() == sum, || {
        format!("the tokens {:?} … have the sum {}", &tokens[..8], tokens.iter().sum::<u32>())
    })?;
    Ok(tokens)
}

/// Perplexity and number of scored tokens.
pub(crate) fn perplexity(
    checkpoint: &Checkpoint,
    activations: Activations,
    texts: &[Vec<u32>],
    windows: Windows,
) -> Result<(f64, usize), Failed> {
    let network = Network::open(checkpoint, Execution::from(activations))?;
    let scores = Perplexity { texts: texts.to_vec(), windows }.score(&network)?;
    let [score, ..] = &scores[..] else { return Err("no score".into()) };
    check(score.metric == "perplexity", || score.metric.clone())?;
    Ok((score.value, score.samples))
}

/// Of the tokens of tinystories in windows of 256 without BOS: what most tests compare.
pub(crate) fn of_stories(
    zoo: &Path,
    checkpoint: &Checkpoint,
    activations: Activations,
) -> Result<f64, Failed> {
    let ids = tokens(checkpoint, &text(&zoo.join("text/tinystories.txt"))?, 1_438_335)?;
    Ok(perplexity(checkpoint, activations, &[ids], Windows::of(256))?.0)
}

fn no_bos(zoo: &Path, model: &str) -> Result<(), Failed> {
    let checkpoint = Checkpoint::open(zoo.join(model))?;
    let ids = tokens(&checkpoint, &text(&zoo.join("text/tinystories.txt"))?, 1_438_335)?;
    check(ids[..8] == [385, 328, 432, 261, 376, 298, 315, 421], || format!("{:?}", &ids[..8]))?;
    for (context, scored, expected) in [(512, 4088, 8.019_971), (256, 4080, 7.006_918)] {
        let (value, samples) =
            perplexity(&checkpoint, FLOAT, std::slice::from_ref(&ids), Windows::of(context))?;
        check_near(&format!("context {context}"), value, expected, 1e-4)?;
        check(samples == scored, || format!("{samples} scores"))?;
    }
    // a token in front, and every token has a score
    let windows = Windows { bos: Some(1), ..Windows::of(256) };
    let (value, samples) = perplexity(&checkpoint, FLOAT, &[ids], windows)?;
    check_near("BOS", value, 7.675_430, 1e-4)?;
    check(samples == 4096, || format!("{samples} scores"))
}

fn story_by_story(zoo: &Path, model: &str) -> Result<(), Failed> {
    let text = text(&zoo.join("text/tinystories.txt"))?;
    let checkpoint = Checkpoint::open(zoo.join(model))?;
    let tokenizer = Tokenizer::of(&checkpoint)?;
    let (mut texts, mut left) = (Vec::new(), 4096);
    for story in text.split("<|endoftext|>") {
        let mut ids = tokenizer.encode(story.trim(), false)?;
        ids.truncate(left.min(256));
        left -= ids.len();
        texts.push(ids);
        if left == 0 {
            break;
        }
    }
    let windows = Windows { bos: Some(1), ..Windows::of(256) };
    let (value, samples) = perplexity(&checkpoint, FLOAT, &texts, windows)?;
    check_near(model, value, 3.492_583, 1e-4)?;
    check(samples == 4096, || format!("{samples} scores"))
}

fn babyllama(zoo: &Path, model: &str) -> Result<(), Failed> {
    let checkpoint = Checkpoint::open(zoo.join(model))?;
    let ids = tokens(&checkpoint, &text(&zoo.join("text/tinystories.txt"))?, 43_109)?;
    let (value, _) = perplexity(&checkpoint, FLOAT, &[ids], Windows::of(256))?;
    check_near(model, value, 2.797_954, 1e-4)
}

/// Weights rounded to three bits of mantissa.
fn f8(zoo: &Path, model: &str) -> Result<(), Failed> {
    let folder = with_config(zoo, model)?;
    let value = of_stories(zoo, &folder.open()?, FLOAT)?;
    check_near(model, value, 7.006_918, 0.1)?;
    check((value / 7.006_918 - 1.0).abs() > 1e-4, || format!("{value}: no rounding shows"))
}

fn same_everywhere(zoo: &Path, model: &str) -> Result<(), Failed> {
    let checkpoint = Checkpoint::open(zoo.join(model))?;
    let _level = level_is_mine();
    for level in CpuLevel::ALL.into_iter().filter(|level| *level <= CpuLevel::detected()) {
        level.set_current()?;
        let of = |threads| -> Result<f64, Failed> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
            pool.install(|| of_stories(zoo, &checkpoint, FLOAT))
        };
        let (one, two) = (of(1)?, of(2)?);
        check(one == two, || format!("{level}: {one} with one thread, {two} with two"))?;
        check_near(&level.to_string(), one, 7.006_918, 1e-6)?;
    }
    Ok(())
}

/// Spearman's and Pearson's correlation on the whole test set.
pub(crate) fn correlations(
    zoo: &Path,
    checkpoint: &Checkpoint,
    activations: Option<Activations>,
) -> Result<[f64; 2], Failed> {
    let tokenizer = Tokenizer::of(checkpoint)?;
    let encode = |text: &String| tokenizer.encode(text, true);
    let mut pairs = Vec::new();
    for pair in read_sts(zoo.join("text/stsb-test.csv"))? {
        let [a, b] = &pair.sentences;
        pairs.push(SentencePair { tokens: [encode(a)?, encode(b)?], similarity: pair.similarity });
    }
    let count: usize = pairs.iter().flat_map(|pair| &pair.tokens).map(Vec::len).sum();
    check(pairs.len() == 1379 && count == 39_028, || format!("{} pairs, {count} tokens", pairs.len()))?;
    let scores = Similarity { pairs }
        .score(&Network::open(checkpoint, Execution { activations, ..Execution::default() })?)?;
    let [spearman, pearson] = &scores[..] else { return Err("no two scores".into()) };
    Ok([spearman.value, pearson.value])
}

fn similarity(zoo: &Path, model: &str) -> Result<(), Failed> {
    let [spearman, pearson] = correlations(zoo, &Checkpoint::open(zoo.join(model))?, Some(FLOAT))?;
    check((spearman - 0.820_324_673_1).abs() <= 1e-5, || format!("Spearman {spearman}"))?;
    check((pearson - 0.827_406_417_8).abs() <= 1e-5, || format!("Pearson {pearson}"))
}
