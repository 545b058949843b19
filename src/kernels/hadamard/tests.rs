use super::*;

/// The multiples of 4 up to 256 that the constructions do not give: `n − 1 ≡ 3` and `n/2 − 1 ≡ 1 (mod 4)` are no powers of
/// primes, nor is there a product.
const MISSING: [usize; 8] = [92, 116, 156, 172, 184, 188, 232, 236];

fn assert_hadamard(order: usize) {
    let h = Hadamard::new(order).unwrap().matrix();
    assert_eq!(h.len(), order * order);
    let rows: Vec<&[i8]> = h.chunks_exact(order).collect();
    for (i, a) in rows.iter().enumerate() {
        assert!(a.iter().all(|x| x.abs() == 1));
        for (j, b) in rows.iter().enumerate().skip(i) {
            let product: i32 = a.iter().zip(*b).map(|(a, b)| i32::from(a * b)).sum();
            assert_eq!(product, if i == j { order as i32 } else { 0 }, "order {order}, rows {i} and {j}");
        }
    }
}

#[test]
fn rows_are_orthogonal_for_every_order() {
    for order in 0..=256 {
        let possible = [1, 2].contains(&order) || (order > 0 && order % 4 == 0);
        if possible && !MISSING.contains(&order) {
            assert_hadamard(order);
        } else {
            assert!(Hadamard::new(order).is_none(), "{order}");
        }
    }
    // over the fields of 7³ and 5³ elements
    assert_hadamard(344);
    assert_hadamard(252);
}

#[test]
fn hidden_sizes_of_known_models_have_a_matrix() {
    let sizes = [
        576, 768, 896, 960, 1024, 1536, 2048, 2560, 3072, 3584, 4096, 4864, 5120, 8192, 8960, 11008, 14336,
        18944,
    ];
    for size in sizes {
        assert_eq!(Hadamard::new(size).map(|h| h.order()), Some(size), "{size}");
    }
    let sizes = |order| factors(order, MAX_FACTOR).unwrap().sizes;
    assert_eq!((sizes(576), sizes(1536), sizes(14336)), (vec![12, 12], vec![12], vec![28]));
    assert_eq!(sizes(11008), [344]);
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 % 1013) as f32 - 500.0) / 137.0).collect()
}

fn signs(len: usize) -> Vec<f32> {
    (0..len).map(|i| if i * 31 % 7 < 3 { -1.0 } else { 1.0 }).collect()
}

/// Both products against sums over the whole matrix. The orders have no, one and two dense factors; the lengths no whole
/// number of lanes.
#[test]
fn rotations_equal_dense_products() {
    for order in [1, 2, 8, 12, 20, 24, 28, 144, 240, 36 * 16] {
        let hadamard = Hadamard::new(order).unwrap();
        let (h, signs, rows) = (hadamard.matrix(), signs(order), 19);
        let r =
            |i: usize, j: usize| f64::from(h[i * order + j]) * f64::from(signs[i]) / (order as f64).sqrt();
        let x = values(rows * order);
        let mut rotated = x.clone();
        hadamard.rotate_rows(&mut rotated, &signs);
        for (row, rotated) in x.chunks_exact(order).zip(rotated.chunks_exact(order)) {
            for (j, actual) in rotated.iter().enumerate() {
                let expected: f64 = row.iter().enumerate().map(|(i, x)| f64::from(*x) * r(i, j)).sum();
                assert!(
                    (f64::from(*actual) - expected).abs() < 1e-5,
                    "order {order}: {actual}, not {expected}"
                );
            }
        }
        let (blocks, cols) = (2, 33);
        let x = values(blocks * order * cols);
        let mut rotated = x.clone();
        hadamard.rotate_columns(&mut rotated, cols, &signs);
        for (x, rotated) in x.chunks_exact(order * cols).zip(rotated.chunks_exact(order * cols)) {
            for (at, actual) in rotated.iter().enumerate() {
                let (j, col) = (at / cols, at % cols);
                let expected: f64 = (0..order).map(|i| f64::from(x[i * cols + col]) * r(i, j)).sum();
                assert!(
                    (f64::from(*actual) - expected).abs() < 1e-5,
                    "order {order}: {actual}, not {expected}"
                );
            }
        }
    }
}

/// A panel's end and a tile's end within it.
#[test]
fn wide_matrices_are_rotated_panel_by_panel() {
    let hadamard = Hadamard::new(4).unwrap();
    let cols = PANEL + LANES + 3;
    let x = values(4 * cols);
    let mut rotated = x.clone();
    hadamard.rotate_columns(&mut rotated, cols, &[1.0; 4]);
    for col in 0..cols {
        let [a, b, c, d] = [0, 1, 2, 3].map(|row| f64::from(x[row * cols + col]));
        let expected = [a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d].map(|x| (x / 2.0) as f32);
        assert_eq!([0, 1, 2, 3].map(|row| rotated[row * cols + col]), expected, "column {col}");
    }
}

#[test]
fn every_level_and_thread_count_gives_the_same_bits() {
    for order in [64, 60 * 4, 344] {
        let hadamard = Hadamard::new(order).unwrap();
        let of = |isa| {
            let mut room = Room { x: vec![[0.0; LANES]; order], old: Vec::new() };
            for (x, value) in room.x.as_flattened_mut().iter_mut().zip(values(order * LANES)) {
                *x = f64::from(value);
            }
            hadamard.multiply(isa, &mut room);
            room.x
        };
        let expected = of(Isa::Portable);
        assert!(Isa::all().into_iter().all(|isa| of(isa) == expected));

        let (x, signs) = (values(100 * order), signs(order));
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (mut rows, mut columns) = (x.clone(), x.clone());
            pool.install(|| {
                hadamard.rotate_rows(&mut rows, &signs);
                hadamard.rotate_columns(&mut columns, 100, &signs);
            });
            (rows, columns)
        };
        assert!(with(1) == with(3));
    }
}
