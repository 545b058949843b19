//! Networks against what transformers computed with them: logits, embeddings, tokens.

use std::ops::ControlFlow;
use std::path::Path;

use half::{bf16, f16};
use libtest_mimic::Failed;
use ndarray::{Array2, ArrayView2};
use serde_json::Value;
use tersor::{Checkpoint, DType, Decoder, Execution, GenerateOptions, LanguageModel, Network, Tokenizer};

use crate::common::{Folder, f32s, safetensors, stored};
use crate::{Add, check, level_stays};

pub(crate) fn add(add: &mut Add<'_>) {
    for model in ["stories260k", "babyllama-105"] {
        add(&format!("logits_{model}"), logits, model);
        add(&format!("greedy_{model}"), greedy, model);
    }
    add("embeddings_all-minilm-l6-v2", embeddings, "all-minilm-l6-v2");
    add("narrow_weights_give_the_logits_of_the_rounded_f16", rounded_weights, "f16");
    add("narrow_weights_give_the_logits_of_the_rounded_bf16", rounded_weights, "bf16");
    add("shards_give_the_same_logits", shards, "awkward/stories260K-sharded");
}

/// What the reference computed, and the text that it was given.
pub(crate) struct Golden(Checkpoint);

impl Golden {
    pub(crate) fn of(model: &str) -> Result<Self, Failed> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden/zoo");
        Ok(Self(Checkpoint::open(folder.join(format!("{model}.safetensors")))?))
    }

    pub(crate) fn about(&self) -> Result<Value, Failed> {
        let about = self.0.metadata(0).and_then(|metadata| metadata.get("about")).ok_or("no metadata")?;
        Ok(serde_json::from_str(about)?)
    }

    pub(crate) fn ids(&self, name: &str) -> Result<Vec<u32>, Failed> {
        let bytes = self.0.tensor(name)?.bytes;
        Ok(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect())
    }

    pub(crate) fn floats(&self, name: &str) -> Result<Array2<f32>, Failed> {
        let cols = self.0.entry(name)?.shape.last().copied().unwrap_or(1);
        let values = self.0.dense(name)?;
        Ok(Array2::from_shape_vec((values.len() / cols, cols), values)?)
    }
}

/// That no value differs by more than `bound`.
pub(crate) fn check_close(
    what: &str,
    actual: ArrayView2<'_, f32>,
    expected: ArrayView2<'_, f32>,
    bound: f32,
) -> Result<(), Failed> {
    check(actual.dim() == expected.dim(), || {
        format!("{what}: {:?}, not {:?}", actual.dim(), expected.dim())
    })?;
    for ((at, a), e) in actual.indexed_iter().zip(&expected) {
        check((a - e).abs() <= bound, || format!("{what} at {at:?}: {a}, not {e}"))?;
    }
    Ok(())
}

pub(crate) fn decoder(folder: &Path) -> Result<Decoder, Failed> {
    Ok(Decoder::open(&Checkpoint::open(folder)?, Execution::default())?)
}

fn logits(zoo: &Path, model: &str) -> Result<(), Failed> {
    let golden = Golden::of(model)?;
    let ids = golden.ids("ids")?;
    let tokenizer = Tokenizer::of(&Checkpoint::open(zoo.join(model))?)?;
    let about = golden.about()?;
    let text = about["text"].as_str().ok_or("no text")?;
    let tokens = [vec![1], tokenizer.encode(text, false)?].concat();
    check(ids.len() == 64 && tokens[..64] == ids, || format!("tokens: {tokens:?}, not {ids:?}"))?;
    let logits = decoder(&zoo.join(model))?.logits(&ids)?;
    check_close(model, logits.view(), golden.floats("logits")?.view(), 1e-3)
}

/// The reference computed every token anew; here they come from a cache.
pub(crate) fn greedy(zoo: &Path, model: &str) -> Result<(), Failed> {
    let golden = Golden::of(if model.is_empty() { "smollm2" } else { model })?;
    let (prompt, expected) = (&golden.ids("ids")?[..8], golden.ids("greedy")?);
    check(expected.len() == 32, || format!("{} tokens", expected.len()))?;
    let mut tokens = Vec::new();
    let options = GenerateOptions { max_new_tokens: expected.len(), ..GenerateOptions::default() };
    decoder(&zoo.join(model))?.generate(prompt, &options, &mut |token| {
        tokens.push(token);
        ControlFlow::Continue(())
    })?;
    check(tokens == expected, || format!("{tokens:?}, not {expected:?}"))
}

fn embeddings(zoo: &Path, model: &str) -> Result<(), Failed> {
    let golden = Golden::of(model)?;
    let checkpoint = Checkpoint::open(zoo.join(model))?;
    let tokenizer = Tokenizer::of(&checkpoint)?;
    let about = golden.about()?;
    let sentences: Vec<&str> =
        about["sentences"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let (ids, mask) = (golden.ids("input_ids")?, golden.ids("attention_mask")?);
    let padded = ids.len() / 16;
    let mut tokens = Vec::new();
    for ((text, ids), mask) in sentences.iter().zip(ids.chunks(padded)).zip(mask.chunks(padded)) {
        let encoded = tokenizer.encode(text, true)?;
        let expected = &ids[..mask.iter().sum::<u32>() as usize];
        check(encoded == expected, || format!("{text}: {encoded:?}, not {expected:?}"))?;
        tokens.push(encoded);
    }
    check(tokens.len() == 16, || format!("{} sentences", tokens.len()))?;
    let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    let network = Network::open(&checkpoint, Execution::default())?;
    let embeddings = network.sentence_encoder()?.embed(&tokens)?;
    check_close(model, embeddings.view(), golden.floats("embeddings")?.view(), 1e-4)?;
    let cosines = golden.floats("cosine")?;
    for (pair, cosine) in cosines.iter().enumerate() {
        let product = embeddings.row(2 * pair).dot(&embeddings.row(2 * pair + 1));
        check((product - cosine).abs() <= 1e-4, || format!("pair {pair}: {product}, not {cosine}"))?;
    }
    Ok(())
}

/// A model of the zoo that has no `config.json` of its own, with that of stories260k.
pub(crate) fn with_config(zoo: &Path, model: &str) -> Result<Folder, Failed> {
    let folder = Folder::new();
    for file in std::fs::read_dir(zoo.join(model))? {
        let file = file?;
        folder.put(&file.file_name().to_string_lossy(), std::fs::read(file.path())?);
    }
    for file in ["config.json", "tokenizer.json"] {
        folder.put(file, std::fs::read(zoo.join("stories260k").join(file))?);
    }
    Ok(folder)
}

/// What others rounded gives, in its own arithmetic, what the weights give that are rounded here and widened again.
fn rounded_weights(zoo: &Path, float: &str) -> Result<(), Failed> {
    let round: fn(f32) -> f32 =
        if float == "f16" { |x| f16::from_f32(x).to_f32() } else { |x| bf16::from_f32(x).to_f32() };
    let single = Checkpoint::open(zoo.join("stories260k"))?;
    let mut tensors = Vec::new();
    for entry in single.entries() {
        let values: Vec<f32> = single.dense(&entry.name)?.into_iter().map(round).collect();
        tensors.push(stored(&entry.name, DType::F32, &entry.shape, f32s(&values)));
    }
    let rounded = Folder::new();
    rounded.put("model.safetensors", safetensors(&tensors, &[].into()));
    rounded.put("config.json", std::fs::read(zoo.join("stories260k/config.json"))?);
    let narrow = with_config(zoo, &format!("awkward/stories260K-{float}"))?;
    let golden = Golden::of("stories260k")?;
    let ids = golden.ids("ids")?;
    let logits = decoder(narrow.path())?.logits(&ids)?;
    // sums in another order
    check_close(float, logits.view(), decoder(rounded.path())?.logits(&ids)?.view(), 1e-4)?;
    // 11 bits of a weight are enough for the logits of all others, 8 are not
    let near = check_close(float, logits.view(), golden.floats("logits")?.view(), 0.02);
    let far = check_close(float, logits.view(), golden.floats("logits")?.view(), 1e-3);
    check(near.is_ok() == (float == "f16"), || format!("{near:?}"))?;
    check(far.is_err(), || "no rounding shows".into())
}

fn shards(zoo: &Path, model: &str) -> Result<(), Failed> {
    let sharded = with_config(zoo, model)?;
    let ids = Golden::of("stories260k")?.ids("ids")?;
    let _level = level_stays();
    let (single, sharded) = (decoder(&zoo.join("stories260k"))?, decoder(sharded.path())?);
    check(single.logits(&ids)? == sharded.logits(&ids)?, || "other logits".into())
}
