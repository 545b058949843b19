//! What this machine can do at most: bandwidth of reads and streaming copies, peak f32 and int8 arithmetic.
//!
//! Each limit is measured once, when a case first asks for it, by the shortest loop that does nothing else. AVX-512 with
//! VNNI is needed; where it is missing there are no limits, and the table's shares stay empty.

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm_sfence, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_set1_epi8,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_stream_si512, _mm512_xor_si512,
};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// Bytes of a cache line, and of the widest register.
const LINE: usize = 64;

/// Footprint of a cold read: many times the largest cache.
const COLD_BYTES: usize = 256 << 20;

/// Parts of a buffer that a read goes through side by side, where it does.
const PARTS: usize = 8;

/// Lines that a read is fetched ahead of its use, where it is.
const AHEAD: usize = 32;

/// Enough independent accumulators to hide the latency of a multiply-add.
const ACCUMULATORS: usize = 24;

/// Times that each limit is measured; the fastest counts, since a limit is the most that the machine can do.
const ROUNDS: usize = 15;

/// The limits that have been asked for, by name, in units a second.
pub(crate) struct Limits {
    threads: usize,
    supported: bool,
    measured: BTreeMap<String, f64>,
}

impl Limits {
    pub(crate) fn new(threads: usize) -> Self {
        let supported = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni");
        Self { threads, supported, measured: BTreeMap::new() }
    }

    /// Everything measured so far: bytes or operations a second, divided by 1e9.
    pub(crate) fn measured(&self) -> &BTreeMap<String, f64> {
        &self.measured
    }

    /// Seconds to read `bytes` that lie where repeated reads leave them, or in memory if `cold`.
    pub(crate) fn read(&mut self, bytes: usize, cold: bool) -> Option<f64> {
        let footprint = if cold { COLD_BYTES } else { bytes };
        let name = match footprint {
            COLD_BYTES => "read, DRAM, GB/s".to_owned(),
            _ => format!("read, {:.1} MiB, GB/s", footprint as f64 / f64::from(1 << 20)),
        };
        let rate = self.rate(name, |threads| {
            let share = (footprint / LINE / threads).next_multiple_of(4 * PARTS);
            let repeats = (128 << 20) / footprint + 1;
            let mut buffers: Vec<Buffer> = (0..threads).map(|_| Buffer::new(share)).collect();
            let mut seconds = |read: unsafe fn(&Buffer)| {
                together(&mut buffers, |buffer| {
                    for _ in 0..repeats {
                        // SAFETY: `rate` has checked that the machine has AVX-512.
                        unsafe { read(buffer) }
                    }
                })
            };
            let best =
                [read, read_ahead, read_parts].map(&mut seconds).into_iter().fold(f64::INFINITY, f64::min);
            (share * LINE * threads * repeats) as f64 / best
        })?;
        Some(bytes as f64 / (rate * 1e9))
    }

    /// Seconds to read `bytes` and write `bytes · W / R`, with streaming or plain stores, whichever is faster.
    pub(crate) fn stream<const R: usize, const W: usize>(&mut self, bytes: usize) -> Option<f64> {
        let name = format!("copy, {R} bytes read for {W} written, GB/s read");
        let rate = self.rate(name, |threads| {
            let steps = bytes / LINE / R / threads;
            let mut buffers: Vec<(Buffer, Buffer)> =
                (0..threads).map(|_| (Buffer::new(steps * R), Buffer::new(steps * W))).collect();
            let mut best = f64::INFINITY;
            for streaming in [true, false] {
                let seconds = together(&mut buffers, |(from, to)| {
                    // SAFETY: as above.
                    unsafe {
                        if streaming { copy::<R, W, true>(from, to) } else { copy::<R, W, false>(from, to) }
                    }
                });
                best = best.min(seconds);
            }
            (steps * R * LINE * threads) as f64 / best
        })?;
        Some(bytes as f64 / (rate * 1e9))
    }

    /// Seconds to read `bytes` in memory, and write other values in their place.
    pub(crate) fn update(&mut self, bytes: usize) -> Option<f64> {
        let rate = self.rate("update in place, DRAM, GB/s".into(), |threads| {
            let share = COLD_BYTES / LINE / threads;
            let mut buffers: Vec<Buffer> = (0..threads).map(|_| Buffer::new(share)).collect();
            // SAFETY: as above.
            let seconds = together(&mut buffers, |buffer| unsafe { update(buffer) });
            (share * LINE * threads) as f64 / seconds
        })?;
        Some(bytes as f64 / (rate * 1e9))
    }

    /// Seconds for `ops` f32 multiplications and additions.
    pub(crate) fn f32(&mut self, ops: f64) -> Option<f64> {
        // SAFETY: `rate` has checked that the machine has AVX-512.
        let rate =
            self.rate("f32 multiply-add, GFLOP/s".into(), |n| peak(n, 32, |n| unsafe { f32_fma(n) }))?;
        Some(ops / (rate * 1e9))
    }

    /// Seconds for `ops` 8-bit multiplications and additions into 32 bits.
    pub(crate) fn int8(&mut self, ops: f64) -> Option<f64> {
        // SAFETY: `rate` has checked that the machine has VNNI.
        let rate =
            self.rate("int8 dot product, GOP/s".into(), |n| peak(n, 128, |n| unsafe { int8_dot(n) }))?;
        Some(ops / (rate * 1e9))
    }

    fn rate(&mut self, name: String, measure: impl FnOnce(usize) -> f64) -> Option<f64> {
        let threads = self.threads;
        self.supported.then(|| *self.measured.entry(name).or_insert_with(|| measure(threads) / 1e9))
    }
}

/// Least seconds of `work` done on all states at once, one thread each.
fn together<T: Send>(states: &mut [T], work: impl Fn(&mut T) + Sync) -> f64 {
    let start = Barrier::new(states.len());
    let end = Barrier::new(states.len());
    let timed = |state: &mut T| {
        (0..ROUNDS)
            .map(|_| {
                start.wait();
                let clock = Instant::now();
                work(state);
                end.wait();
                clock.elapsed().as_secs_f64()
            })
            .fold(f64::INFINITY, f64::min)
    };
    let timed = &timed;
    std::thread::scope(|scope| {
        let handles: Vec<_> = states.iter_mut().map(|state| scope.spawn(move || timed(state))).collect();
        handles.into_iter().map(|h| h.join().expect("no limit panics")).fold(0.0, f64::max)
    })
}

/// Operations a second of a loop over [`ACCUMULATORS`] instructions, each of `ops` operations.
fn peak(threads: usize, ops: usize, work: impl Fn(usize) + Sync) -> f64 {
    const REPEATS: usize = 500_000;
    let seconds = together(&mut vec![(); threads], |()| work(REPEATS));
    (threads * REPEATS * ACCUMULATORS * ops) as f64 / seconds
}

/// Memory in huge pages, touched so that it is there.
struct Buffer {
    pages: Vec<Page>,
    lines: usize,
}

#[repr(align(2097152))]
struct Page {
    _bytes: [u8; 2 << 20],
}

impl Buffer {
    fn new(lines: usize) -> Self {
        let bytes = (lines * LINE).next_multiple_of(size_of::<Page>());
        let mut pages: Vec<Page> = Vec::with_capacity(bytes / size_of::<Page>());
        // SAFETY: the memory is this vector's own, `madvise` does not change what it holds, and every byte is written
        // before the length says that it is there.
        unsafe {
            libc::madvise(pages.as_mut_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
            pages.as_mut_ptr().cast::<u8>().write_bytes(1, bytes);
            pages.set_len(bytes / size_of::<Page>());
        }
        Self { pages, lines }
    }

    fn lines(&self) -> &[__m512i] {
        // SAFETY: the pages are initialized, aligned to far more than a line, and hold at least so many.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.lines) }
    }

    fn lines_mut(&mut self) -> &mut [__m512i] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.lines) }
    }
}

#[target_feature(enable = "avx512f")]
fn read(buffer: &Buffer) {
    let mut sums = [_mm512_setzero_si512(); 4];
    for lines in buffer.lines().chunks_exact(4) {
        for (sum, line) in sums.iter_mut().zip(lines) {
            *sum = _mm512_xor_si512(*sum, *line);
        }
    }
    black_box(sums);
}

/// The same, and asks for what comes a little later.
#[target_feature(enable = "avx512f")]
fn read_ahead(buffer: &Buffer) {
    let mut sums = [_mm512_setzero_si512(); 4];
    for lines in buffer.lines().chunks_exact(4) {
        for (sum, line) in sums.iter_mut().zip(lines) {
            _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(line).wrapping_add(AHEAD).cast());
            *sum = _mm512_xor_si512(*sum, *line);
        }
    }
    black_box(sums);
}

/// The same in another order: a few lines of each part, so that as many streams are fetched ahead.
#[target_feature(enable = "avx512f")]
fn read_parts(buffer: &Buffer) {
    let mut sums = [_mm512_setzero_si512(); 4];
    let part = buffer.lines / PARTS;
    for first in (0..part).step_by(4) {
        for lines in buffer.lines().chunks_exact(part) {
            for (sum, line) in sums.iter_mut().zip(&lines[first..first + 4]) {
                *sum = _mm512_xor_si512(*sum, *line);
            }
        }
    }
    black_box(sums);
}

#[target_feature(enable = "avx512f")]
fn update(buffer: &mut Buffer) {
    let change = black_box(_mm512_set1_epi8(1));
    for line in buffer.lines_mut() {
        *line = _mm512_xor_si512(*line, change);
    }
}

#[target_feature(enable = "avx512f")]
fn copy<const R: usize, const W: usize, const STREAMING: bool>(from: &Buffer, to: &mut Buffer) {
    for (from, to) in from.lines().chunks_exact(R).zip(to.lines_mut().chunks_exact_mut(W)) {
        let value = from.iter().fold(_mm512_setzero_si512(), |sum, line| _mm512_xor_si512(sum, *line));
        for line in to {
            if STREAMING {
                // SAFETY: a reference to a line is valid and aligned.
                unsafe { _mm512_stream_si512(line, value) }
            } else {
                *line = value;
            }
        }
    }
    _mm_sfence();
}

#[target_feature(enable = "avx512f")]
fn f32_fma(repeats: usize) {
    let (x, y) = black_box((_mm512_set1_ps(1.0), _mm512_set1_ps(0.0)));
    let mut sums = [_mm512_setzero_ps(); ACCUMULATORS];
    for _ in 0..repeats {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(x, y, *sum);
        }
    }
    black_box(sums);
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn int8_dot(repeats: usize) {
    let (x, y) = black_box((_mm512_set1_epi8(3), _mm512_set1_epi8(5)));
    let mut sums = [_mm512_setzero_si512(); ACCUMULATORS];
    for _ in 0..repeats {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, x, y);
        }
    }
    black_box(sums);
}
