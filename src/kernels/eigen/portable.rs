use super::LANES;

/// A plane rotation of the columns `at` and `at + 1`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rotation {
    at: usize,
    cos: f64,
    sin: f64,
}

/// Steps that one eigenvalue may take; two or three are usual, and Wilkinson's shift always converges.
const STEPS: usize = 100;

/// Overwrites a diagonal and what stands beside it with the eigenvalues, in no order. Hands `each` every rotation of the
/// eigenvectors.
pub(super) fn diagonalize(diagonal: &mut [f64], off: &mut [f64], mut each: impl FnMut(Rotation)) {
    let size = diagonal.len();
    let largest = diagonal.iter().chain(&*off).fold(0f64, |norm, x| norm.max(x.abs()));
    let mut last = size.saturating_sub(1);
    let mut steps = 0;
    while last > 0 {
        for k in 0..last {
            let beside = diagonal[k].abs() + diagonal[k + 1].abs();
            // nothing beside its neighbours, or beside the whole matrix
            if off[k].abs() <= f64::EPSILON * beside || off[k].abs() <= 0.1 * f64::EPSILON * largest {
                off[k] = 0.0;
            }
        }
        steps += 1;
        if off[last - 1] == 0.0 || steps > STEPS {
            (last, steps) = (last - 1, 0);
            continue;
        }
        let first = (0..last).rev().find(|k| off[*k] == 0.0).map_or(0, |k| k + 1);
        step(diagonal, off, first, last, &mut each);
    }
}

/// An implicit QR step with Wilkinson's shift (Golub & Van Loan, algorithm 8.3.2).
fn step(d: &mut [f64], e: &mut [f64], first: usize, last: usize, each: &mut impl FnMut(Rotation)) {
    let half = 0.5 * (d[last - 1] - d[last]);
    let beside = e[last - 1];
    let root = (half * half + beside * beside).sqrt();
    let shift = d[last] - beside * (beside / (half + root.copysign(half)));
    let (mut x, mut z) = (d[first] - shift, e[first]);
    for k in first..last {
        let length = (x * x + z * z).sqrt();
        let (cos, sin) = if length > 0.0 { (x / length, z / length) } else { (1.0, 0.0) };
        if k > first {
            e[k - 1] = length;
        }
        let (a, b, c) = (d[k], e[k], d[k + 1]);
        d[k] = cos * cos * a + 2.0 * cos * sin * b + sin * sin * c;
        d[k + 1] = sin * sin * a - 2.0 * cos * sin * b + cos * cos * c;
        e[k] = cos * sin * (c - a) + (cos * cos - sin * sin) * b;
        x = e[k];
        if k + 1 < last {
            z = sin * e[k + 1];
            e[k + 1] *= cos;
        }
        each(Rotation { at: k, cos, sin });
    }
}

/// Subtracts what an update is of some rows, and adds up their products with a vector.
///
/// Of row `j` it subtracts `v_j·w + w_j·v`, then adds `x_j` times the row to `sums`.
///
/// # Shapes
/// `rows` is `[v_rows.len(), stride]`, of which the last `v.len()` columns are worked on.
#[inline(always)]
pub(super) fn update_rows(
    rows: &mut [f64],
    stride: usize,
    of_rows: [&[f64]; 3],
    v: &[f64],
    w: &[f64],
    sums: &mut [f64],
) {
    let [v_rows, w_rows, x_rows] = of_rows;
    let from = stride - v.len();
    for (((row, v_j), w_j), x_j) in rows.chunks_exact_mut(stride).zip(v_rows).zip(w_rows).zip(x_rows) {
        let columns = row[from..].iter_mut().zip(v).zip(w).zip(&mut *sums);
        for (((g, v), w), sum) in columns {
            *g -= v_j * w + w_j * v;
            *sum += x_j * *g;
        }
    }
}

/// Applies `I − 2·v·vᵀ` to 32 rows at once, `[v.len()][32]`.
#[inline(always)]
pub(super) fn reflect(v: &[f64], x: &mut [f64]) {
    let mut inner = [0f64; LANES];
    for (v, x) in v.iter().zip(x.as_chunks::<LANES>().0) {
        inner.iter_mut().zip(x).for_each(|(sum, x)| *sum += v * x);
    }
    for (v, x) in v.iter().zip(x.as_chunks_mut::<LANES>().0) {
        x.iter_mut().zip(&inner).for_each(|(x, inner)| *x -= 2.0 * v * inner);
    }
}

/// Rotates the columns of 32 rows, one rotation after the other.
#[inline(always)]
pub(super) fn rotate(rotations: &[Rotation], x: &mut [f64]) {
    let columns = x.as_chunks_mut::<LANES>().0;
    for Rotation { at, cos, sin } in rotations {
        let (before, after) = columns.split_at_mut(at + 1);
        let (Some(a), Some(b)) = (before.last_mut(), after.first_mut()) else { return };
        for (a, b) in a.iter_mut().zip(b) {
            (*a, *b) = (cos * *a + sin * *b, cos * *b - sin * *a);
        }
    }
}
