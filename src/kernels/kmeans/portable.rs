use std::ops::Range;

/// Values that go side by side.
const LANES: usize = 8;

/// One row of the table of dynamic programming: of each end from `first` on, the least `before[i] + cost(i..end)` and the first
/// `i` within `range` that has it.
///
/// Where that is moves right as the end does, and lies nowhere before `not_before[end]`: the ends in the middle of what is left come
/// first, and bound those beside them.
///
/// # Shapes
/// `costs` and `starts` have one element for each end. `before`, `not_before` and the sums `s` of weights, positions and
/// squares have one for each number of points; that of the weights rises.
#[inline(always)]
pub(super) fn fill(
    before: &[f64],
    s: [&[f64]; 3],
    not_before: &[u32],
    first: usize,
    costs: &mut [f64],
    starts: &mut [u32],
    range: [usize; 2],
) {
    let count = costs.len();
    let mut half = count.next_power_of_two();
    while half > 0 {
        // ends whose neighbours `half` before and after are known
        for at in (half - 1..count).step_by(2 * half) {
            let end = first + at;
            let left = if at >= half { starts[at - half] as usize } else { range[0] };
            let right = if at + half < count { starts[at + half] as usize } else { range[1] };
            let low = left.max(not_before[end] as usize);
            // roundings can make bounds cross that are the same
            let high = right.min(end - 1).max(low);
            (costs[at], starts[at]) = best_start(before, s, low..high + 1, end);
        }
        half /= 2;
    }
}

/// The least of `before[i] + cost(i..end)` and the first `i` of a range that has it.
#[inline(always)]
#[allow(clippy::needless_bitwise_bool)] // lazy ones are branches, which are mostly guessed wrong here
fn best_start(before: &[f64], s: [&[f64]; 3], range: Range<usize>, end: usize) -> (f64, u32) {
    let [weights, sums, squares] = s;
    let until = [weights[end], sums[end], squares[end]];
    let cost = |before: f64, weight: f64, sum: f64, squares: f64| {
        let (weight, sum, squares) = (until[0] - weight, until[1] - sum, until[2] - squares);
        before + (squares - sum * sum / weight)
    };
    // most ranges are short: without branches, and what lies behind the range does not count
    let mut least = [f64::INFINITY; LANES];
    let mut at = [0.0f64; LANES];
    let (mut first, last) = (range.start, range.end as f64);
    while first < range.end
        && let (Some(before), Some(weights), Some(sums), Some(squares)) = (
            before[first..].first_chunk::<LANES>(),
            weights[first..].first_chunk::<LANES>(),
            sums[first..].first_chunk::<LANES>(),
            squares[first..].first_chunk::<LANES>(),
        )
    {
        for lane in 0..LANES {
            let cost = cost(before[lane], weights[lane], sums[lane], squares[lane]);
            let i = (first + lane) as f64;
            let better = (cost < least[lane]) & (i < last);
            least[lane] = if better { cost } else { least[lane] };
            at[lane] = if better { i } else { at[lane] };
        }
        first += LANES;
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            let (other, other_at) = (least[lane + half], at[lane + half]);
            let better = (other < least[lane]) | ((other == least[lane]) & (other_at < at[lane]));
            least[lane] = if better { other } else { least[lane] };
            at[lane] = if better { other_at } else { at[lane] };
        }
        half /= 2;
    }
    // at the end of the table there is no room for all lanes
    let mut best = (least[0], at[0] as u32);
    for i in first..range.end {
        let cost = cost(before[i], weights[i], sums[i], squares[i]);
        if cost < best.0 {
            best = (cost, i as u32);
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
