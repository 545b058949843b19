//! Tensors that are compressed block by block: the same files, figures and errors as from the whole, in little memory.
#![allow(unsafe_code)] // the allocator that counts

mod common;
#[path = "common/models.rs"]
mod models;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tersor::pipeline::Calibration;
use tersor::recipe::{Rounding, Transform};
use tersor::{
    Activations, Bits, Checkpoint, CodeType, CpuLevel, DType, FloatCast, Granularity, Layer, Method,
    Observer, PackedWeight, Plan, Precision, PresetOptions, Recipe, RoundToNearest, Run, Samples, Step,
    StoredTensor,
};

use common::{Folder, stored};
use models::{floats, folder, values, weight};

/// Counts the bytes that are held, and the most that ever were.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is done by the system's allocator; the counts have no part in it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The tests of this file take turns, so that each counts its own.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> std::sync::MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn int(bits: u8, symmetric: bool, granularity: Granularity) -> Recipe {
    let codes = CodeType::Int { bits: Bits::new(bits).unwrap(), symmetric };
    Recipe::new().step(Step::quantize(RoundToNearest::codes(codes).granularity(granularity)))
}

fn size(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

fn go(
    source: &Folder,
    recipe: &Recipe,
    threads: usize,
    block: Option<usize>,
) -> Result<(Vec<u8>, Run), String> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let work = Folder::new();
    let output = work.path().join("out");
    let ran = pool.install(|| {
        let plan = Plan::new(&checkpoint, recipe).unwrap();
        let plan = if let Some(block) = block { plan.block_bytes(block) } else { plan };
        plan.run(&output, &mut |_| ControlFlow::Continue(()))
    });
    let run = ran.map_err(|e| e.to_string())?;
    Ok((fs::read(output.join("model.safetensors")).unwrap(), Run { output: "".into(), ..run }))
}

/// Rows and columns that divide nothing, and several blocks even where sums and packed codes ask for many rows.
fn model(dtype: DType) -> Folder {
    folder(
        &[
            weight("a.weight", dtype, &[301, 70]),
            weight("b.weight", dtype, &[2100, 9]),
            weight("c.weight", dtype, &[1, 33]),
            weight("d.weight", dtype, &[70, 3, 11, 19]),
            stored("e.weight", DType::I64, &[3, 5], (0..120).collect::<Vec<u8>>()),
            weight("f.weight", dtype, &[129, 256]),
        ],
        None,
    )
}

#[test]
fn blocks_of_any_size_write_the_same_bytes_and_figures() {
    let _turn = turn();
    let preset = |name: &str| Recipe::preset(name, PresetOptions::default()).unwrap();
    let clipped = RoundToNearest::int(Bits::new(4).unwrap()).observer(Observer::Percentile(99.0));
    let recipes = [
        preset("int8"),
        preset("2:4"),
        preset("50%+int4"),
        int(8, false, Granularity::Channel),
        int(3, false, Granularity::Channel),
        int(5, false, Granularity::Group(size(32))),
        int(4, true, Granularity::Group(size(128))),
        int(4, false, Granularity::Block(size(7), size(20))),
        int(4, true, Granularity::Block(size(usize::MAX), size(20))),
        int(8, true, Granularity::Tensor),
        Recipe::new().step(Step::quantize(clipped)),
        Recipe::new().step(Step::quantize(RoundToNearest::codes(CodeType::F8E4M3))),
        Recipe::new().step(Step::quantize(FloatCast::to(Precision::Bf16))),
        preset("2:4+int8"),
        preset("2:4+int3-asym"),
    ];
    for dtype in [DType::F32, DType::BF16] {
        let source = model(dtype);
        for recipe in &recipes {
            // what only tersor reads may be written too
            let recipe = recipe.clone().format(tersor::OutputFormat::Tersor);
            let (bytes, run) = go(&source, &recipe, 1, Some(usize::MAX)).unwrap();
            assert!(!run.layers.is_empty() || dtype == DType::BF16, "{recipe:?}");
            let levels = CpuLevel::ALL.map(|level| level.min(CpuLevel::detected()));
            for ((threads, block), level) in
                [(3, Some(0)), (2, Some(40_000)), (1, None)].into_iter().zip(levels)
            {
                level.set_current().unwrap();
                let (other, other_run) = go(&source, &recipe, threads, block).unwrap();
                let how = format!("{dtype:?}, {threads} threads, {block:?}, {level}: {recipe:?}");
                assert!(bytes == other, "{how}");
                assert_eq!(run, other_run, "{how}");
            }
        }
    }
}

/// What is wrong with a tensor is told as of the whole: the first index, and how many.
#[test]
fn errors_name_positions_in_the_whole_tensor() {
    let _turn = turn();
    let source = |at: &[(usize, f32)]| {
        let mut values = values(2100 * 9, 4);
        for (index, value) in at {
            values[*index] = *value;
        }
        let tensors: [StoredTensor; 2] = [
            weight("a.weight", DType::F32, &[301, 70]),
            stored("b.weight", DType::F32, &[2100, 9], floats(DType::F32, &values)),
        ];
        folder(&tensors, None)
    };
    let int8 = int(8, true, Granularity::Channel);
    let half = Recipe::new().step(Step::quantize(FloatCast::to(Precision::F16)));
    for (at, recipe, expected) in [
        (vec![(18_000, f32::NAN), (18_003, f32::NAN)], &int8, ["`b.weight`", "at index 18000"]),
        (vec![(18_003, f32::NEG_INFINITY), (9, 1.0)], &int8, ["-inf", "at index 18003"]),
        (vec![(5, 1e6), (18_000, 1e6), (18_001, -1e6)], &half, ["3 values", "at index 5"]),
        // not finite is worse than too large, wherever it stands
        (vec![(5, 1e6), (18_000, f32::NAN)], &half, ["`b.weight`", "at index 18000"]),
    ] {
        let source = source(&at);
        let whole = go(&source, recipe, 1, Some(usize::MAX)).unwrap_err();
        assert!(expected.iter().all(|e| whole.contains(e)), "{whole}");
        for threads in [1, 3] {
            assert_eq!(go(&source, recipe, threads, Some(0)).unwrap_err(), whole);
        }
    }
}

/// A large tensor is told of block by block, and the bytes done grow to those of all.
#[test]
fn progress_is_seen_within_a_tensor() {
    let _turn = turn();
    let source = folder(&[weight("a.weight", DType::F32, &[2048, 64])], None);
    let checkpoint = source.open().unwrap();
    let recipe = int(8, true, Granularity::Channel);
    let plan = Plan::new(&checkpoint, &recipe).unwrap().block_bytes(0);
    let work = Folder::new();
    let mut seen = Vec::new();
    let mut watch = |p: tersor::pipeline::Progress<'_>| {
        assert!(p.tensor.is_none_or(|t| t == "a.weight"));
        seen.push(p.done);
        ControlFlow::Continue(())
    };
    plan.run(work.path().join("out"), &mut watch).unwrap();
    // 256 rows of 64 make one piece of the sums
    let block = 4 * 64 * 256;
    let expected: Vec<u64> = (0..=8).map(|i| i * block).collect();
    assert_eq!(seen, expected);
    let mut calls = 0;
    let mut stop = |_: tersor::pipeline::Progress<'_>| {
        calls += 1;
        if calls == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let error = plan.run(work.path().join("stopped"), &mut stop).unwrap_err();
    assert!(matches!(error, tersor::PipelineError::Stopped));
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 1);
}

/// The plan's figure bounds what is held, is not far above it, and is the same for a tensor ten times as large.
#[test]
fn the_run_takes_the_memory_that_the_plan_says() {
    let _turn = turn();
    for (name, streams) in [("int8", true), ("fp16", true), ("2:4+int8", true), ("50%+int4", false)] {
        let recipe = Recipe::preset(name, PresetOptions::default()).unwrap();
        let measure = |rows: usize| {
            let source = folder(&[weight("a.weight", DType::F32, &[rows, 512])], None);
            let checkpoint = source.open().unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            let work = Folder::new();
            pool.install(|| {
                let plan = Plan::new(&checkpoint, &recipe).unwrap();
                let before = HELD.load(Ordering::Relaxed);
                MOST.store(before, Ordering::Relaxed);
                plan.run(work.path().join("out"), &mut |_| ControlFlow::Continue(())).unwrap();
                ((MOST.load(Ordering::Relaxed) - before) as u64, plan.peak_memory())
            })
        };
        // what lists, names and the manifest take
        let small = 1 << 16;
        let (held, planned) = measure(20_480);
        assert!(held <= planned + small, "{name}: {held} held, {planned} planned");
        assert!(planned <= 3 * held, "{name}: {held} held, {planned} planned");
        assert_eq!(measure(4096).1 == planned, streams, "{name}");
    }
}

/// A decoder whose blocks are large beside everything else that a run holds.
fn wide_decoder() -> Folder {
    let (hidden, inner) = (256, 512);
    let mut tensors = vec![
        weight("model.embed_tokens.weight", DType::F16, &[64, hidden]),
        weight("model.norm.weight", DType::F16, &[hidden]),
    ];
    for block in 0..2 {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push(weight(&format!("model.layers.{block}.{name}.weight"), DType::F16, shape));
        };
        for name in ["q", "k", "v", "o"] {
            add(&format!("self_attn.{name}_proj"), &[hidden, hidden]);
        }
        add("mlp.gate_proj", &[inner, hidden]);
        add("mlp.up_proj", &[inner, hidden]);
        add("mlp.down_proj", &[hidden, inner]);
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
    }
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8,
        "vocab_size": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "max_position_embeddings": 512, "tie_word_embeddings": true
    });
    folder(&tensors, Some(&config))
}

/// The same of runs with calibration, whatever is done to the network before, and wherever hidden states and statistics go.
#[test]
fn a_calibrated_run_takes_the_memory_that_the_plan_says() {
    let _turn = turn();
    let source = wide_decoder();
    let checkpoint = source.open().unwrap();
    let sequence = |s: u32| (0..256).map(|t| (s * 37 + t * t) % 64).collect();
    let samples = Samples::tokens((0..8).map(sequence).collect()).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    // weights that are arranged for products share slabs of 32 MiB, of which only what they need is touched
    let int8 = RoundToNearest::int(Bits::new(8).unwrap());
    let one = int8.compress(&Layer::new(&[1, 64], &[1.0; 64], Precision::F32)).unwrap().weight;
    for (method, transform, keeps, memory, steps) in [
        ("gptq", None, false, 1 << 20, None),
        ("gptq-act-order", Some("rotate"), true, Calibration::MEMORY, None),
        ("clip", Some("awq"), false, Calibration::MEMORY, None),
        ("autoround", None, false, 0, None),
        ("nearest", Some("rotate"), false, Calibration::MEMORY, NonZeroUsize::new(2)),
        ("nearest", None, false, 0, NonZeroUsize::new(2)),
    ] {
        let rounding = Rounding::from_name(method).unwrap();
        let mut recipe =
            Recipe::preset("int4", PresetOptions { rounding, ..PresetOptions::default() }).unwrap();
        if let Some(name) = transform {
            recipe = recipe.transform(Transform::from_name(name).unwrap());
        }
        if let Some(steps) = steps {
            recipe = recipe.reconstruct(steps);
        }
        let plan = Plan::new(&checkpoint, &recipe).unwrap();
        let work = Folder::new();
        let statistics = work.path().join("statistics");
        let calibration = Calibration::new(&samples).memory(memory);
        let calibration = if keeps { calibration.statistics(&statistics) } else { calibration };
        let (held, planned) = pool.install(|| {
            let _slab = PackedWeight::new(&one, Activations::Float).unwrap();
            let before = HELD.load(Ordering::Relaxed);
            MOST.store(before, Ordering::Relaxed);
            plan.run_calibrated(work.path().join("out"), calibration, &mut |_| ControlFlow::Continue(()))
                .unwrap();
            let held = (MOST.load(Ordering::Relaxed) - before) as u64;
            (held, plan.calibrated_memory(Some(calibration)).unwrap())
        });
        assert!(held <= planned, "{method}: {held} held, {planned} planned");
        assert!(planned <= 3 * held, "{method}: {held} held, {planned} planned");
    }
}
