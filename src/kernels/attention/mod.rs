//! Scaled dot-product attention (Vaswani et al., 2017): `softmax(q · kᵀ · scale) · v`, for every head.
//!
//! Keys and values lie where products want their weights: keys as panels of 32 positions, values as panels of 32
//! dimensions. Several heads of queries can share one of keys and values (grouped-query attention).

mod gradient;

use std::ops::Range;

use rayon::prelude::*;

use super::level::{Isa, multiversion};
use super::matmul::activations::{TILE, Tile, tiles};
use super::matmul::output::Output;
use super::matmul::panels::{Aligned, BLOCK, PANEL, Storage};
use super::matmul::schedule::parallel_min_work;
use super::matmul::tile::{Finish, FloatTile, Last, Zeros};
use super::normalize::softmax_in;

pub(crate) use gradient::{Attention, AttentionGradients};

/// Keys and values of the tokens so far.
#[derive(Debug, Clone)]
pub(crate) struct KeyValues {
    heads: usize,
    head_dim: usize,
    /// Positions there is room for; a multiple of [`PANEL`].
    capacity: usize,
    len: usize,
    /// Positions that have been written since the memory was new.
    written: usize,
    /// `[head][panel of positions][head_dim, whole blocks][32 positions]`
    keys: Aligned,
    /// `[head][panel of dimensions][capacity][32 dimensions]`
    values: Aligned,
}

/// Which positions a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visible {
    /// All.
    All,
    /// Those up to its own; the first query stands at position `first`.
    Causal { first: usize },
    /// Of those, the last `window`.
    Window { first: usize, window: usize },
}

impl Visible {
    fn of(self, query: usize, len: usize) -> Range<usize> {
        match self {
            Self::All => 0..len,
            Self::Causal { first } => 0..first + query + 1,
            Self::Window { first, window } => (first + query + 1).saturating_sub(window)..first + query + 1,
        }
    }
}

impl KeyValues {
    pub(crate) fn new(heads: usize, head_dim: usize) -> Self {
        let none = || Aligned::zeroed(0);
        Self { heads, head_dim, capacity: 0, len: 0, written: 0, keys: none(), values: none() }
    }

    /// Number of heads, and of a head's values.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.heads, self.head_dim]
    }

    /// Number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Forgets all tokens, but keeps the room.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Values of a key panel.
    fn key_panel(&self) -> usize {
        self.head_dim.next_multiple_of(BLOCK) * PANEL
    }

    /// Appends the keys and values of some tokens.
    ///
    /// # Shapes
    /// Both are `[tokens, heads · head_dim]`.
    pub(crate) fn append(&mut self, keys: &[f32], values: &[f32]) {
        let width = self.heads * self.head_dim;
        assert!(keys.len() == values.len() && keys.len().is_multiple_of(width.max(1)), "keys and values");
        let tokens = keys.len().checked_div(width).unwrap_or(0);
        self.reserve(self.len + tokens);
        let (key_panel, key_panels) = (self.key_panel(), self.capacity / PANEL);
        let value_panels = self.head_dim.div_ceil(PANEL);
        let to_keys = self.keys.words_mut::<f32>();
        let to_values = self.values.words_mut::<f32>();
        let of_tokens = keys.chunks_exact(width.max(1)).zip(values.chunks_exact(width.max(1)));
        for (position, (keys, values)) in (self.len..).zip(of_tokens) {
            for (head, key) in keys.chunks_exact(self.head_dim).enumerate() {
                let panel = head * key_panels + position / PANEL;
                let panel = &mut to_keys[panel * key_panel..(panel + 1) * key_panel];
                for (x, dimension) in key.iter().zip(panel.chunks_exact_mut(PANEL)) {
                    dimension[position % PANEL] = *x;
                }
            }
            for (head, value) in values.chunks_exact(self.head_dim).enumerate() {
                for (panel, value) in value.chunks(PANEL).enumerate() {
                    let at = ((head * value_panels + panel) * self.capacity + position) * PANEL;
                    to_values[at..at + value.len()].copy_from_slice(value);
                }
            }
        }
        self.len += tokens;
        // the rest of the last panel meets weights of zero, which what was NaN once would not become
        let stale = self.len..self.len.next_multiple_of(PANEL).min(self.written);
        if !stale.is_empty() {
            for panel in to_values.chunks_exact_mut(self.capacity * PANEL) {
                panel[stale.start * PANEL..stale.end * PANEL].fill(0.0);
            }
        }
        self.written = self.written.max(self.len);
    }

    /// Makes room for `len` positions.
    pub(crate) fn reserve(&mut self, len: usize) {
        if len <= self.capacity {
            return;
        }
        let capacity = len.max(self.capacity * 2).next_multiple_of(PANEL);
        let key_panel = self.key_panel();
        let moved = |from: &Aligned, parts: usize, before: usize, after: usize| {
            let mut to = Aligned::zeroed(parts * after * 4);
            if before > 0 {
                let from = from.words::<f32>().chunks_exact(before);
                for (from, to) in from.zip(to.words_mut::<f32>().chunks_exact_mut(after)) {
                    to[..before].copy_from_slice(from);
                }
            }
            to
        };
        let [before, after] = [self.capacity, capacity];
        self.keys = moved(&self.keys, self.heads, before / PANEL * key_panel, after / PANEL * key_panel);
        let panels = self.heads * self.head_dim.div_ceil(PANEL);
        self.values = moved(&self.values, panels, before * PANEL, after * PANEL);
        self.capacity = capacity;
    }

    /// What a tile's queries take from the values they see.
    ///
    /// Rows of a tile are pairs of a query and a head of its group: `row = query · group + head`.
    fn tile(&self, isa: Isa, task: &Task<'_>, head: usize, tile: Tile, scratch: &mut Scratch) {
        let (rows, group, dim) = (tile.rows, task.group, self.head_dim);
        let query = |row: usize| (tile.row + row) / group;
        let head_of = |row: usize| head * group + (tile.row + row) % group;
        let blocked = dim.next_multiple_of(AT_ONCE);
        scratch.scaled.clear();
        scratch.scaled.resize(blocked * rows, 0.0);
        for (row, scaled) in scratch.scaled.chunks_exact_mut(blocked).enumerate() {
            let q = &task.q[query(row) * task.width + head_of(row) * dim..][..dim];
            scaled.iter_mut().zip(q).for_each(|(to, x)| *to = x * task.scale);
        }
        scratch.queries.resize(blocked * rows, 0.0);
        transpose(isa, &scratch.scaled, blocked, &mut scratch.queries);

        // the positions that any query of the tile sees, in whole panels
        let sees = |row: usize| task.visible.of(query(row), self.len);
        let from = sees(0).start / PANEL * PANEL;
        let until = sees(rows - 1).end.next_multiple_of(PANEL);
        let stride = until - from;
        scratch.scores.resize(rows * stride, 0.0);
        let key_panel = self.key_panel();
        let keys = self.keys.bytes();
        let mut sums = [0.0; TILE_SUMS];
        let scores = Output::new(&mut scratch.scores[..rows * stride], rows, stride);
        for (number, panel) in (from / PANEL..until / PANEL).enumerate() {
            let at = (head * (self.capacity / PANEL) + panel) * key_panel * 4;
            // SAFETY: every panel has columns of its own, and nothing else looks at the scores meanwhile.
            let y = unsafe { scores.columns(0..rows, number * PANEL..(number + 1) * PANEL) };
            FloatTile {
                storage: Storage::F32,
                codes: &keys[at..at + key_panel * 4],
                ahead: 0,
                groups: 1,
                activations: &scratch.queries,
                rows,
                zeros: Zeros::All(0),
                finish: Finish {
                    scales: &[],
                    add: false,
                    total: &mut sums,
                    last: Some(Last { row_scales: &[], bias: &[], relu: false, y }),
                },
            }
            .run(isa);
        }

        for (row, scores) in scratch.scores.chunks_exact_mut(stride).enumerate().take(rows) {
            let sees = sees(row);
            let sees = sees.start - from..sees.end - from;
            softmax_in(isa, &mut scores[sees.clone()]);
            scores[..sees.start].fill(0.0);
            scores[sees.end..].fill(0.0);
        }
        scratch.weights.resize(rows * stride, 0.0);
        transpose(isa, &scratch.scores[..rows * stride], stride, &mut scratch.weights[..rows * stride]);

        let value_panels = dim.div_ceil(PANEL);
        let values = self.values.bytes();
        for panel in 0..value_panels {
            let at = ((head * value_panels + panel) * self.capacity + from) * PANEL * 4;
            FloatTile {
                storage: Storage::F32,
                codes: &values[at..at + stride * PANEL * 4],
                ahead: 0,
                groups: 1,
                activations: &scratch.weights[..rows * stride],
                rows,
                zeros: Zeros::All(0),
                finish: Finish { scales: &[], add: false, total: &mut sums, last: None },
            }
            .run(isa);
            let width = PANEL.min(dim - panel * PANEL);
            for (row, sums) in sums.chunks_exact(PANEL).enumerate().take(rows) {
                let column = head_of(row) * dim + panel * PANEL;
                let query = query(row);
                // SAFETY: every pair of a query and a head belongs to one tile of one task.
                let mut out = unsafe { task.out.columns(query..query + 1, column..column + width) };
                out.row_mut(0).copy_from_slice(&sums[..width]);
            }
        }
    }
}

multiversion! {
    /// From `[row][position]` to `[position][row]`.
    fn transpose(rows: &[f32], stride: usize, columns: &mut [f32]) = transpose_body
}

#[inline(always)]
fn transpose_body(rows: &[f32], stride: usize, columns: &mut [f32]) {
    match rows.len() / stride {
        // a number that the compiler knows
        TILE => transpose_rows::<TILE>(rows, stride, columns),
        1 => columns.copy_from_slice(rows),
        count => {
            for (position, column) in columns.chunks_exact_mut(count).enumerate() {
                for (to, x) in column.iter_mut().zip(rows[position..].iter().step_by(stride)) {
                    *to = *x;
                }
            }
        }
    }
}

/// Positions that are transposed together; the stride is a multiple of it.
const AT_ONCE: usize = 16;
const _: () = assert!(AT_ONCE.is_multiple_of(BLOCK) && PANEL.is_multiple_of(AT_ONCE));

#[inline(always)]
fn transpose_rows<const ROWS: usize>(rows: &[f32], stride: usize, columns: &mut [f32]) {
    for first in (0..stride).step_by(AT_ONCE) {
        let mut block = [[0.0f32; AT_ONCE]; ROWS];
        for (row, block) in block.iter_mut().enumerate() {
            block.copy_from_slice(&rows[row * stride + first..][..AT_ONCE]);
        }
        for (position, column) in columns[first * ROWS..].chunks_exact_mut(ROWS).take(AT_ONCE).enumerate() {
            for (to, block) in column.iter_mut().zip(&block) {
                *to = block[position];
            }
        }
    }
}

/// Sums of the largest tile.
const TILE_SUMS: usize = TILE * PANEL;

struct Task<'a> {
    q: &'a [f32],
    /// Values of all heads of a query.
    width: usize,
    /// Heads of queries that share one of keys and values.
    group: usize,
    scale: f32,
    visible: Visible,
    out: Output<'a>,
}

#[derive(Default)]
struct Scratch {
    /// `[row][dimension]`
    scaled: Vec<f32>,
    /// `[dimension][row]`
    queries: Vec<f32>,
    /// `[row][position]`
    scores: Vec<f32>,
    /// `[position][row]`
    weights: Vec<f32>,
}

/// Attention of some queries to the keys and values.
///
/// # Shapes
/// `q` and `out` are `[queries, heads · group · head_dim]`, where `group` heads of queries share one of keys and values.
///
/// # Panics
/// When they are not, or a query would see what is not there.
pub(crate) fn attend(q: &[f32], kv: &KeyValues, group: usize, scale: f32, visible: Visible, out: &mut [f32]) {
    let isa = Isa::current();
    let width = kv.heads * group * kv.head_dim;
    assert!(q.len() == out.len() && q.len().is_multiple_of(width.max(1)), "queries and outputs");
    let queries = q.len().checked_div(width).unwrap_or(0);
    if queries == 0 || kv.len == 0 {
        out.fill(0.0);
        return;
    }
    assert!(visible.of(queries - 1, kv.len).end <= kv.len, "positions that queries see");
    let task = Task { q, width, group, scale, visible, out: Output::new(out, queries, width) };
    let tiles: Vec<Tile> = tiles(queries * group).collect();
    let work = |scratch: &mut Scratch, i: usize| {
        kv.tile(isa, &task, i / tiles.len(), tiles[i % tiles.len()], scratch);
    };
    let count = kv.heads * tiles.len();
    if queries * width * kv.len < parallel_min_work() || rayon::current_num_threads() == 1 {
        let mut scratch = Scratch::default();
        (0..count).for_each(|i| work(&mut scratch, i));
    } else {
        (0..count).into_par_iter().for_each_init(Scratch::default, work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, in `f64`.
    pub(super) fn naive(
        q: &[f32],
        k: &[f32],
        v: &[f32],
        [heads, group, dim]: [usize; 3],
        scale: f32,
        visible: Visible,
    ) -> Vec<f64> {
        let (width, len) = (heads * group * dim, k.len() / (heads * dim));
        let mut out = vec![0.0; q.len()];
        for query in 0..q.len() / width {
            for head in 0..heads * group {
                let key = |p: usize, d: usize| (p * heads + head / group) * dim + d;
                let at = |d: usize| query * width + head * dim + d;
                let score = |p: usize| -> f64 {
                    (0..dim).map(|d| f64::from(q[at(d)]) * f64::from(k[key(p, d)])).sum::<f64>()
                        * f64::from(scale)
                };
                let sees = visible.of(query, len);
                let weights: Vec<f64> = sees.clone().map(|p| score(p).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for d in 0..dim {
                    let value = |(p, w): (usize, &f64)| w / sum * f64::from(v[key(p, d)]);
                    out[at(d)] = sees.clone().zip(&weights).map(value).sum();
                }
            }
        }
        out
    }

    pub(super) fn random(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(next).collect()
    }

    #[test]
    fn equals_the_definition_for_every_shape_and_level() {
        for (len, [heads, group, dim]) in [
            (1, [1, 1, 1]),
            (5, [2, 1, 8]),
            (33, [3, 3, 20]),
            (70, [1, 2, 64]),
            (40, [2, 16, 33]),
            (130, [2, 1, 32]),
        ] {
            let k = random(len * heads * dim, 1);
            let v = random(len * heads * dim, 2);
            let q = random(len * heads * group * dim, 3);
            for visible in
                [Visible::All, Visible::Causal { first: 0 }, Visible::Window { first: 0, window: 7 }]
            {
                let expected = naive(&q, &k, &v, [heads, group, dim], 0.9, visible);
                for isa in Isa::all() {
                    let mut kv = KeyValues::new(heads, dim);
                    kv.append(&k, &v);
                    let mut out = vec![f32::NAN; q.len()];
                    let width = heads * group * dim;
                    let output = Output::new(&mut out, len, width);
                    let task = Task { q: &q, width, group, scale: 0.9, visible, out: output };
                    for head in 0..heads {
                        for tile in tiles(len * group) {
                            kv.tile(isa, &task, head, tile, &mut Scratch::default());
                        }
                    }
                    for (a, e) in out.iter().zip(&expected) {
                        assert!((f64::from(*a) - e).abs() < 1e-5, "{len} {heads} {group} {dim} {visible:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn tokens_one_by_one_see_what_all_at_once_see() {
        let [heads, group, dim, len] = [2, 3, 16, 75];
        let (k, v) = (random(len * heads * dim, 1), random(len * heads * dim, 2));
        let q = random(len * heads * group * dim, 3);
        let mut all = KeyValues::new(heads, dim);
        all.append(&k, &v);
        let mut expected = vec![0.0; q.len()];
        attend(&q, &all, group, 0.25, Visible::Causal { first: 0 }, &mut expected);

        let mut kv = KeyValues::new(heads, dim);
        let mut out = vec![0.0; heads * group * dim];
        for round in 0..2 {
            kv.clear();
            for (first, q) in q.chunks_exact(out.len()).enumerate() {
                let span = first * heads * dim..(first + 1) * heads * dim;
                kv.append(&k[span.clone()], &v[span]);
                attend(q, &kv, group, 0.25, Visible::Causal { first }, &mut out);
                let expected = &expected[first * out.len()..][..out.len()];
                let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
                assert!(out.iter().zip(expected).all(close), "round {round}, token {first}");
            }
            assert_eq!(kv.len(), len);
        }
    }
}
