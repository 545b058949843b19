//! Tensors in blocks of rows: each thread reads a block, compresses it, writes what it became to its place in the file,
//! and takes the next. Whatever the size of the tensors, no more than a block per thread is held.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use rayon::prelude::*;

use super::PipelineError;
use super::plan::{Job, MaskPlan, Plan, PlannedAction, PlannedTensor};
use super::prepared::Prepared;
use super::run::{Made, Seen};
use crate::checkpoint::formats::{self, Piece, encode, encode_rows};
use crate::checkpoint::{CheckpointError, FloatBuffer, FloatSource, Stored, TensorWriter};
use crate::dtype::{FloatType, Precision};
use crate::evaluate::piece_rows;
use crate::kernels::compare::{self, Sums};
use crate::kernels::{CHUNK, reduce};
use crate::layer::MethodError;
use crate::prune::Magnitude;
use crate::weight::CompressedWeight;

/// Bytes of a block's values in `f32`: they and what they become stay in a core's cache.
pub(super) const BLOCK_BYTES: usize = 1 << 20;

/// What a run does at a time, in the order of the file.
pub(super) enum Stage<'a> {
    /// Blocks of some tensors, side by side.
    Blocks(Vec<Block<'a>>),
    /// A tensor as a whole, on all threads. The number is that of its first tensor in the file.
    Whole(&'a PlannedTensor<'a>, usize),
}

/// Some rows of a tensor; of one that is copied, some of its bytes.
#[derive(Clone)]
pub(super) struct Block<'a> {
    pub(super) tensor: &'a PlannedTensor<'a>,
    /// Number of the tensor's first tensor in the file.
    slot: usize,
    pub(super) rows: Range<usize>,
    /// Bytes of the source that it stands for.
    pub(super) bytes: u64,
    /// Whether it is the tensor's last.
    pub(super) last: bool,
}

/// What is known of a block once it is written.
pub(super) struct Written {
    /// Sums over pieces of [`piece_rows`] rows.
    pub(super) pieces: Vec<Sums>,
    pub(super) clamped: u64,
}

/// Why a block was not written.
pub(super) enum Failure {
    Run(PipelineError),
    /// The method refuses the block; what it says of the tensor is to be asked.
    Method(MethodError),
}

impl From<PipelineError> for Failure {
    fn from(error: PipelineError) -> Self {
        Self::Run(error)
    }
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        Self::Run(error.into())
    }
}

impl From<MethodError> for Failure {
    fn from(error: MethodError) -> Self {
        Self::Method(error)
    }
}

/// Buffers of a thread, for reuse.
#[derive(Default)]
pub(super) struct Buffers {
    source: FloatBuffer,
    decoded: Vec<f32>,
}

/// What a run does with the tensors of a file, in order.
pub(super) fn stages<'a>(
    tensors: impl Iterator<Item = &'a PlannedTensor<'a>>,
    block_bytes: usize,
    prepared: &Prepared,
) -> Vec<Stage<'a>> {
    let mut stages = Vec::new();
    let mut blocks = Vec::new();
    let mut slot = 0;
    for tensor in tensors {
        let whole = prepared.has(tensor.name());
        if let Some((len, step)) = cut(tensor, block_bytes).filter(|_| !whole) {
            let share = |at: usize| tensor.entry.bytes / len.max(1) as u64 * at as u64;
            // a tensor without rows is a block too: it has its place in the file
            for from in (0..len.max(1)).step_by(step.max(1)) {
                let to = (from + step).min(len);
                let bytes =
                    if to == len { tensor.entry.bytes - share(from) } else { share(to) - share(from) };
                blocks.push(Block { tensor, slot, rows: from..to, bytes, last: to == len });
            }
        } else {
            if !blocks.is_empty() {
                stages.push(Stage::Blocks(std::mem::take(&mut blocks)));
            }
            stages.push(Stage::Whole(tensor, slot));
        }
        slot += tensor.specs.len();
    }
    if !blocks.is_empty() {
        stages.push(Stage::Blocks(blocks));
    }
    stages
}

/// Rows of a tensor (bytes of one that is copied), and of each of its blocks; `None` when it can only be worked on as a
/// whole.
fn cut(tensor: &PlannedTensor<'_>, block_bytes: usize) -> Option<(usize, usize)> {
    match &tensor.action {
        PlannedAction::Copy => Some((tensor.entry.bytes as usize, block_bytes.max(1))),
        PlannedAction::Rewrite(_) => None,
        PlannedAction::Compress(job) => {
            if !matches!(tensor.entry.stored, Stored::Plain(_)) {
                return None;
            }
            let (rows, cols) = (job.form.rows(), job.form.cols());
            let wanted = block_bytes / 4 / cols.max(1);
            if rows <= wanted {
                return Some((rows, rows));
            }
            let unit = row_unit(job)?;
            Some((rows, (wanted / unit * unit).max(unit).min(rows)))
        }
    }
}

/// Rows that every block but the last is a multiple of.
fn row_unit(job: &Job<'_>) -> Option<usize> {
    let method = job.method().map_or(Some(1), |method| Some(method.row_block()?.get()))?;
    match job.mask {
        MaskPlan::KeepAll | MaskPlan::Magnitude(Magnitude::NofM(_)) => {}
        _ => return None,
    }
    let stored = formats::row_unit(&job.form)?;
    Some([stored, piece_rows(job.form.cols())].into_iter().fold(method, formats::lcm))
}

/// Bytes that working on some rows of a tensor takes, buffers and source included.
pub(super) fn working_bytes(tensor: &PlannedTensor<'_>, rows: usize) -> u64 {
    let job = match &tensor.action {
        PlannedAction::Copy => return 0,
        PlannedAction::Rewrite(form) => return 2 * form.bytes().total(),
        PlannedAction::Compress(job) => job,
    };
    let (all, cols) = (job.form.rows().max(1), job.form.cols());
    let n = rows * cols;
    let source = match &tensor.entry.stored {
        Stored::Plain(dtype) => FloatType::of(*dtype).map_or(4 * n, |f| FloatSource::buffer_bytes(f, n)),
        Stored::Compressed(form) => 4 * n + form.bytes().total() as usize,
    };
    // what pruning makes of the values, and what it knows of each
    let pruned = if matches!(job.mask, MaskPlan::KeepAll) { 0 } else { 6 * n };
    // codes before packing, scale and zero point of every tile
    let codes = job.form.grid().map_or(0, |grid| n + 16 * (grid.len() * rows).div_ceil(all));
    // a method looks at what became of the values when they might overflow
    let checked = if job.precision == Precision::F16 { 4 * n } else { 0 };
    // the rows that are compared
    let compared = 4 * cols.max(CHUNK).min(n);
    let stored = (2 * job.form.bytes().total() * rows as u64).div_ceil(all as u64);
    let scratch = job.scratch_bytes(&[rows, cols]);
    (source + pruned + codes + checked + compared) as u64 + stored + scratch
}

impl Plan<'_> {
    /// Writes blocks. Before each, in order, `before` is told its number and what is known of the one before it.
    pub(super) fn stream(
        &self,
        blocks: &[Block<'_>],
        writer: &TensorWriter,
        mut before: impl FnMut(usize, Option<Written>) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        before(0, None)?;
        let work = |buffers: &mut Buffers, number: usize| {
            let block = &blocks[number];
            match &block.tensor.action {
                PlannedAction::Compress(job) => self.compress_block(block, job, writer, buffers),
                _ => self.copy_block(block, writer),
            }
        };
        let ended = in_order(blocks.len(), Buffers::default, work, |number, written| {
            before(number + 1, Some(written)).map_err(Failure::Run)
        });
        match ended {
            Ok(()) => Ok(()),
            Err((_, Failure::Run(error))) => Err(error),
            // positions, counts and ranges in a method's words are those of the whole tensor
            Err((number, Failure::Method(error))) => {
                let tensor = blocks[number].tensor;
                if let PlannedAction::Compress(job) = &tensor.action {
                    self.compress_whole(tensor, job)?;
                }
                Err(PipelineError::method(self.source(), tensor.name())(error))
            }
        }
    }

    fn copy_block(&self, block: &Block<'_>, writer: &TensorWriter) -> Result<Written, Failure> {
        let name = block.tensor.name();
        let tensor = self.checkpoint.tensor(name)?;
        writer.put(block.slot, block.rows.start as u64, &tensor.bytes[block.rows.clone()])?;
        self.checkpoint.release(name, block.rows.clone());
        Ok(Written { pieces: Vec::new(), clamped: 0 })
    }

    fn compress_block(
        &self,
        block: &Block<'_>,
        job: &Job<'_>,
        writer: &TensorWriter,
        buffers: &mut Buffers,
    ) -> Result<Written, Failure> {
        let entry = &*block.tensor.entry;
        let Some(source) = self.checkpoint.floats(entry)? else {
            return Err(CheckpointError::tensor(self.source(), &entry.name, "is no plain tensor").into());
        };
        let cols = job.form.cols();
        let values = source.read(block.rows.start * cols..block.rows.end * cols, &mut buffers.source)?;
        let mut shape = entry.shape.clone();
        if let Some(rows) = shape.first_mut() {
            *rows = block.rows.len();
        }
        let Made { weight, clamped, .. } =
            self.compress(block.tensor, job, &shape, values, Seen::default())?;
        let data = encode_rows(&weight, &job.form, block.rows.start).map_err(MethodError::from)?;
        put(writer, block.slot, data)?;
        let pieces: Vec<Sums> =
            pieces(&weight).map(|rows| compare_piece(values, &weight, rows, &mut buffers.decoded)).collect();
        // the squares of finite values have a finite sum
        if pieces.iter().any(|sums| !sums.original.is_finite())
            && let Some(found) = reduce::first_non_finite(values)
        {
            return Err(Failure::Method(found.into()));
        }
        Ok(Written { pieces, clamped })
    }

    /// Writes a tensor as a whole, and gives what is known of it if it was compressed.
    pub(super) fn write_whole(
        &self,
        tensor: &PlannedTensor<'_>,
        slot: usize,
        writer: &TensorWriter,
    ) -> Result<Option<Written>, PipelineError> {
        let PlannedAction::Compress(job) = &tensor.action else {
            put(writer, slot, encode(&self.checkpoint.weight(tensor.name())?))?;
            self.checkpoint.release_entry(&tensor.entry);
            return Ok(None);
        };
        let (values, Made { weight, clamped, .. }) = self.compress_whole(tensor, job)?;
        put(writer, slot, encode(&weight))?;
        let rows: Vec<Range<usize>> = pieces(&weight).collect();
        let pieces = rows
            .into_par_iter()
            .map_init(Vec::new, |decoded, rows| compare_piece(&values, &weight, rows, decoded));
        let written = Written { pieces: pieces.collect(), clamped };
        drop(values);
        self.checkpoint.release_entry(&tensor.entry);
        Ok(Some(written))
    }
}

/// Writes the data of a weight's tensors, the first of which has number `slot` in the file.
pub(super) fn put(writer: &TensorWriter, slot: usize, data: Vec<Piece<'_>>) -> Result<(), CheckpointError> {
    data.into_iter()
        .enumerate()
        .try_for_each(|(part, (offset, bytes))| writer.put(slot + part, offset, &bytes))
}

/// The rows of a weight, in the pieces that are compared together.
fn pieces(weight: &CompressedWeight) -> impl Iterator<Item = Range<usize>> + use<> {
    let (rows, step) = (weight.rows(), piece_rows(weight.cols()));
    (0..rows).step_by(step).map(move |from| from..(from + step).min(rows))
}

fn compare_piece(
    values: &[f32],
    weight: &CompressedWeight,
    rows: Range<usize>,
    decoded: &mut Vec<f32>,
) -> Sums {
    let cols = weight.cols();
    decoded.resize(rows.len() * cols, 0.0);
    weight.decode_rows(rows.clone(), decoded);
    compare::sums(&values[rows.start * cols..rows.end * cols], decoded)
}

/// Does `work` for every number below `count` on all threads of the pool, each of which has a state of its own, and shows
/// `each` the results in order, on this thread. Ends at the first error, in that order, and gives its number.
fn in_order<S, T: Send, E: Send>(
    count: usize,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> Result<T, E> + Sync,
    mut each: impl FnMut(usize, T) -> Result<(), E>,
) -> Result<(), (usize, E)> {
    let next = AtomicUsize::new(0);
    let stop = || next.store(count, Ordering::Relaxed);
    let (sender, receiver) = mpsc::channel();
    let one = |state: &mut S| {
        // numbers are handed out in order, so that every one before a failed one ends too
        let number =
            next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < count).then_some(n + 1));
        let number = number.ok()?;
        let result = work(state, number);
        if result.is_err() {
            stop();
        }
        Some((number, result))
    };
    let mut early = BTreeMap::new();
    let mut expected = 0;
    let mut arrived = |number: usize, result: Result<T, E>| {
        early.insert(number, result);
        while let Some(result) = early.remove(&expected) {
            let number = expected;
            expected += 1;
            if let Err(error) = result.and_then(|result| each(number, result)) {
                stop();
                return Err((number, error));
            }
        }
        Ok(())
    };
    let on_pool = rayon::current_thread_index().is_some();
    let ended = rayon::in_place_scope(|scope| {
        let (one, state) = (&one, &state);
        scope.spawn_broadcast(move |_, _| {
            let mut state = state();
            while let Some(done) = one(&mut state) {
                // nobody listens once the run has ended
                sender.send(done).ok();
            }
        });
        if on_pool {
            // this thread is one of those that work
            let mut state = state();
            while let Some((number, result)) = one(&mut state) {
                arrived(number, result)?;
                receiver.try_iter().try_for_each(|(number, result)| arrived(number, result))?;
            }
            Ok(())
        } else {
            receiver.iter().try_for_each(|(number, result)| arrived(number, result))
        }
    });
    ended?;
    receiver.try_iter().try_for_each(|(number, result)| arrived(number, result))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers to 1000 in a pool of `threads`, which may be that of the calling thread; ends at `fail`.
    fn run(threads: usize, inside: bool, fail: Option<usize>) -> (Vec<usize>, Result<(), (usize, String)>) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let go = || {
            let mut seen = Vec::new();
            let work = |state: &mut u64, number: usize| {
                *state += 1;
                // the first are the slowest
                let spin = (number < 4).then(|| std::thread::sleep(std::time::Duration::from_millis(2)));
                if Some(number) == fail { Err(format!("{spin:?}")) } else { Ok(number * 2) }
            };
            let ended = in_order(
                1000,
                || 0,
                work,
                |number, result| {
                    assert_eq!(result, number * 2);
                    seen.push(number);
                    Ok(())
                },
            );
            (seen, ended)
        };
        if inside { pool.install(go) } else { go() }
    }

    #[test]
    fn results_come_in_order_whoever_calls() {
        for (threads, inside) in [(1, true), (3, true), (1, false)] {
            let (seen, ended) = run(threads, inside, None);
            assert_eq!(seen, (0..1000).collect::<Vec<_>>());
            assert!(ended.is_ok());
        }
    }

    #[test]
    fn the_first_error_in_order_ends_it() {
        for (threads, inside) in [(1, true), (3, true), (1, false)] {
            for fail in [0, 3, 500, 999] {
                let (seen, ended) = run(threads, inside, Some(fail));
                assert_eq!(seen, (0..fail).collect::<Vec<_>>());
                assert_eq!(ended.unwrap_err().0, fail);
            }
        }
    }

    #[test]
    fn what_is_shown_can_end_it() {
        let ended = in_order(
            1000,
            || (),
            |(), number| Ok(number),
            |number, _| {
                if number == 7 { Err("enough") } else { Ok(()) }
            },
        );
        assert_eq!(ended, Err((7, "enough")));
    }
}
