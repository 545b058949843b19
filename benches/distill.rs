//! Distillation losses: value and gradient, in logits a second.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array2;
use tersor::distill::{DecoupledDistillation, Divergence, DivergenceLoss, KnowledgeDistillation, Labels};

const BATCH: usize = 256;
const CLASSES: usize = 4096;

fn losses(c: &mut Criterion) {
    let logits = |seed: usize| {
        Array2::from_shape_fn((BATCH, CLASSES), |(i, j)| {
            ((i * 31 + j * 7919 + seed) % 1013) as f32 / 100.0 - 5.0
        })
    };
    let (student, teacher) = (logits(0), logits(517));
    let labels: Vec<i64> = (0..BATCH).map(|i| (i * 37 % CLASSES) as i64).collect();
    let mut group = c.benchmark_group("distill 256x4096");
    group.throughput(Throughput::Elements((BATCH * CLASSES) as u64)).sample_size(20);
    let (s, t) = (student.view(), teacher.view());
    let forward = DivergenceLoss::new(Divergence::ForwardKl, 2.0);
    group.bench_function("forward KL", |b| b.iter(|| forward.evaluate(black_box(s), t, None)));
    let mix = KnowledgeDistillation::new(0.9, 4.0);
    group.bench_function("KD mix", |b| b.iter(|| mix.evaluate(black_box(s), t, Labels::new(&labels))));
    let decoupled = DecoupledDistillation::new(4.0);
    group.bench_function("decoupled KD", |b| {
        b.iter(|| decoupled.evaluate(black_box(s), t, Labels::new(&labels)));
    });
    group.finish();
}

criterion_group!(benches, losses);
criterion_main!(benches);
