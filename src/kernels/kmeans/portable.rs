/// Values that go side by side.
const LANES: usize = 8;

/// The least of `before[i] + cost(i..end)` and the first `i` that has it.
///
/// # Shapes
/// `before` and the sums `s` of weights, positions and squares up to `i` have one element for each `i`; `end` has the sums up to
/// the end, where that of the weights is larger.
#[inline(always)]
pub(super) fn best_start(before: &[f64], s: [&[f64]; 3], end: [f64; 3]) -> (f64, usize) {
    let cost = |i: usize| {
        let (weight, sum, squares) = (end[0] - s[0][i], end[1] - s[1][i], end[2] - s[2][i]);
        before[i] + (squares - sum * sum / weight)
    };
    let mut least = [f64::INFINITY; LANES];
    let mut at = [0.0f64; LANES];
    let whole = before.len() / LANES * LANES;
    let (before_lanes, _) = before.as_chunks::<LANES>();
    let lanes = s.map(|s| s[..before.len()].as_chunks::<LANES>().0);
    for (chunk, before) in before_lanes.iter().enumerate() {
        let first = (chunk * LANES) as f64;
        for lane in 0..LANES {
            let weight = end[0] - lanes[0][chunk][lane];
            let sum = end[1] - lanes[1][chunk][lane];
            let squares = end[2] - lanes[2][chunk][lane];
            let cost = before[lane] + (squares - sum * sum / weight);
            let better = cost < least[lane];
            least[lane] = if better { cost } else { least[lane] };
            at[lane] = if better { first + lane as f64 } else { at[lane] };
        }
    }
    let mut best = (f64::INFINITY, 0);
    for lane in 0..LANES {
        let found = (least[lane], at[lane] as usize);
        if found.0 < best.0 || (found.0 == best.0 && found.1 < best.1) {
            best = found;
        }
    }
    for i in whole..before.len() {
        let cost = cost(i);
        if cost < best.0 {
            best = (cost, i);
        }
    }
    best
}

/// How many `ends` lie below each value.
#[inline(always)]
pub(super) fn nearest(values: &[f32], ends: &[f32], codes: &mut [u8]) {
    const WIDTH: usize = 32;
    let (chunks, rest) = values.as_chunks::<WIDTH>();
    let (out, out_rest) = codes.as_chunks_mut::<WIDTH>();
    for (values, codes) in chunks.iter().zip(out) {
        let mut count = [0u32; WIDTH];
        for end in ends {
            for (count, value) in count.iter_mut().zip(values) {
                *count += u32::from(value > end);
            }
        }
        for (code, count) in codes.iter_mut().zip(count) {
            *code = count as u8;
        }
    }
    for (value, code) in rest.iter().zip(out_rest) {
        *code = ends.iter().filter(|end| value > *end).count() as u8;
    }
}
