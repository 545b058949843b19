//! Products with Hadamard matrices: orthogonal up to a factor, made of ±1 alone.

mod paley;
mod portable;

use rayon::prelude::*;

use super::level::{Isa, multiversion};
use super::{CHUNK, in_pool};

/// Vectors that go through a product side by side, one value each.
const LANES: usize = 16;

/// One value of each of them.
type Lane = [f64; LANES];

/// Columns that are out of place at a time.
const PANEL: usize = 64 * LANES;

/// The largest factor that is multiplied value by value: beyond it, a product would take as long as a dense one.
const MAX_FACTOR: usize = 1 << 10;

multiversion! {
    fn double_in(x: &mut [Lane], inner: usize) = portable::double
}
multiversion! {
    fn double_twice_in(x: &mut [Lane], inner: usize) = portable::double_twice
}
multiversion! {
    fn dense_in(x: &mut [Lane], signs: &[f64], size: usize, inner: usize, old: &mut Vec<Lane>) = portable::dense
}

/// A Hadamard matrix `H`: every value is 1 or −1, and `H·Hᵀ = n·I`.
///
/// It is the Kronecker product of matrices by Paley's two constructions over finite fields (Paley, 1933) and of Sylvester's
/// of order 2. Of several such products the one that is multiplied fastest is chosen; hence an order always means the
/// same matrix.
///
/// ```
/// use tersor::kernels::hadamard::Hadamard;
///
/// let hadamard = Hadamard::new(576).expect("12 · 12 · 4");
/// assert_eq!(hadamard.order(), 576);
/// assert!(Hadamard::new(6).is_none());
/// ```
#[derive(Debug, Clone)]
pub struct Hadamard {
    order: usize,
    /// From the slowest index of the Kronecker product to the fastest.
    factors: Vec<Factor>,
    /// Factors of order 2 that follow them.
    doublings: u32,
}

/// `[size, size]`, row-major.
#[derive(Debug, Clone)]
struct Factor {
    size: usize,
    signs: Vec<f64>,
}

impl Hadamard {
    /// The matrix of an order, or `None` where these constructions give none. They give none for 92, 116, 156 … (other
    /// constructions do), and no Hadamard matrix has an order above 2 that is no multiple of 4.
    pub fn new(order: usize) -> Option<Self> {
        let sizes = factors(order, MAX_FACTOR)?.sizes;
        let rest = order / sizes.iter().product::<usize>();
        let of_size = |size: usize| {
            let signs = paley::matrix(size)?.into_iter().map(f64::from).collect();
            Some(Factor { size, signs })
        };
        let factors = sizes.into_iter().map(of_size).collect::<Option<_>>()?;
        Some(Self { order, factors, doublings: rest.ilog2() })
    }

    /// Number of rows, and of columns.
    pub fn order(&self) -> usize {
        self.order
    }

    /// All values.
    ///
    /// # Shapes
    /// `[order, order]`, row-major.
    pub fn matrix(&self) -> Vec<i8> {
        let value = |row: usize, col: usize| {
            let twos = 1 << self.doublings;
            let common = (row % twos) & (col % twos);
            let mut negative = common.count_ones() % 2 == 1;
            let (mut row, mut col) = (row / twos, col / twos);
            for Factor { size, signs } in self.factors.iter().rev() {
                negative ^= signs[row % size * size + col % size] < 0.0;
                (row, col) = (row / size, col / size);
            }
            if negative { -1 } else { 1 }
        };
        (0..self.order).flat_map(|row| (0..self.order).map(move |col| value(row, col))).collect()
    }

    /// `x ← (x ⊙ s)·H/√n` for every row: the rotation by `diag(s)·H/√n`.
    ///
    /// Computed in `f64`, in an order that depends on neither the number of threads nor the instruction level.
    ///
    /// # Shapes
    /// `values` is `[rows, order]`; `signs` has `order` values, each 1 or −1.
    ///
    /// # Panics
    /// When they have other lengths.
    pub fn rotate_rows(&self, values: &mut [f32], signs: &[f32]) {
        let order = self.order;
        assert!(values.len().is_multiple_of(order) && signs.len() == order, "rows and signs");
        let isa = Isa::current();
        let each = |room: &mut Room, rows: &mut [f32]| {
            room.x.clear();
            room.x.resize(order, [0.0; LANES]);
            // in pieces that stay in the first-level cache
            for (piece, x) in room.x.chunks_mut(LANES).enumerate() {
                let columns = piece * LANES..piece * LANES + x.len();
                for (lane, row) in rows.chunks_exact(order).enumerate() {
                    let values = row[columns.clone()].iter().zip(&signs[columns.clone()]);
                    for (x, (value, sign)) in x.iter_mut().zip(values) {
                        x[lane] = f64::from(*value * *sign);
                    }
                }
            }
            self.multiply(isa, room);
            for (piece, x) in room.x.chunks(LANES).enumerate() {
                let columns = piece * LANES..piece * LANES + x.len();
                for (lane, row) in rows.chunks_exact_mut(order).enumerate() {
                    for (value, x) in row[columns.clone()].iter_mut().zip(x) {
                        *value = x[lane] as f32;
                    }
                }
            }
        };
        let at_once = LANES * order;
        values
            .par_chunks_mut(at_once)
            .with_min_len(CHUNK.div_ceil(at_once))
            .for_each_init(Room::default, each);
    }

    /// `X ← Rᵀ·X` for every block of `order` rows, with the rotation `R = diag(s)·H/√n` of [`rotate_rows`](Self::rotate_rows).
    ///
    /// # Shapes
    /// `values` is `[blocks · order, cols]`; `signs` has `order` values, each 1 or −1.
    ///
    /// # Panics
    /// When they have other lengths.
    pub fn rotate_columns(&self, values: &mut [f32], cols: usize, signs: &[f32]) {
        let order = self.order;
        assert!(values.len().is_multiple_of((order * cols).max(1)), "whole blocks of rows");
        assert_eq!(signs.len(), order, "signs");
        if cols == 0 {
            return;
        }
        in_pool(|| {
            for block in values.chunks_exact_mut(order * cols) {
                for first in (0..cols).step_by(PANEL) {
                    self.rotate_panel(block, cols, first, signs);
                }
            }
        });
    }

    /// Columns of one block from `first` on. What becomes of them is kept beside the matrix until all have been read.
    fn rotate_panel(&self, block: &mut [f32], cols: usize, first: usize, signs: &[f32]) {
        let isa = Isa::current();
        let width = PANEL.min(cols - first);
        let source = &*block;
        let rotate = |room: &mut Room, tile: usize| {
            let from = first + tile * LANES;
            let until = (from + LANES).min(first + width);
            room.x.clear();
            for (row, sign) in source.chunks_exact(cols).zip(signs) {
                let mut lane = [0.0; LANES];
                for (x, value) in lane.iter_mut().zip(&row[from..until]) {
                    *x = f64::from(*value * *sign);
                }
                room.x.push(lane);
            }
            self.multiply(isa, room);
            room.x.iter().map(|lane| lane.map(|x| x as f32)).collect()
        };
        let tiles: Vec<Vec<[f32; LANES]>> =
            (0..width.div_ceil(LANES)).into_par_iter().map_init(Room::default, rotate).collect();
        let rows = block.par_chunks_exact_mut(cols).with_min_len((CHUNK / width).max(1));
        rows.enumerate().for_each(|(index, row)| {
            for (tile, out) in tiles.iter().zip(row[first..first + width].chunks_mut(LANES)) {
                out.copy_from_slice(&tile[index][..out.len()]);
            }
        });
    }

    /// `x ← x·H/√n` of every lane.
    fn multiply(&self, isa: Isa, Room { x, old }: &mut Room) {
        let mut inner = 1;
        for _ in 0..self.doublings / 2 {
            double_twice_in(isa, x, inner);
            inner *= 4;
        }
        if self.doublings % 2 == 1 {
            double_in(isa, x, inner);
            inner *= 2;
        }
        for Factor { size, signs } in self.factors.iter().rev() {
            dense_in(isa, x, signs, *size, inner, old);
            inner *= size;
        }
        let scale = 1.0 / (self.order as f64).sqrt();
        for x in x.as_flattened_mut() {
            *x *= scale;
        }
    }
}

/// Room for one product, used again by the next.
#[derive(Default)]
struct Room {
    x: Vec<Lane>,
    old: Vec<Lane>,
}

/// Factors of an order, beside those of order 2.
struct Factors {
    /// From the largest to the smallest.
    sizes: Vec<usize>,
    /// Additions that they cost for each value of a vector.
    cost: usize,
}

/// The cheapest factors of an order that are no larger than `largest`.
fn factors(order: usize, largest: usize) -> Option<Factors> {
    if order.is_power_of_two() {
        return Some(Factors { sizes: Vec::new(), cost: order.ilog2() as usize });
    }
    let mut cheapest: Option<Factors> = None;
    for size in (4..=largest.min(order)).step_by(4) {
        if size.is_power_of_two() || !order.is_multiple_of(size) || paley::field(size).is_none() {
            continue;
        }
        let Some(Factors { mut sizes, cost }) = factors(order / size, size) else { continue };
        let cost = cost + size;
        if cheapest.as_ref().is_none_or(|other| cost < other.cost) {
            sizes.insert(0, size);
            cheapest = Some(Factors { sizes, cost });
        }
    }
    cheapest
}

#[cfg(test)]
mod tests;
