//! Whole products over prepacked weights: which tile meets which panel, and in which order.
//!
//! Every output is summed by one task, in the order of its columns, so that results depend neither on the number of
//! threads nor on their timing. With more than one tile of activations the work is blocked for the caches: a piece of
//! columns of one panel stays in the first level while all tiles pass by, and the same columns of all tiles stay in
//! the second level while a run of panels passes by.

use std::ops::Range;

use rayon::prelude::*;

use super::activations::{ActivationCodes, FloatTiles, IntTiles, Tile, tiles};
use super::decode::{decode, widen_nibbles};
use super::output::{Output, Rows};
use super::panels::{Aligned, BLOCK, Columns, PANEL, Panels, Storage, ZeroPoints};
use super::tile::{Finish, FloatTile, IntTile, Last, Start, Zeros};
use crate::kernels::level::Isa;

/// Blocks of integer codes in a piece: 32 KiB.
const INT_DEPTH: usize = 128;

/// Blocks of floats in a piece: 24 KiB.
pub(super) const FLOAT_DEPTH: usize = 24;

/// Panels in a run, when there are many tiles.
const RUN: usize = 8;

/// Tiles that pass by together: half a mebibyte of a piece's activations.
const TILES: usize = 44;

/// Bytes by which weights that stream by are fetched ahead of their use.
const AHEAD: usize = 2048;

/// Multiply-adds below which a product stays on the calling thread.
pub(super) const PARALLEL_MIN_WORK: usize = 1 << 20;

/// What is done to the sums: `y = max(sum + bias, 0)`, each part optional.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// One value per output.
    pub bias: Option<&'a [f32]>,
    /// Negative results become 0; NaN stays.
    pub relu: bool,
}

impl Epilogue<'_> {
    /// What becomes of the sum of an output.
    #[inline(always)]
    pub(super) fn apply(&self, sum: f32, output: usize) -> f32 {
        let value = self.bias.map_or(sum, |bias| sum + bias[output]);
        // a comparison, because `max` would turn NaN into 0
        if self.relu && value < 0.0 { 0.0 } else { value }
    }
}

/// Neighbouring groups of the same number of blocks, or a part of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    group: usize,
    groups: usize,
    block: usize,
    /// Of all groups together.
    blocks: usize,
    begins_group: bool,
    ends_group: bool,
}

/// `y = x · Wᵀ` with `x` quantized on the way. Integer sums are exact, and the floating-point operations that follow are the
/// same at every level, so that every level gives the same bits.
///
/// # Shapes
/// `x` is `[batch, cols]`, `y` is `[batch, rows]`.
pub(crate) fn int_product(
    isa: Isa,
    panels: &Panels,
    x: &[f32],
    batch: usize,
    how: ActivationCodes,
    epilogue: Epilogue<'_>,
    y: &mut [f32],
) {
    let columns = panels.columns;
    if batch == 0 || columns.cols() == 0 {
        return without_columns(panels.rows, epilogue, y);
    }
    let shared = match panels.zero_points {
        ZeroPoints::All(zero) if !how.has_zero_points() => Some(i32::from(zero)),
        _ => None,
    };
    let x = IntTiles::new(isa, x, batch, columns, shared.unwrap_or(1), how);
    let code_sums: &[i32] = if how.has_zero_points() { &panels.code_sums } else { &[] };
    let schedule = Schedule::new(panels.rows, columns, batch, tiles(batch).len() > 1, INT_DEPTH);
    schedule.run(y, |scratch, at| {
        let codes = panels.panel(at.panel);
        let scales = panels.of_panel(at.panel, &panels.scales);
        let code_sums = panels.of_panel(at.panel, code_sums);
        let bias = PanelBias::new(epilogue.bias, at.panel);
        let bytes = panels.storage.block_bytes();
        let (mut storage, mut piece) =
            (panels.storage, &codes[at.blocks.start * bytes..at.blocks.end * bytes]);
        let mut ahead = at.ahead(panels);
        if schedule.blocked && storage == Storage::Nibble {
            scratch.wide.reserve(piece.len() * 2);
            widen_nibbles(isa, piece, scratch.wide.bytes_mut());
            (storage, piece, ahead) = (Storage::Byte, &scratch.wide.bytes()[..piece.len() * 2], 0);
        }
        let bytes = storage.block_bytes();
        for (number, tile) in at.tiles.iter().copied().enumerate() {
            let sums = at.sums_of(tile);
            for segment in at.segments {
                let starts = x.starts(tile, segment.group);
                let start = match shared {
                    _ if !segment.begins_group => Start::Continue,
                    Some(_) => Start::Shared(starts),
                    None => Start::Each {
                        zeros: panels.zeros(at.panel, segment.group),
                        starts,
                        code_sums: code_sums.get(segment.group * PANEL..).unwrap_or_default(),
                        activation_zeros: x.zero_points.get(tile.row..).unwrap_or_default(),
                    },
                };
                let finish = segment.ends_group.then(|| Finish {
                    scales: &scales[segment.group * PANEL..],
                    add: segment.group > 0,
                    total: &mut scratch.total[sums.clone()],
                    last: (segment.group + segment.groups == columns.groups()).then(|| Last {
                        row_scales: &x.scales[tile.row..tile.row + tile.rows],
                        bias: bias.get(),
                        relu: epilogue.relu,
                        y: at.output(tile),
                    }),
                });
                let from = (segment.block - at.blocks.start) * bytes;
                IntTile {
                    storage,
                    codes: &piece[from..from + segment.blocks * bytes],
                    ahead: if number == 0 { ahead } else { 0 },
                    groups: segment.groups,
                    activations: x.codes(tile, segment.block, segment.blocks),
                    rows: tile.rows,
                    start,
                    partial: &mut scratch.partial[sums.clone()],
                    finish,
                }
                .run(isa);
            }
        }
    });
}

/// `y = x · Wᵀ` with `x` as it is. Of one tile, codes become floats in registers; of many, a piece at a time.
///
/// # Shapes
/// `x` is `[batch, cols]`, `y` is `[batch, rows]`.
pub(crate) fn float_product(
    isa: Isa,
    panels: &Panels,
    x: &[f32],
    batch: usize,
    epilogue: Epilogue<'_>,
    y: &mut [f32],
) {
    let columns = panels.columns;
    if batch == 0 || columns.cols() == 0 {
        return without_columns(panels.rows, epilogue, y);
    }
    let x = FloatTiles::new(x, batch, columns);
    let bytes = panels.storage.block_bytes();
    let schedule = Schedule::new(panels.rows, columns, batch, tiles(batch).len() > 1, FLOAT_DEPTH);
    schedule.run(y, |scratch, at| {
        let codes = panels.panel(at.panel);
        let scales = panels.of_panel(at.panel, &panels.scales);
        let bias = PanelBias::new(epilogue.bias, at.panel);
        let last = |tile| Last { row_scales: &[], bias: bias.get(), relu: epilogue.relu, y: at.output(tile) };
        if !schedule.blocked {
            let tile = at.tiles[0];
            for segment in at.segments {
                FloatTile {
                    storage: panels.storage,
                    codes: &codes[segment.block * bytes..][..segment.blocks * bytes],
                    ahead: at.ahead(panels),
                    groups: segment.groups,
                    activations: x.values(tile, segment.block, segment.blocks),
                    rows: tile.rows,
                    zeros: panels.zeros(at.panel, segment.group),
                    finish: Finish {
                        scales: scales.get(segment.group * PANEL..).unwrap_or_default(),
                        add: segment.group > 0,
                        total: &mut scratch.total,
                        last: (segment.group + segment.groups == columns.groups()).then(|| last(tile)),
                    },
                }
                .run(isa);
            }
            return;
        }
        let value_bytes = at.blocks.len() * Storage::F32.block_bytes();
        let (values, ahead) = if panels.storage == Storage::F32 {
            (&codes[at.blocks.start * bytes..at.blocks.end * bytes], at.ahead(panels))
        } else {
            scratch.wide.reserve(value_bytes);
            let mut values = scratch.wide.words_mut::<f32>();
            for segment in at.segments {
                let blocks = segment.blocks / segment.groups;
                for group in 0..segment.groups {
                    let out;
                    (out, values) = values.split_at_mut(blocks * BLOCK * PANEL);
                    let first = segment.block + group * blocks;
                    let group = segment.group + group;
                    let scales = scales.get(group * PANEL..).unwrap_or_default();
                    let zeros = panels.zeros(at.panel, group);
                    decode(
                        isa,
                        panels.storage,
                        &codes[first * bytes..][..blocks * bytes],
                        zeros,
                        scales,
                        out,
                    );
                }
            }
            (&scratch.wide.bytes()[..value_bytes], 0)
        };
        for (number, tile) in at.tiles.iter().copied().enumerate() {
            FloatTile {
                storage: Storage::F32,
                codes: values,
                ahead: if number == 0 { ahead } else { 0 },
                groups: 1,
                activations: x.values(tile, at.blocks.start, at.blocks.len()),
                rows: tile.rows,
                zeros: Zeros::All(0),
                finish: Finish {
                    scales: &[],
                    add: at.blocks.start > 0,
                    total: &mut scratch.total[at.sums_of(tile)],
                    last: (at.blocks.end == columns.blocks()).then(|| last(tile)),
                },
            }
            .run(isa);
        }
    });
}

/// The order of a product's work.
pub(super) struct Schedule {
    outputs: usize,
    columns: Columns,
    batch: usize,
    tiles: Vec<Tile>,
    /// Whether columns come in pieces that all tiles meet before the next piece.
    blocked: bool,
    segments: Vec<Segment>,
    /// Ranges of segments.
    pieces: Vec<Range<usize>>,
}

/// What a task sums before it can write.
pub(super) struct Scratch {
    /// Sums of an incomplete group, `[panel of the run][row][32 outputs]`.
    partial: Vec<i32>,
    /// Sums of complete groups, `[panel of the run][row][32 outputs]`.
    pub(super) total: Vec<f32>,
    /// A piece of codes in a wider form.
    pub(super) wide: Aligned,
}

/// One piece of one panel, and the tiles that it meets.
pub(super) struct At<'a> {
    pub(super) panel: usize,
    /// Blocks of the piece.
    pub(super) blocks: Range<usize>,
    segments: &'a [Segment],
    pub(super) tiles: &'a [Tile],
    /// Place of the panel's sums in the scratch space.
    sums: usize,
    schedule: &'a Schedule,
    output: &'a Output<'a>,
}

impl At<'_> {
    pub(super) fn sums_of(&self, tile: Tile) -> Range<usize> {
        let start = self.sums + (tile.row - self.tiles[0].row) * PANEL;
        start..start + tile.rows * PANEL
    }

    pub(super) fn output(&self, tile: Tile) -> Rows<'_> {
        let first = self.panel * PANEL;
        let columns = first..(first + PANEL).min(self.schedule.outputs);
        // SAFETY: `Schedule::run` gives a panel's rows to one task only, which runs one tile after the other.
        unsafe { self.output.columns(tile.row..tile.row + tile.rows, columns) }
    }

    /// Bytes from a code to the one that is fetched meanwhile: with one tile, the weights stream by; with many, the next
    /// panel's piece is fetched while the first tile passes.
    fn ahead(&self, panels: &Panels) -> usize {
        if self.schedule.blocked { panels.panel_bytes() } else { AHEAD }
    }
}

impl Schedule {
    /// With `blocked`, pieces have at most `depth` blocks of columns.
    pub(super) fn new(outputs: usize, columns: Columns, batch: usize, blocked: bool, depth: usize) -> Self {
        let (segments, pieces) = segments(columns, if blocked { depth } else { usize::MAX });
        Self { outputs, columns, batch, tiles: tiles(batch).collect(), blocked, segments, pieces }
    }

    pub(super) fn run(&self, y: &mut [f32], work: impl Fn(&mut Scratch, &At<'_>) + Sync) {
        let panels = self.outputs.div_ceil(PANEL);
        let macs = self.batch.saturating_mul(self.outputs).saturating_mul(self.columns.cols());
        let threads = if macs < PARALLEL_MIN_WORK { 1 } else { rayon::current_num_threads() };
        // neighbouring panels follow each other in memory: long runs, but enough of them to even out the threads
        let even = panels.div_ceil(threads * 4).max(1);
        let run = if self.blocked { even.min(RUN) } else { even };
        let runs = panels.div_ceil(run);
        let chunks: Vec<&[Tile]> = self.tiles.chunks(TILES).collect();
        let rows = chunks.iter().map(|c| c.iter().map(|tile| tile.rows).sum::<usize>()).max().unwrap_or(0);
        let output = Output::new(y, self.batch, self.outputs);
        let scratch = || {
            let sums = if self.blocked { run * rows * PANEL } else { rows * PANEL };
            Scratch { partial: vec![0; sums], total: vec![0.0; sums], wide: Aligned::zeroed(0) }
        };
        let task = |scratch: &mut Scratch, task: usize| {
            let (tiles, first) = (chunks[task / runs], task % runs * run);
            for piece in &self.pieces {
                let segments = &self.segments[piece.clone()];
                let (Some(begin), Some(end)) = (segments.first(), segments.last()) else { continue };
                for panel in first..(first + run).min(panels) {
                    let at = At {
                        panel,
                        blocks: begin.block..end.block + end.blocks,
                        segments,
                        tiles,
                        sums: if self.blocked { (panel - first) * rows * PANEL } else { 0 },
                        schedule: self,
                        output: &output,
                    };
                    work(scratch, &at);
                }
            }
        };
        let tasks = runs * chunks.len();
        if threads == 1 {
            let mut scratch = scratch();
            (0..tasks).for_each(|i| task(&mut scratch, i));
        } else {
            (0..tasks).into_par_iter().for_each_init(scratch, task);
        }
    }
}

impl Panels {
    fn zeros(&self, panel: usize, group: usize) -> Zeros<'_> {
        match &self.zero_points {
            ZeroPoints::All(zero) => Zeros::All(i32::from(*zero)),
            ZeroPoints::Each(all) => Zeros::Each(&self.of_panel(panel, all)[group * PANEL..]),
        }
    }
}

/// A bias of 32 values, whatever the number of outputs.
pub(super) struct PanelBias<'a> {
    of_panel: &'a [f32],
    padded: [f32; PANEL],
}

impl<'a> PanelBias<'a> {
    pub(super) fn new(bias: Option<&'a [f32]>, panel: usize) -> Self {
        let of_panel = bias.map_or(&[][..], |b| &b[panel * PANEL..]);
        let mut padded = [0.0; PANEL];
        if of_panel.len() < PANEL {
            padded[..of_panel.len()].copy_from_slice(of_panel);
        }
        Self { of_panel, padded }
    }

    pub(super) fn get(&self) -> &[f32] {
        match self.of_panel.len() {
            0 => &[],
            1..PANEL => &self.padded,
            _ => &self.of_panel[..PANEL],
        }
    }
}

/// Cuts the groups into segments, and gathers segments into pieces of at most `depth` blocks.
fn segments(columns: Columns, depth: usize) -> (Vec<Segment>, Vec<Range<usize>>) {
    let (mut segments, mut pieces) = (Vec::<Segment>::new(), Vec::new());
    let (mut begin, mut filled) = (0, 0);
    for (index, group) in columns.iter().enumerate() {
        let mut done = 0;
        while done < group.blocks {
            if filled == depth {
                pieces.push(begin..segments.len());
                (begin, filled) = (segments.len(), 0);
            }
            let blocks = (group.blocks - done).min(depth - filled);
            let whole = blocks == group.blocks;
            match segments[begin..].last_mut() {
                Some(last)
                    if whole
                        && last.begins_group
                        && last.ends_group
                        && last.blocks == last.groups * blocks =>
                {
                    last.groups += 1;
                    last.blocks += blocks;
                }
                _ => segments.push(Segment {
                    group: index,
                    groups: 1,
                    block: group.block + done,
                    blocks,
                    begins_group: done == 0,
                    ends_group: done + blocks == group.blocks,
                }),
            }
            done += blocks;
            filled += blocks;
        }
    }
    pieces.push(begin..segments.len());
    (segments, pieces)
}

/// The product with a weight of no columns, or for no rows.
pub(super) fn without_columns(rows: usize, epilogue: Epilogue<'_>, y: &mut [f32]) {
    if rows == 0 {
        return;
    }
    for y in y.chunks_exact_mut(rows) {
        y.iter_mut().enumerate().for_each(|(output, y)| *y = epilogue.apply(0.0, output));
    }
}
