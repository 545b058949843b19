use std::ops::Range;

use crate::kernels::update::PANEL;

/// Columns whose lanes stay in the first-level cache while the rows are gone through.
const AT_ONCE: usize = 16;

#[inline(always)]
pub(super) fn to_lanes(rows: &[f32], stride: usize, columns: Range<usize>, lanes: &mut [f32]) {
    let mut first = columns.start;
    for lanes in lanes.chunks_mut(AT_ONCE * PANEL) {
        for (lane, row) in rows.chunks_exact(stride).enumerate() {
            let values = &row[first..columns.end];
            lanes.as_chunks_mut::<PANEL>().0.iter_mut().zip(values).for_each(|(to, x)| to[lane] = *x);
        }
        first += AT_ONCE;
    }
}

#[inline(always)]
pub(super) fn from_lanes(lanes: &[f32], rows: &mut [f32], stride: usize, first: usize) {
    let mut first = first;
    for lanes in lanes.chunks(AT_ONCE * PANEL) {
        for (lane, row) in rows.chunks_exact_mut(stride).enumerate() {
            row[first..].iter_mut().zip(lanes.as_chunks::<PANEL>().0).for_each(|(to, x)| *to = x[lane]);
        }
        first += AT_ONCE;
    }
}
