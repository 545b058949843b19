//! Files: every model is compressed in several ways, read again and held against its source; perceptrons are scored.

use std::path::{Path, PathBuf};

use libtest_mimic::Failed;
use tersor::{
    Checkpoint, Classification, CpuLevel, FloatType, ImageSet, Plan, Recipe, Sequential, Stored, Task,
    VerifyOptions, verify,
};

use crate::{Add, PRESETS, check, go, level_is_mine, options};

const MODELS: [&str; 8] = [
    "stories260k",
    "babyllama-105",
    "all-minilm-l6-v2",
    "awkward/stories260K-awkward",
    "awkward/stories260K-bf16",
    "awkward/stories260K-f16",
    "awkward/stories260K-f8e4m3",
    "awkward/stories260K-sharded",
];

pub(crate) fn add(add: &mut Add<'_>) {
    for model in MODELS {
        add(&format!("compress_{model}"), compress_every_way, model);
        add(&format!("same_bytes_everywhere_{model}"), same_bytes_everywhere, model);
    }
    for file in ["lenet-300-100/dense.safetensors", "lenet-300-100/dynamic-network-surgery.safetensors"] {
        add(&format!("compress_{file}"), compress_every_way, file);
    }
    for dtype in ["B", "H", "I", "b", "d", "e", "f", "h", "i", "overall"] {
        add(&format!("dtype_{dtype}"), one_dtype, dtype);
    }
    add("lenet_accuracy", lenet_accuracy, "dense");
    add("pruned_lenet_accuracy", pruned_lenet_accuracy, "dynamic-network-surgery");
    add("shards_hold_the_same_model", shards_hold_the_same_model, "");
    add("half_precision_files_hold_the_rounded_model", half_precision, "");
    add("f8_file_with_scales_is_read", f8_with_scales, "");
}

fn compress_every_way(zoo: &Path, model: &str) -> Result<(), Failed> {
    let source = zoo.join(model);
    let checkpoint = Checkpoint::open(&source)?;
    let folder = tempfile::tempdir()?;
    for preset in PRESETS {
        let recipe = Recipe::preset(preset, options())?;
        let plan = Plan::new(&checkpoint, &recipe)?;
        let output = folder.path().join(preset);
        let run = plan.run(&output, &mut go)?;
        let compressed = Checkpoint::open(&output)?;
        check(compressed.file_bytes() == plan.bytes_after(), || {
            format!("{preset}: planned {} bytes, wrote {}", plan.bytes_after(), compressed.file_bytes())
        })?;
        let already = checkpoint
            .entries()
            .iter()
            .all(|e| e.describe().eq_ignore_ascii_case(&preset.replace("fp", "f")));
        check(run.layers.is_empty() == already, || format!("{preset}: {} layers", run.layers.len()))?;
        check(compressed.entries().len() == checkpoint.entries().len(), || {
            format!("{preset}: {} tensors became {}", checkpoint.entries().len(), compressed.entries().len())
        })?;
        let verification = verify(&source, &output, VerifyOptions::default())?;
        if let Some(failure) = verification.failures().next() {
            return Err(format!("{preset}: {failure:?}").into());
        }
        std::fs::remove_dir_all(&output)?;
    }
    Ok(())
}

/// Every instruction level and number of threads writes the same files.
fn same_bytes_everywhere(zoo: &Path, model: &str) -> Result<(), Failed> {
    let checkpoint = Checkpoint::open(zoo.join(model))?;
    let folder = tempfile::tempdir()?;
    let _level = level_is_mine();
    for preset in ["bf16", "fp8", "int8", "int4-asym", "2:4+int8", "90%-global+int4"] {
        let recipe = Recipe::preset(preset, options())?;
        let mut first = None;
        for level in CpuLevel::ALL.into_iter().filter(|level| *level <= CpuLevel::detected()) {
            for threads in [1, 2] {
                level.set_current()?;
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
                let output = folder.path().join("out");
                pool.install(|| Plan::new(&checkpoint, &recipe)?.run(&output, &mut go))?;
                let files = files_of(&output)?;
                std::fs::remove_dir_all(&output)?;
                check(files == *first.get_or_insert_with(|| files.clone()), || {
                    format!("{preset}: other bytes at level {level} with {threads} threads")
                })?;
            }
        }
    }
    Ok(())
}

/// Every file of a folder, sorted by name.
fn files_of(folder: &Path) -> std::io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    let mut files = Vec::new();
    for path in entries.into_iter().map(|entry| entry.path()) {
        if path.is_file() {
            files.push((path.clone(), std::fs::read(path)?));
        }
    }
    files.sort();
    Ok(files)
}

/// Files of one element type: floats are converted, others are refused with their class.
fn one_dtype(zoo: &Path, dtype: &str) -> Result<(), Failed> {
    let source = zoo.join(format!("awkward/dtypes/{dtype}.safetensors"));
    let checkpoint = Checkpoint::open(&source)?;
    let floats = checkpoint.entries().iter().filter(|e| match e.stored {
        Stored::Plain(dtype) => FloatType::of(dtype).is_some(),
        Stored::Compressed(_) => true,
    });
    let recipe = Recipe::preset("bf16", options())?;
    if floats.count() == 0 {
        let error = Plan::new(&checkpoint, &recipe).err().map(|e| e.to_string()).unwrap_or_default();
        return check(error.contains("matches no tensor (there are: 1 other)"), || error.clone());
    }
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("out");
    Plan::new(&checkpoint, &recipe)?.run(&output, &mut go)?;
    let failures = verify(&source, &output, VerifyOptions::default())?.failures().count();
    check(failures == 0, || format!("{failures} failures"))
}

fn mnist(zoo: &Path) -> Result<ImageSet, Failed> {
    let folder = zoo.join("mnist");
    Ok(ImageSet::open(folder.join("t10k-images-idx3-ubyte.gz"), folder.join("t10k-labels-idx1-ubyte.gz"))?)
}

fn accuracy(path: &Path, images: &ImageSet) -> Result<f64, Failed> {
    let task = Classification { images: images.clone() };
    Ok(task.score(&Sequential::open(&Checkpoint::open(path)?)?)?[0].value)
}

/// 97.72 % is what an independent implementation measured.
fn lenet_accuracy(zoo: &Path, _: &str) -> Result<(), Failed> {
    let images = mnist(zoo)?;
    let source = zoo.join("lenet-300-100/dense.safetensors");
    let dense = accuracy(&source, &images)?;
    check((dense - 97.72).abs() < 1e-9, || format!("dense: {dense}"))?;
    let checkpoint = Checkpoint::open(&source)?;
    let folder = tempfile::tempdir()?;
    // points of accuracy that may be lost
    for (preset, allowed) in [("fp16", 0.02), ("fp8", 0.1), ("int8", 0.05), ("int4", 0.5), ("50%", 0.5)] {
        let output = folder.path().join(preset);
        Plan::new(&checkpoint, &Recipe::preset(preset, options())?)?.run(&output, &mut go)?;
        let compressed = accuracy(&output, &images)?;
        check(dense - compressed <= allowed + 1e-9, || format!("{preset}: {dense} fell to {compressed}"))?;
    }
    Ok(())
}

fn pruned_lenet_accuracy(zoo: &Path, _: &str) -> Result<(), Failed> {
    let pruned = accuracy(&zoo.join("lenet-300-100/dynamic-network-surgery.safetensors"), &mnist(zoo)?)?;
    check((pruned - 98.01).abs() < 1e-9, || format!("{pruned}"))
}

fn shards_hold_the_same_model(zoo: &Path, _: &str) -> Result<(), Failed> {
    let single = Checkpoint::open(zoo.join("stories260k"))?;
    let sharded = Checkpoint::open(zoo.join("awkward/stories260K-sharded"))?;
    check(sharded.files().len() == 3, || format!("{} files", sharded.files().len()))?;
    for entry in single.entries() {
        let same = single.tensor(&entry.name)?.bytes == sharded.tensor(&entry.name)?.bytes;
        check(same, || entry.name.clone())?;
    }
    check(single.entries().len() == sharded.entries().len(), || "different tensors".into())
}

/// What others rounded is what `half` rounds.
fn half_precision(zoo: &Path, _: &str) -> Result<(), Failed> {
    let single = Checkpoint::open(zoo.join("stories260k"))?;
    for (file, round) in [
        ("f16", (|x| half::f16::from_f32(x).to_f32()) as fn(f32) -> f32),
        ("bf16", |x| half::bf16::from_f32(x).to_f32()),
    ] {
        let narrow = Checkpoint::open(zoo.join(format!("awkward/stories260K-{file}")))?;
        for entry in single.entries() {
            let (wide, narrow) = (single.dense(&entry.name)?, narrow.dense(&entry.name)?);
            check(wide.len() == narrow.len(), || entry.name.clone())?;
            let differs = wide.iter().zip(&narrow).position(|(a, b)| round(*a).to_bits() != b.to_bits());
            check(differs.is_none(), || format!("{file}: {} at {differs:?}", entry.name))?;
        }
    }
    Ok(())
}

/// e4m3 has 3 mantissa bits: a relative error of at most 2^-4 a value, about 2.5 % in the root mean square.
fn f8_with_scales(zoo: &Path, _: &str) -> Result<(), Failed> {
    let single = Checkpoint::open(zoo.join("stories260k"))?;
    let narrow = Checkpoint::open(zoo.join("awkward/stories260K-f8e4m3"))?;
    let mut compressed = 0;
    for entry in narrow.entries().iter().filter(|e| matches!(e.stored, Stored::Compressed(_))) {
        let errors = tersor::WeightErrors::between(&single.dense(&entry.name)?, &narrow.dense(&entry.name)?);
        check(errors.relative < 0.035, || format!("{}: {errors:?}", entry.name))?;
        compressed += 1;
    }
    check(compressed == 35, || format!("{compressed} compressed weights, expected 7 in each of 5 layers"))
}
