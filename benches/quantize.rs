//! Quantizing and pruning one layer: bytes of input a second.

use std::hint::black_box;
use std::num::NonZeroUsize;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tersor::{
    Bits, FloatCast, Granularity, Layer, LayoutKind, Magnitude, Method, NofM, Observer, Precision,
    RoundToNearest, Sparsity,
};

const SIDE: usize = 1024;

fn weights() -> Vec<f32> {
    // a sum of uniform values is close enough to a normal one
    let mut state = 1u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state as f32 / u32::MAX as f32 - 0.5
    };
    (0..SIDE * SIDE).map(|_| (0..4).map(|_| uniform()).sum()).collect()
}

fn methods(c: &mut Criterion) {
    let values = weights();
    let layer = Layer {
        shape: &[SIDE, SIDE],
        values: &values,
        mask: None,
        precision: Precision::F32,
        layout: LayoutKind::Dense,
    };
    let int = |bits| RoundToNearest::int(Bits::new(bits).expect("2 to 8 bits"));
    let groups = Granularity::Group(NonZeroUsize::new(128).expect("not zero"));
    let methods: [(&str, Box<dyn Method>, LayoutKind); 7] = [
        ("f16", Box::new(FloatCast::to(Precision::F16)), LayoutKind::Dense),
        ("int8 channel", Box::new(int(8)), LayoutKind::Dense),
        ("int4 group 128", Box::new(int(4).granularity(groups)), LayoutKind::Dense),
        (
            "int4 group 128, mse",
            Box::new(int(4).granularity(groups).observer(Observer::Mse)),
            LayoutKind::Dense,
        ),
        ("f8 channel", Box::new(RoundToNearest::f8_e4m3()), LayoutKind::Dense),
        (
            "magnitude 50%",
            Box::new(Magnitude::Unstructured(Sparsity::new(0.5).expect("a fraction"))),
            LayoutKind::Bitmask,
        ),
        ("2:4", Box::new(Magnitude::NofM(NofM::new(2, 4).expect("a pattern"))), LayoutKind::Bitmask),
    ];
    let mut group = c.benchmark_group("compress 1024x1024 f32");
    group.throughput(Throughput::Bytes((SIDE * SIDE * 4) as u64)).sample_size(20);
    for (name, method, layout) in methods {
        let layer = Layer { layout, ..layer };
        group.bench_function(name, |b| b.iter(|| method.compress(black_box(&layer))));
    }
    group.finish();
}

criterion_group!(benches, methods);
criterion_main!(benches);
