//! Which tile of activations meets which panel of weights, and in which order.
//!
//! Every output is summed by one task, in the order of its columns, so that results depend neither on the number of
//! threads nor on their timing. With more than one tile of activations the work is blocked for the caches: a piece of
//! columns of one panel stays in the first level while all tiles pass by, and the same columns of all tiles stay in
//! the second level while a run of panels passes by.

use std::ops::Range;

use rayon::prelude::*;

use super::activations::{Tile, tiles};
use super::output::{Output, Rows};
use super::panels::{Columns, PANEL};
use crate::kernels::spare::Spare;

/// Panels in a run, when there are many tiles.
const RUN: usize = 8;

/// Tiles that pass by together: half a mebibyte of a piece's activations.
const TILES: usize = 44;

/// Multiply-adds below which products stay on the calling thread: fewer if other threads are at hand than if they must
/// be woken.
pub(in crate::kernels) fn parallel_min_work() -> usize {
    if rayon::current_thread_index().is_some() { 1 << 17 } else { 1 << 20 }
}

/// Neighbouring groups of the same number of blocks, or a part of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) group: usize,
    pub(super) groups: usize,
    pub(super) block: usize,
    /// Of all groups together.
    pub(super) blocks: usize,
    pub(super) begins_group: bool,
    pub(super) ends_group: bool,
}

/// The order of a product's work.
pub(super) struct Schedule {
    outputs: usize,
    columns: Columns,
    batch: usize,
    tiles: Vec<Tile>,
    /// Whether columns come in pieces that all tiles meet before the next piece.
    pub(super) blocked: bool,
    segments: Vec<Segment>,
    /// Ranges of segments.
    pieces: Vec<Range<usize>>,
}

/// What a task sums before it can write.
pub(super) struct Scratch {
    /// Sums of an incomplete group, `[panel of the run][row][32 outputs]`.
    pub(super) partial: Spare,
    /// Sums of complete groups, `[panel of the run][row][32 outputs]`.
    pub(super) total: Spare,
    /// A piece of codes in a wider form.
    pub(super) wide: Spare,
}

/// One piece of one panel, and the tiles that it meets.
pub(super) struct At<'a> {
    pub(super) panel: usize,
    /// Blocks of the piece.
    pub(super) blocks: Range<usize>,
    pub(super) segments: &'a [Segment],
    pub(super) tiles: &'a [Tile],
    /// Place of the panel's sums in the scratch space.
    sums: usize,
    outputs: usize,
    output: &'a Output<'a>,
}

impl At<'_> {
    pub(super) fn sums_of(&self, tile: Tile) -> Range<usize> {
        let start = self.sums + (tile.row - self.tiles[0].row) * PANEL;
        start..start + tile.rows * PANEL
    }

    pub(super) fn output(&self, tile: Tile) -> Rows<'_> {
        let first = self.panel * PANEL;
        let columns = first..(first + PANEL).min(self.outputs);
        // SAFETY: `run` gives a panel's rows to one task only, which runs one tile after the other.
        unsafe { self.output.columns(tile.row..tile.row + tile.rows, columns) }
    }
}

/// A product with its schedule.
pub(super) struct Job<'a, W> {
    pub(super) schedule: Schedule,
    /// `[batch, outputs]`
    pub(super) y: &'a mut [f32],
    /// What is done with every piece of every panel.
    pub(super) work: W,
}

/// A job, cut into tasks.
struct Cut<'a, W> {
    schedule: &'a Schedule,
    output: Output<'a>,
    work: &'a W,
    chunks: Vec<&'a [Tile]>,
    /// Most rows of a chunk.
    rows: usize,
    panels: usize,
    /// Panels in a run.
    run: usize,
    tasks: usize,
}

impl<'a, W: Fn(&mut Scratch, &At<'_>) + Sync> Cut<'a, W> {
    fn new(job: &'a mut Job<'_, W>, threads: usize) -> Self {
        let schedule = &job.schedule;
        let panels = schedule.outputs.div_ceil(PANEL);
        // neighbouring panels follow each other in memory: long runs, but enough of them to even out the threads
        let even = panels.div_ceil(threads * 4).max(1);
        let run = if schedule.blocked { even.min(RUN) } else { even };
        let chunks: Vec<&[Tile]> = schedule.tiles.chunks(TILES).collect();
        let rows = chunks.iter().map(|c| c.iter().map(|tile| tile.rows).sum::<usize>()).max().unwrap_or(0);
        let tasks = panels.div_ceil(run) * chunks.len();
        let output = Output::new(job.y, schedule.batch, schedule.outputs);
        Self { schedule, output, work: &job.work, chunks, rows, panels, run, tasks }
    }

    /// Number of sums in the scratch space.
    fn sums(&self) -> usize {
        let panels = if self.schedule.blocked { self.run } else { 1 };
        panels * self.rows * PANEL
    }

    fn task(&self, scratch: &mut Scratch, task: usize) {
        let runs = self.panels.div_ceil(self.run);
        let (tiles, first) = (self.chunks[task / runs], task % runs * self.run);
        for piece in &self.schedule.pieces {
            let segments = &self.schedule.segments[piece.clone()];
            let (Some(begin), Some(end)) = (segments.first(), segments.last()) else { continue };
            for panel in first..(first + self.run).min(self.panels) {
                let place = if self.schedule.blocked { panel - first } else { 0 };
                let at = At {
                    panel,
                    blocks: begin.block..end.block + end.blocks,
                    segments,
                    tiles,
                    sums: place * self.rows * PANEL,
                    outputs: self.schedule.outputs,
                    output: &self.output,
                };
                (self.work)(scratch, &at);
            }
        }
    }
}

impl Schedule {
    /// With `blocked`, pieces have at most `depth` blocks of columns.
    pub(super) fn new(outputs: usize, columns: Columns, batch: usize, blocked: bool, depth: usize) -> Self {
        let (segments, pieces) = segments(columns, if blocked { depth } else { usize::MAX });
        Self { outputs, columns, batch, tiles: tiles(batch).collect(), blocked, segments, pieces }
    }

    fn work(&self) -> usize {
        self.batch.saturating_mul(self.outputs).saturating_mul(self.columns.cols())
    }
}

/// Does all jobs, side by side.
pub(super) fn run<W: Fn(&mut Scratch, &At<'_>) + Sync>(jobs: &mut [Job<'_, W>]) {
    let work = jobs.iter().fold(0usize, |all, job| all.saturating_add(job.schedule.work()));
    let threads = if work < parallel_min_work() { 1 } else { rayon::current_num_threads() };
    let cuts: Vec<Cut<'_, W>> = jobs.iter_mut().map(|job| Cut::new(job, threads)).collect();
    let sums = cuts.iter().map(Cut::sums).max().unwrap_or(0);
    let scratch = || Scratch {
        partial: Spare::of::<i32>(sums),
        total: Spare::of::<f32>(sums),
        wide: Spare::of::<i32>(0),
    };
    let task = |scratch: &mut Scratch, mut task: usize| {
        for cut in &cuts {
            if task < cut.tasks {
                return cut.task(scratch, task);
            }
            task -= cut.tasks;
        }
    };
    let tasks = cuts.iter().map(|cut| cut.tasks).sum();
    if threads == 1 {
        let mut scratch = scratch();
        (0..tasks).for_each(|i| task(&mut scratch, i));
    } else {
        (0..tasks).into_par_iter().for_each_init(scratch, task);
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
