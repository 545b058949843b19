/// Columns of a panel.
pub(super) const PANEL: usize = 16;

/// Rows whose sums are kept in registers.
const BLOCK: usize = 4;

/// Rows to multiply with packed columns.
pub(super) struct Tile<'a> {
    pub(super) x: &'a [f32],
    pub(super) size: usize,
    pub(super) panels: &'a [f32],
    pub(super) out: &'a mut [f32],
}

#[inline(always)]
pub(super) fn product(tile: Tile<'_>) {
    let Tile { x, size, panels, out } = tile;
    if size == 0 {
        return;
    }
    for (panel, columns) in panels.chunks_exact(size * PANEL).enumerate() {
        let first = panel * PANEL;
        let mut done = 0;
        for rows in x.chunks(BLOCK * size) {
            let out = &mut out[done..];
            if rows.len() == BLOCK * size {
                block::<BLOCK>(rows, size, columns, first, out);
            } else {
                for (i, row) in rows.chunks_exact(size).enumerate() {
                    block::<1>(row, size, columns, first, &mut out[i * size..]);
                }
            }
            done += rows.len();
        }
    }
}

#[inline(always)]
fn block<const N: usize>(x: &[f32], size: usize, columns: &[f32], first: usize, out: &mut [f32]) {
    let mut sums = [[0.0f32; PANEL]; N];
    let x: [&[f32]; N] = std::array::from_fn(|i| &x[i * size..(i + 1) * size]);
    for (k, column) in columns.as_chunks::<PANEL>().0.iter().enumerate() {
        for (sums, x) in sums.iter_mut().zip(&x) {
            let factor = x[k];
            for (sum, h) in sums.iter_mut().zip(column) {
                *sum += factor * h;
            }
        }
    }
    let width = PANEL.min(size - first);
    for (i, sums) in sums.iter().enumerate() {
        out[i * size + first..][..width].copy_from_slice(&sums[..width]);
    }
}
