//! A sentence encoder of half the size: three of MiniLM's six layers, and the word pieces that matter, learn to give its embeddings.
//!
//! ```text
//! RAYON_NUM_THREADS=1 TERSOR_ZOO=FOLDER cargo run --release --features candle --example distill_embeddings
//! cargo run --release --features candle --example distill_embeddings -- --model all-MiniLM-L6-v2 --text FOLDER --pairs sts-test.csv
//! ```
//!
//! The student starts as the three layers that, put behind each other, come nearest to the teacher's embeddings of held-out
//! sentences. Its vocabulary holds the special pieces, all single characters, and what the text has most often; other words are cut into
//! smaller pieces. The table of words stays as it is; the layers learn the teacher's last hidden states (squared error of every
//! token) and its embeddings (cosine distance) for sentences of plain text without labels. What the teacher gives is computed
//! once. Every student is an ordinary Hugging Face folder, and is scored on the STS benchmark's test pairs, which nothing else
//! looks at, from its files, and once more from the files that `int8` makes of it, words and layers.
//!
//! MODEL is a folder of the `model_type` `bert` with mean pooling and a `tokenizer.json` of word pieces; text are the `.txt` files of a
//! folder; `--out FOLDER` keeps the students. `--quick` trains on so little text that it shows only that everything runs.
//!
//! With all-MiniLM-L6-v2, and 11,000 sentences of TinyStories, tiny Shakespeare and WikiText-2 (the layers it chose are
//! the first and the last two), in about 4 minutes of one core for each of three seeds:
//!
//! ```text
//!  model                      parameters   of MiniLM's   file bytes   smaller          Spearman           kept
//! ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
//!  MiniLM                     22,565,888       100.0 %   90,868,376     1.00×            0.8203        100.0 %
//!  student, not yet trained   12,402,816        55.0 %   49,617,104     1.83×            0.7755         94.5 %
//!  student                    12,402,816        55.0 %   49,617,104     1.83×   0.7964 ± 0.0002   97.1 ± 0.0 %
//!  student, int8              12,402,816        55.0 %   12,580,792     7.22×   0.7965 ± 0.0002   97.1 ± 0.0 %
//! ```
//!
//! Parameters are counted without the pooler, which nothing here uses.
mod training;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Optimizer;
use ndarray::{Array2, s};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tersor::candle::tensor_of;
use tersor::checkpoint::Entry;
use tersor::distill::{CosineDistance, MeanSquaredError};
use tersor::evaluate::{SentencePair, StsPair, read_sts};
use tersor::report::{Align, Table};
use tersor::{
    Checkpoint, Encoder, Execution, Plan, Recipe, SentenceEncoder, Similarity, Task, Tokenizer,
    TokenizerError,
};

use training::Result;
use training::arguments::{Arguments, report, spread};
use training::encoder::Blocks;
use training::optimizer::Adam;
use training::text::{find, sentences};
use training::trainer::{Schedule, Trainer, Validation};
use training::vocabulary::Vocabulary;

const USAGE: &str = "usage: distill_embeddings [--model FOLDER] [--text FOLDER] [--pairs FILE.csv] [--seeds N] [--quick] \
    [--resume FOLDER] [--out FOLDER]";
const MODEL: &str = "sentence-transformers/all-MiniLM-L6-v2, as a Hugging Face folder";
const TEXT: &str = "any plain text, such as TinyStories or WikiText, in `.txt` files";
const PAIRS: &str = "the test pairs of the STS benchmark, `sts-test.csv`";

/// Layers of the student.
const LAYERS: usize = 3;
/// Pieces of its vocabulary.
const PIECES: usize = 17_920;
/// Sentences of more tokens are left out.
const MAX_TOKENS: usize = 40;
/// Tokens of a batch, at most: sentences of the same length.
const BATCH_TOKENS: usize = 512;
const RATE: f64 = 5e-4;
const HELD_OUT: usize = 1_000;
const IGNORED: i64 = -100;
const INT8: &str = r#"step = [{ quantize = { bits = 8 }, classes = ["linear", "embedding"] }]"#;

/// Sentences of the same number of the student's tokens, and what the teacher gives for them.
struct Batch {
    tokens: Vec<Vec<u32>>,
    /// `[sentences, hidden]`
    embeddings: Tensor,
    /// `[tokens, hidden]`, in f16.
    hidden: Tensor,
    /// `IGNORED` where the student's tokens are not the teacher's, which then have no counterpart.
    labels: Tensor,
}

/// The student's tokens of a sentence, and the teacher's.
type Tokens<'a> = (Vec<u32>, &'a [u32]);

/// The model that is taught from.
struct Teacher {
    checkpoint: Checkpoint,
    encoder: Encoder,
    tokenizer: Tokenizer,
}

fn run() -> Result<()> {
    let options = ["--model", "--text", "--pairs", "--seeds", "--resume", "--out"];
    let args = Arguments::read(USAGE, &options, &["--quick"], 0)?;
    let seeds = args.number("--seeds")?.unwrap_or(3);
    let model = find(args.text("--model"), "all-minilm-l6-v2", "--model", MODEL)?;
    let text = find(args.text("--text"), "text", "--text", TEXT)?;
    let pairs = find(args.text("--pairs"), "text/stsb-test.csv", "--pairs", PAIRS)?;
    let (most, epochs) = if args.has("--quick") { (2_000, 1) } else { (12_000, 2) };
    let stored = tempfile::tempdir()?;
    let out = args.text("--out").map_or(stored.path(), Path::new);
    let start = Instant::now();

    let teacher = Teacher::open(&model)?;
    let mut texts = teacher.sentences(&text, most)?;
    let counts = texts.iter().flat_map(|(_, tokens)| tokens).fold(HashMap::new(), |mut counts, token| {
        *counts.entry(*token).or_default() += 1;
        counts
    });
    let vocabulary = Vocabulary::cut(&model, &counts, PIECES)?;
    let held_out = texts.split_off(texts.len() - HELD_OUT.min(texts.len() / 4));
    let layers = teacher.best_layers(&held_out)?;
    let first = out.join("start");
    teacher.write_student(&first, &vocabulary, &layers, None)?;
    let first = Checkpoint::open(&first)?;
    let (inputs, tokenizer) = (Encoder::open(&first, Execution::default())?, Tokenizer::of(&first)?);
    let training = teacher.batches(&tokenizer, &texts)?;
    let held_out = teacher.batches(&tokenizer, &held_out)?;
    println!(
        "{} sentences, layers {layers:?}, what the teacher gives: {:.0} s",
        texts.len(),
        start.elapsed().as_secs_f64()
    );

    let rows = [
        Row::of("MiniLM", &teacher.checkpoint, &pairs)?,
        Row::of("student, not yet trained", &first, &pairs)?,
    ];
    let (mut students, mut rounded) = (Vec::new(), Vec::new());
    for seed in 1..=seeds {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let blocks = Blocks::open(&first)?;
        let mut optimizer = Adam::new(blocks.parameters.values().cloned().collect(), RATE)?;
        let name = format!("student {seed}");
        let loss = |rows: &[usize], _: &mut ChaCha8Rng| training[rows[0]].loss(&blocks, &inputs, true);
        let validate = |_| {
            let loss = distance(&blocks, &inputs, &held_out)?;
            Ok(Validation { loss, text: format!("held-out cosine distance {loss:.4}") })
        };
        let resume =
            args.text("--resume").map(|folder| Path::new(folder).join(format!("{seed}.safetensors")));
        let warm_up = training.len() * epochs / 20;
        let trainer = Trainer {
            schedule: Schedule { warm_up, ..Schedule::cosine(RATE) },
            resume: resume.as_deref(),
            ..Trainer::new(&name, epochs, 1, RATE)
        };
        trainer.run(&blocks.parameters, &mut optimizer, training.len(), &mut rng, loss, validate)?;

        let folder = out.join(format!("student-{seed}"));
        teacher.write_student(&folder, &vocabulary, &layers, Some(&blocks.parameters))?;
        let student = Checkpoint::open(&folder)?;
        let folder = out.join(format!("student-{seed}-int8"));
        Plan::new(&student, &Recipe::from_toml(INT8)?)?.run(&folder, &mut |_| ControlFlow::Continue(()))?;
        students.push(Row::of("student", &student, &pairs)?);
        rounded.push(Row::of("student, int8", &Checkpoint::open(&folder)?, &pairs)?);
        println!(
            "seed {seed}: {:.4}, int8 {:.4}",
            students[students.len() - 1].score,
            rounded[rounded.len() - 1].score
        );
    }
    print(&rows, &[students, rounded]);
    println!("{seeds} seeds, mean ± standard deviation; {:.0} s in all", start.elapsed().as_secs_f64());
    Ok(())
}

impl Teacher {
    fn open(model: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(model)?;
        let encoder = Encoder::open(&checkpoint, Execution::default())?;
        let tokenizer = Tokenizer::of(&checkpoint)?;
        let teacher = Self { checkpoint, encoder, tokenizer };
        let tokens = teacher.tokenizer.encode("A sentence to try.", true)?;
        let embedding = teacher.encoder.embed(&[&tokens])?;
        let mean = means(&teacher.encoder.forward(&[&tokens], None)?, &[tokens.len()]);
        if CosineDistance::new().evaluate(mean.view(), embedding.view(), None)?.value.total() > 1e-5 {
            return Err(
                format!("{}: the student has mean pooling, this model has not", model.display()).into()
            );
        }
        Ok(teacher)
    }

    /// Some sentences of the text files in a folder, and their tokens.
    fn sentences(&self, folder: &Path, most: usize) -> Result<Vec<(String, Vec<u32>)>> {
        let files = fs::read_dir(folder).map_err(|e| format!("{}: cannot read: {e}", folder.display()))?;
        let files: Vec<PathBuf> = files.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
        let files: Vec<PathBuf> =
            files.into_iter().filter(|file| file.extension().is_some_and(|end| end == "txt")).collect();
        let mut all = sentences(&files)?;
        if all.len() < 100 {
            return Err(
                format!("{}: {} sentences in `.txt` files: {TEXT}", folder.display(), all.len()).into()
            );
        }
        all.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
        let mut chosen = Vec::new();
        for sentence in all {
            let tokens = self.tokenizer.encode(&sentence, true)?;
            if tokens.len() <= MAX_TOKENS && chosen.len() < most {
                chosen.push((sentence, tokens));
            }
        }
        Ok(chosen)
    }

    /// The layers that, put behind each other, come nearest to the teacher's embeddings.
    fn best_layers(&self, texts: &[(String, Vec<u32>)]) -> Result<Vec<usize>> {
        let texts = &texts[..texts.len().min(200)];
        let sentences: Vec<&[u32]> = texts.iter().map(|(_, tokens)| tokens.as_slice()).collect();
        let lengths: Vec<usize> = sentences.iter().map(|tokens| tokens.len()).collect();
        let (embedded, targets) = (self.encoder.embed_tokens(&sentences)?, self.encoder.embed(&sentences)?);
        let mut best = (f64::INFINITY, Vec::new());
        for chosen in 0..1u32 << self.encoder.blocks() {
            let layers: Vec<usize> =
                (0..self.encoder.blocks()).filter(|layer| chosen >> layer & 1 == 1).collect();
            if layers.len() != LAYERS {
                continue;
            }
            let mut hidden = embedded.clone();
            for layer in &layers {
                self.encoder.run_block(*layer, &mut hidden, &lengths, None)?;
            }
            let means = means(&hidden, &lengths);
            let distance = CosineDistance::new().evaluate(means.view(), targets.view(), None)?.value.total();
            if distance < best.0 {
                best = (distance, layers);
            }
        }
        Ok(best.1)
    }

    /// Sentences in batches, with what the teacher gives for them.
    fn batches(&self, student: &Tokenizer, texts: &[(String, Vec<u32>)]) -> Result<Vec<Batch>> {
        let mut by_length: BTreeMap<usize, Vec<Tokens>> = BTreeMap::new();
        for (sentence, of_teacher) in texts {
            let tokens = student.encode(sentence, true)?;
            by_length.entry(tokens.len()).or_default().push((tokens, of_teacher));
        }
        let at_once = |length: usize| (BATCH_TOKENS / length).max(1);
        let chunks = by_length.values().flat_map(|all| all.chunks(at_once(all[0].0.len())));
        chunks.map(|sentences| self.batch(sentences)).collect()
    }

    fn batch(&self, sentences: &[Tokens]) -> Result<Batch> {
        let of_teacher: Vec<&[u32]> = sentences.iter().map(|(_, tokens)| *tokens).collect();
        let all = self.encoder.forward(&of_teacher, None)?;
        let lengths: Vec<usize> = of_teacher.iter().map(|tokens| tokens.len()).collect();
        let (length, width) = (sentences[0].0.len(), all.ncols());
        let (mut hidden, mut labels) = (Vec::new(), Vec::new());
        let mut first = 0;
        for tokens in &lengths {
            if *tokens == length {
                hidden.extend(all.slice(s![first..first + tokens, ..]).iter());
                labels.extend(vec![0; length]);
            } else {
                hidden.extend(vec![0.0; length * width]);
                labels.extend(vec![IGNORED; length]);
            }
            first += tokens;
        }
        let tensor = |values: Vec<f32>| {
            let rows = values.len() / width;
            Tensor::from_vec(values, (rows, width), &Device::Cpu)
        };
        Ok(Batch {
            tokens: sentences.iter().map(|(tokens, _)| tokens.clone()).collect(),
            embeddings: tensor(means(&all, &lengths).into_raw_vec_and_offset().0)?,
            hidden: tensor(hidden)?.to_dtype(DType::F16)?,
            labels: Tensor::new(labels, &Device::Cpu)?,
        })
    }

    /// Writes a Hugging Face folder: some of the layers and pieces, everything else as it is, and trained values where there are.
    fn write_student(
        &self,
        folder: &Path,
        vocabulary: &Vocabulary,
        layers: &[usize],
        trained: Option<&BTreeMap<String, Var>>,
    ) -> Result<()> {
        let source = &self.checkpoint;
        fs::create_dir_all(folder)?;
        copy_texts(source.path(), folder)?;
        vocabulary.write(folder)?;
        let mut config = source.config().cloned().unwrap_or_default();
        config["num_hidden_layers"] = json!(layers.len());
        config["vocab_size"] = json!(vocabulary.kept.len());
        fs::write(folder.join("config.json"), serde_json::to_string_pretty(&config)? + "\n")?;

        let mut tensors = BTreeMap::new();
        for entry in source.entries() {
            let mut name = entry.name.clone();
            if let Some(rest) = name.strip_prefix("encoder.layer.") {
                let (layer, rest) = rest.split_once('.').unwrap_or_default();
                match layers.iter().position(|kept| kept.to_string() == layer) {
                    Some(new) => name = format!("encoder.layer.{new}.{rest}"),
                    None => continue,
                }
            }
            // the head that training of the teacher needed, and a list of 0, 1, 2, …
            if name.starts_with("pooler.") || name.ends_with("position_ids") {
                continue;
            }
            let mut value = tensor_of(&source.weight(&entry.name)?, &Device::Cpu)?;
            if name == "embeddings.word_embeddings.weight" {
                value = value.index_select(&Tensor::new(vocabulary.kept.as_slice(), &Device::Cpu)?, 0)?;
            }
            if let Some(trained) = trained.and_then(|trained| trained.get(&name)) {
                value = trained.as_detached_tensor();
            }
            tensors.insert(name, value);
        }
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        Ok(fs::write(folder.join("model.safetensors"), safetensors::serialize(&tensors, Some(metadata))?)?)
    }
}

impl Batch {
    /// How far a student is from the teacher: by its embeddings, and while training by its hidden states too.
    fn loss(&self, blocks: &Blocks, inputs: &Encoder, hidden: bool) -> Result<Tensor> {
        let tokens: Vec<&[u32]> = self.tokens.iter().map(Vec::as_slice).collect();
        let embedded = inputs.embed_tokens(&tokens)?;
        let dims = embedded.dim();
        let embedded = Tensor::from_vec(embedded.into_raw_vec_and_offset().0, dims, &Device::Cpu)?;
        let states = blocks.forward(&embedded, tokens.len())?;
        let means = states.reshape((tokens.len(), dims.0 / tokens.len(), dims.1))?.mean(1)?;
        let loss = CosineDistance::new().forward(&means, &self.embeddings, None)?;
        if !hidden {
            return Ok(loss);
        }
        Ok((loss + MeanSquaredError::new().forward(&states, &self.hidden, Some(&self.labels))?)?)
    }
}

/// Mean cosine distance of a student's embeddings from the teacher's.
fn distance(blocks: &Blocks, inputs: &Encoder, batches: &[Batch]) -> Result<f64> {
    let (mut total, mut sentences) = (0.0, 0);
    for batch in batches {
        let loss = batch.loss(blocks, inputs, false)?.to_scalar::<f32>()?;
        total += f64::from(loss) * batch.tokens.len() as f64;
        sentences += batch.tokens.len();
    }
    Ok(total / sentences as f64)
}

/// Copies the texts of a folder and its subfolders, without those that are written anew.
fn copy_texts(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            copy_texts(&path, &to.join(name))?;
        } else if path.extension().is_some_and(|end| end == "json" || end == "txt") {
            fs::write(to.join(name), fs::read(path)?)?;
        }
    }
    Ok(())
}

/// The mean over the tokens of each sentence.
fn means(states: &Array2<f32>, lengths: &[usize]) -> Array2<f32> {
    let mut means = Array2::zeros((lengths.len(), states.ncols()));
    let mut first = 0;
    for (mut mean, length) in means.outer_iter_mut().zip(lengths) {
        states.slice(s![first..first + length, ..]).outer_iter().for_each(|state| mean += &state);
        mean /= *length as f32;
        first += length;
    }
    means
}

/// Parameters, bytes of the weights' file, and Spearman's correlation with people's judgement of a model.
struct Row {
    name: &'static str,
    parameters: usize,
    bytes: u64,
    score: f64,
}

impl Row {
    fn of(name: &'static str, checkpoint: &Checkpoint, pairs: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::of(checkpoint)?;
        let pair = |StsPair { sentences: [a, b], similarity }| {
            Ok(SentencePair {
                tokens: [tokenizer.encode(&a, true)?, tokenizer.encode(&b, true)?],
                similarity,
            })
        };
        let pairs =
            read_sts(pairs)?.into_iter().map(pair).collect::<std::result::Result<_, TokenizerError>>()?;
        let score = Similarity { pairs }.score(&Encoder::open(checkpoint, Execution::default())?)?[0].value;
        let of_students = checkpoint.entries().iter().filter(|entry| !entry.name.starts_with("pooler."));
        let parameters = of_students.map(Entry::elements).sum();
        Ok(Self { name, parameters, bytes: checkpoint.file_bytes(), score })
    }
}

fn print(plain: &[Row], students: &[Vec<Row>]) {
    let headings = ["parameters", "of MiniLM's", "file bytes", "smaller", "Spearman", "kept"];
    let headings = headings.map(|heading| (heading, Align::Right));
    let mut table = Table::new([("model", Align::Left)].into_iter().chain(headings));
    let teacher = &plain[0];
    let plain = plain.iter().map(std::slice::from_ref);
    for rows in plain.chain(students.iter().map(Vec::as_slice)).filter(|rows| !rows.is_empty()) {
        let scores: Vec<f64> = rows.iter().map(|row| row.score).collect();
        let kept: Vec<f64> = scores.iter().map(|score| 100.0 * score / teacher.score).collect();
        table.row([
            rows[0].name.into(),
            (rows[0].parameters as u64).into(),
            format!("{:.1} %", 100.0 * rows[0].parameters as f64 / teacher.parameters as f64).into(),
            rows[0].bytes.into(),
            format!("{:.2}×", teacher.bytes as f64 / rows[0].bytes as f64).into(),
            spread(&scores, 4).into(),
            format!("{} %", spread(&kept, 1)).into(),
        ]);
    }
    println!("\n{table}\n");
}

fn main() -> ExitCode {
    report(run)
}
