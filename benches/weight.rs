//! Products with compressed weights, in multiply-adds a second.

use std::hint::black_box;
use std::num::NonZeroUsize;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array2;
use tersor::{
    ActivationCodes, Activations, Bits, CompressedWeight, Granularity, Layer, LayoutKind, Magnitude, Method,
    NofM, PackedWeight, Precision, RoundToNearest,
};

const SIDE: usize = 1024;

fn products(c: &mut Criterion) {
    let values: Vec<f32> = (0..SIDE * SIDE).map(|i| ((i * 7919 % 1013) as f32 - 506.0) / 506.0).collect();
    let layer = Layer::new(&[SIDE, SIDE], &values, Precision::F32);
    let int = |bits| RoundToNearest::int(Bits::new(bits).expect("2 to 8 bits"));
    let groups = Granularity::Group(NonZeroUsize::new(128).expect("not zero"));
    let pattern = NofM::new(2, 4).expect("a pattern");
    let compress = |method: &dyn Method, layout| {
        method.compress(&Layer { layout, ..layer }).expect("finite weights").weight
    };
    let weights: [(&str, CompressedWeight); 5] = [
        (
            "f32",
            CompressedWeight::from_f32(&[SIDE, SIDE], Precision::F32, &values).expect("the right length"),
        ),
        ("int8 channel", compress(&int(8), LayoutKind::Dense)),
        ("int4 group 128", compress(&int(4).granularity(groups), LayoutKind::Dense)),
        ("f8 channel", compress(&RoundToNearest::f8_e4m3(), LayoutKind::Dense)),
        ("2:4 f32", compress(&Magnitude::NofM(pattern), LayoutKind::NofM(pattern))),
    ];
    let mut group = c.benchmark_group("matmul 1024x1024");
    group.sample_size(20);
    for batch in [1, 32] {
        let x = Array2::<f32>::ones((batch, SIDE));
        group.throughput(Throughput::Elements((batch * SIDE * SIDE) as u64));
        for (name, weight) in &weights {
            group.bench_with_input(BenchmarkId::new(*name, batch), &x, |b, x| {
                b.iter(|| weight.matmul(black_box(x.view())));
            });
            for (how, activations) in
                [("float", Activations::Float), ("int8", Activations::Int8(ActivationCodes::PerToken))]
            {
                // 8-bit activations want integer codes
                let Ok(packed) = PackedWeight::new(weight, activations) else { continue };
                group.bench_with_input(
                    BenchmarkId::new(format!("{name}, packed, {how}"), batch),
                    &x,
                    |b, x| {
                        b.iter(|| packed.matmul(black_box(x.view())));
                    },
                );
            }
        }
    }
    group.finish();
}

criterion_group!(benches, products);
criterion_main!(benches);
