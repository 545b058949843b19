//! Whatever the processor has and however many threads there are, a network gives the same bits.

use std::ops::ControlFlow;

use tersor::{
    ActivationCodes, Activations, Checkpoint, CpuLevel, Execution, Network, OutputFormat, Plan,
    PresetOptions, Recipe,
};

use crate::common::Folder;
use crate::model::fixture;

const CASES: [&str; 5] = ["bert", "llama", "llama-bf16", "qwen3", "qwen2-window"];

/// Outputs for sequences of several lengths, one after the other.
fn outputs(network: &Network) -> Vec<u32> {
    let tokens: Vec<u32> = (0..40).map(|i| (i * 23 + 5) % 64).collect();
    let of = |length: usize| match network {
        // which takes 24 tokens at most
        Network::Encoder(model) => {
            model.forward(&tokens[..length].chunks(24).collect::<Vec<_>>(), None).unwrap()
        }
        _ => network.language_model().unwrap().logits(&tokens[..length]).unwrap(),
    };
    (1..=5).chain([40]).flat_map(|length| of(length).into_iter().map(f32::to_bits)).collect()
}

fn assert_same_everywhere(checkpoint: &Checkpoint, execution: Execution, what: &str) {
    let network = Network::open(checkpoint, execution).unwrap();
    let before = CpuLevel::current();
    let mut first: Option<Vec<u32>> = None;
    for level in CpuLevel::ALL.into_iter().filter(|level| *level <= CpuLevel::detected()) {
        // other tests run meanwhile: every level gives them the same results, which is what is tested here
        level.set_current().unwrap();
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let outputs = pool.install(|| outputs(&network));
            let first = first.get_or_insert_with(|| outputs.clone());
            let differ = outputs.iter().zip(first.iter()).filter(|(a, b)| a != b).count();
            assert_eq!(differ, 0, "{what}, {level}, {threads} threads: of {} outputs", outputs.len());
        }
    }
    before.set_current().unwrap();
}

#[test]
fn float_weights() {
    for case in CASES {
        let checkpoint = Checkpoint::open(fixture(case)).unwrap();
        assert_same_everywhere(&checkpoint, Execution::default(), case);
    }
}

#[test]
fn compressed_weights() {
    let int8 = Activations::Int8(ActivationCodes::PerToken);
    for case in CASES {
        let source = Checkpoint::open(fixture(case)).unwrap();
        for preset in ["int8", "int4-asym", "fp8", "50%+fp16", "50%+int8"] {
            let folder = Folder::new();
            let options = PresetOptions { format: Some(OutputFormat::Tersor), ..PresetOptions::default() };
            let recipe = Recipe::preset(preset, options).unwrap();
            let output = folder.path().join("out");
            Plan::new(&source, &recipe).unwrap().run(&output, &mut |_| ControlFlow::Continue(())).unwrap();
            let checkpoint = Checkpoint::open(output).unwrap();
            let what = format!("{case}, {preset}");
            assert_same_everywhere(&checkpoint, Activations::Float.into(), &what);
            if preset == "int8" {
                assert_same_everywhere(&checkpoint, int8.into(), &format!("{what}, int8 activations"));
            }
        }
    }
}
