use super::Sums;

/// Independent sums, so that the compiler can use vector registers. Part of the specification: the order of additions
/// follows from it.
const LANES: usize = 16;

#[inline(always)]
pub(super) fn sums(original: &[f32], compressed: &[f32]) -> Sums {
    let mut lanes = [[0f64; LANES]; 5];
    let [originals, compresseds, products, errors, largest] = &mut lanes;
    let mut add = |lane: usize, a: f32, b: f32| {
        let (a, b) = (f64::from(a), f64::from(b));
        let error = a - b;
        originals[lane] += a * a;
        compresseds[lane] += b * b;
        products[lane] += a * b;
        errors[lane] += error * error;
        let error = error.abs();
        largest[lane] = if error > largest[lane] { error } else { largest[lane] };
    };
    let (a_chunks, a_tail) = original.as_chunks::<LANES>();
    let (b_chunks, b_tail) = compressed.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            add(lane, a[lane], b[lane]);
        }
    }
    for (lane, (a, b)) in a_tail.iter().zip(b_tail).enumerate() {
        add(lane, *a, *b);
    }
    let total = |lanes: &[f64; LANES]| lanes.iter().fold(0.0, |a, b| a + b);
    Sums {
        original: total(originals),
        compressed: total(compresseds),
        product: total(products),
        error: total(errors),
        max_abs: largest.iter().fold(0.0, |a: f64, b| a.max(*b)),
    }
}
