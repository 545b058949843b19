//! Quantizing and pruning one layer: bytes of input a second.

use std::hint::black_box;
use std::num::NonZeroUsize;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tersor::kernels::pack::words_for;
use tersor::kernels::quantize::{IntRows, quantize_f8_rows, quantize_int_rows};
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
    let layer = Layer::new(&[SIDE, SIDE], &values, Precision::F32);
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

/// The kernels alone, into buffers that are there already; and the loop that moves the same bytes and does nothing else.
fn kernels(c: &mut Criterion) {
    let values = weights();
    let mut bytes = vec![0u8; SIDE * SIDE];
    let mut scales = vec![0.0; SIDE * SIDE / 32];
    let mut group = c.benchmark_group("kernels 1024x1024 f32");
    group.throughput(Throughput::Bytes((SIDE * SIDE * 4) as u64)).sample_size(20);
    group.bench_function("copy one byte in four", |b| {
        b.iter(|| {
            for (byte, x) in bytes.iter_mut().zip(black_box(&values)) {
                *byte = (x.to_bits() >> 24) as u8;
            }
        });
    });
    for (name, bits, size) in [
        ("int8 channel", 8, SIDE),
        ("int8 group 128", 8, 128),
        ("int4 group 128", 4, 128),
        ("int3 group 32", 3, 32),
    ] {
        let mut words = vec![0; SIDE * words_for(SIDE, bits)];
        let scales = &mut scales[..SIDE * SIDE / size];
        group.bench_function(name, |b| {
            b.iter(|| {
                let out = IntRows { words: &mut words, scales, zero_points: None };
                quantize_int_rows(black_box(&values), SIDE, size, bits, Precision::F32, out)
            });
        });
    }
    group.bench_function("f8 channel", |b| {
        b.iter(|| {
            let scales = &mut scales[..SIDE];
            quantize_f8_rows(black_box(&values), SIDE, SIDE, Precision::F32, &mut bytes, scales)
        });
    });
    group.finish();
}

criterion_group!(benches, methods, kernels);
criterion_main!(benches);
