//! Products with compressed weights, in multiply-adds a second.

use std::hint::black_box;
use std::num::NonZeroUsize;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array2;
use tersor::{
    ActivationCodes, Activations, Bits, CodebookBits, Codebooks, CompressedWeight, DenseValues, Granularity,
    Layer, LayoutKind, Magnitude, Method, NofM, PackedWeight, Precision, RoundToNearest,
};

const SIDE: usize = 1024;

/// Side of a weight that no cache holds.
const LARGE: usize = 4096;

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

/// Codes of codebooks are read as they are stored: a weight of 4 bits is a quarter of f16's bytes, which one row of activations
/// waits for.
fn codebooks(c: &mut Criterion) {
    let shape = [LARGE, LARGE];
    let values: Vec<f32> = (0..LARGE * LARGE).map(|i| ((i * 7919 % 1013) as f32 - 506.0) / 506.0).collect();
    let half = CompressedWeight::from_f32(&shape, Precision::F16, &values).expect("the right length");
    let mut weights = vec![("f16".to_owned(), half)];
    for bits in [4, 3, 2] {
        let bits = CodebookBits::new(bits).expect("1 to 8 bits");
        let codes: Vec<u8> = (0..LARGE * LARGE).map(|i| (i * 31 % 1013 % bits.entries()) as u8).collect();
        let books = values[..LARGE * bits.entries()].to_vec();
        let books = Codebooks::new(bits, Granularity::Channel, Precision::F16, books).expect("finite values");
        let values = DenseValues::Codebook(&codes, &books);
        let weight =
            CompressedWeight::encode(&shape, LayoutKind::Dense, None, values).expect("the right length");
        weights.push((format!("codebook{}", bits.get()), weight));
    }
    let mut group = c.benchmark_group(format!("matmul {LARGE}x{LARGE}, packed"));
    group.sample_size(20);
    for batch in [1, 4, 32] {
        let x = Array2::<f32>::ones((batch, LARGE));
        group.throughput(Throughput::Elements((batch * LARGE * LARGE) as u64));
        for (name, weight) in &weights {
            let packed = PackedWeight::new(weight, Activations::Float).expect("floats meet all weights");
            group.bench_with_input(BenchmarkId::new(name, batch), &x, |b, x| {
                b.iter(|| packed.matmul(black_box(x.view())));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, products, codebooks);
criterion_main!(benches);
