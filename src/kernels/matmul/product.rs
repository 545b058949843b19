//! Whole products over prepacked weights.

use super::activations::{ActivationCodes, FloatTiles, IntTiles, tiles};
#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::decode::decode;
use super::panels::{BLOCK, Columns, PANEL, Panels, Storage, ZeroPoints};
use super::schedule::{At, Job, Schedule, Scratch, run};
use super::tile::{Finish, FloatTile, IntTile, Last, Start, Zeros};
use crate::kernels::level::Isa;

/// Blocks of integer codes in a piece: 32 KiB.
const INT_DEPTH: usize = 128;

/// Blocks of floats in a piece: 24 KiB.
pub(super) const FLOAT_DEPTH: usize = 24;

/// Bytes by which weights that stream by are fetched ahead of their use.
const AHEAD: usize = 2048;

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
    pub(crate) fn apply(&self, sum: f32, output: usize) -> f32 {
        let value = self.bias.map_or(sum, |bias| sum + bias[output]);
        // a comparison, because `max` would turn NaN into 0
        if self.relu && value < 0.0 { 0.0 } else { value }
    }
}

/// One of several products with the same activations.
pub(crate) struct Product<'a> {
    pub(crate) panels: &'a Panels,
    pub(crate) epilogue: Epilogue<'a>,
    /// `[batch, rows]`
    pub(crate) y: &'a mut [f32],
}

/// Activations in the form that each of some products wants; those that want the same share it.
fn share<K: PartialEq, T>(
    products: &[Product<'_>],
    key: impl Fn(&Panels) -> K,
    new: impl Fn(&K) -> T,
) -> (Vec<T>, Vec<usize>) {
    let mut keys: Vec<K> = Vec::new();
    let index = products.iter().map(|product| {
        let key = key(product.panels);
        keys.iter().position(|k| *k == key).unwrap_or_else(|| {
            keys.push(key);
            keys.len() - 1
        })
    });
    let index = index.collect();
    (keys.iter().map(new).collect(), index)
}

/// Products without columns or activations are done at once.
fn with_columns(products: Vec<Product<'_>>, batch: usize) -> Vec<Product<'_>> {
    let mut rest = Vec::with_capacity(products.len());
    for product in products {
        if batch == 0 || product.panels.columns.cols() == 0 {
            without_columns(product.panels.rows, product.epilogue, product.y);
        } else {
            rest.push(product);
        }
    }
    rest
}

/// `y = x · Wᵀ` for some weights, with `x` quantized on the way. Integer sums are exact, and the floating-point operations that
/// follow are the same at every level, so that every level gives the same bits.
///
/// # Shapes
/// `x` is `[batch, cols]`, every `y` is `[batch, rows]`.
pub(crate) fn int_products(
    isa: Isa,
    products: Vec<Product<'_>>,
    x: &[f32],
    batch: usize,
    how: ActivationCodes,
) {
    let products = with_columns(products, batch);
    let shared = |panels: &Panels| match panels.zero_points {
        ZeroPoints::All(zero) if !how.has_zero_points() => Some(i32::from(zero)),
        _ => None,
    };
    let (tiles_of, index) = share(
        &products,
        |panels| (panels.columns, shared(panels).unwrap_or(1)),
        |(columns, zero)| IntTiles::new(isa, x, batch, *columns, *zero, how),
    );
    let blocked = tiles(batch).len() > 1;
    let jobs = products.into_iter().zip(index).map(|(Product { panels, epilogue, y }, index)| {
        let schedule = Schedule::new(panels.rows, panels.columns, batch, blocked, INT_DEPTH);
        let x = &tiles_of[index];
        let work = move |scratch: &mut Scratch, at: &At<'_>| {
            int_piece(isa, panels, shared(panels), how, x, epilogue, blocked, scratch, at);
        };
        Job { schedule, y, work }
    });
    run(&mut jobs.collect::<Vec<_>>());
}

/// One piece of one panel meets its tiles. `shared` is the zero point of all codes, if they share one.
#[allow(clippy::too_many_arguments)] // what a product has, and where it is
fn int_piece(
    isa: Isa,
    panels: &Panels,
    shared: Option<i32>,
    how: ActivationCodes,
    x: &IntTiles,
    epilogue: Epilogue<'_>,
    blocked: bool,
    scratch: &mut Scratch,
    at: &At<'_>,
) {
    let columns = panels.columns;
    let codes = panels.panel(at.panel);
    let scales = panels.of_panel(at.panel, panels.scales.words());
    let code_sums: &[i32] = if how.has_zero_points() { &panels.code_sums } else { &[] };
    let code_sums = panels.of_panel(at.panel, code_sums);
    let bias = PanelBias::new(epilogue.bias, at.panel);
    let bytes = panels.storage.block_bytes();
    #[allow(unused_mut)] // other processors multiply what is stored
    let (mut storage, mut piece) = (panels.storage, &codes[at.blocks.start * bytes..at.blocks.end * bytes]);
    #[allow(unused_mut)]
    let mut ahead = panels.ahead(blocked);
    // AVX-512 multiplies bytes as fast as nibbles, which it would have to separate for every tile
    #[cfg(target_arch = "x86_64")]
    if let (true, Storage::Nibble, Isa::Avx512(proof)) = (blocked, storage, isa) {
        scratch.wide.reserve::<u8>(piece.len() * 2);
        avx512::widen_nibbles(proof, piece, scratch.wide.bytes_mut());
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
                total: &mut scratch.total.words_mut()[sums.clone()],
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
                partial: &mut scratch.partial.words_mut()[sums.clone()],
                finish,
            }
            .run(isa);
        }
    }
}

/// `y = x · Wᵀ` for some weights, with `x` as it is. Of one tile, codes become floats in registers; of many, a piece at a time.
///
/// # Shapes
/// `x` is `[batch, cols]`, every `y` is `[batch, rows]`.
pub(crate) fn float_products(isa: Isa, products: Vec<Product<'_>>, x: &[f32], batch: usize) {
    let products = with_columns(products, batch);
    let (tiles_of, index) =
        share(&products, |panels| panels.columns, |columns: &Columns| FloatTiles::new(x, batch, *columns));
    let blocked = tiles(batch).len() > 1;
    let jobs = products.into_iter().zip(index).map(|(Product { panels, epilogue, y }, index)| {
        let schedule = Schedule::new(panels.rows, panels.columns, batch, blocked, FLOAT_DEPTH);
        let x = &tiles_of[index];
        let work = move |scratch: &mut Scratch, at: &At<'_>| {
            if blocked {
                float_piece(isa, panels, x, epilogue, scratch, at);
            } else {
                float_panel(isa, panels, x, epilogue, scratch, at);
            }
        };
        Job { schedule, y, work }
    });
    run(&mut jobs.collect::<Vec<_>>());
}

/// A whole panel meets the only tile.
fn float_panel(
    isa: Isa,
    panels: &Panels,
    x: &FloatTiles,
    epilogue: Epilogue<'_>,
    scratch: &mut Scratch,
    at: &At<'_>,
) {
    let codes = panels.panel(at.panel);
    let scales = panels.of_panel(at.panel, panels.scales.words());
    let bias = PanelBias::new(epilogue.bias, at.panel);
    let bytes = panels.storage.block_bytes();
    let tile = at.tiles[0];
    for segment in at.segments {
        FloatTile {
            storage: panels.storage,
            codes: &codes[segment.block * bytes..][..segment.blocks * bytes],
            ahead: panels.ahead(false),
            groups: segment.groups,
            activations: x.values(tile, segment.block, segment.blocks),
            rows: tile.rows,
            zeros: panels.zeros(at.panel, segment.group),
            finish: Finish {
                scales: scales.get(segment.group * PANEL..).unwrap_or_default(),
                add: segment.group > 0,
                total: scratch.total.words_mut(),
                last: (segment.group + segment.groups == panels.columns.groups()).then(|| Last {
                    row_scales: &[],
                    bias: bias.get(),
                    relu: epilogue.relu,
                    y: at.output(tile),
                }),
            },
        }
        .run(isa);
    }
}

/// One piece of one panel becomes floats, and meets its tiles.
fn float_piece(
    isa: Isa,
    panels: &Panels,
    x: &FloatTiles,
    epilogue: Epilogue<'_>,
    scratch: &mut Scratch,
    at: &At<'_>,
) {
    let codes = panels.panel(at.panel);
    let bytes = panels.storage.block_bytes();
    let value_bytes = at.blocks.len() * Storage::F32.block_bytes();
    let mut pass = Pass { isa, x, epilogue, ahead: 0, blocks: panels.columns.blocks() };
    if panels.storage == Storage::F32 {
        pass.ahead = panels.ahead(true);
        let values = &codes[at.blocks.start * bytes..at.blocks.end * bytes];
        return pass.run(values, scratch.total.words_mut(), at);
    }
    let scales = panels.of_panel(at.panel, panels.scales.words());
    scratch.wide.reserve::<u8>(value_bytes);
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
            let codes = &codes[first * bytes..][..blocks * bytes];
            decode(isa, panels.storage, codes, zeros, scales, out);
        }
    }
    pass.run(&scratch.wide.bytes()[..value_bytes], scratch.total.words_mut(), at);
}

/// Tiles that pass by a piece of a panel of floats.
pub(super) struct Pass<'a> {
    pub(super) isa: Isa,
    pub(super) x: &'a FloatTiles,
    pub(super) epilogue: Epilogue<'a>,
    /// Bytes after which to find what will be needed next; 0 if that is not known.
    pub(super) ahead: usize,
    /// Blocks of the whole panel.
    pub(super) blocks: usize,
}

impl Pass<'_> {
    pub(super) fn run(&self, values: &[u8], total: &mut [f32], at: &At<'_>) {
        let bias = PanelBias::new(self.epilogue.bias, at.panel);
        for (number, tile) in at.tiles.iter().copied().enumerate() {
            FloatTile {
                storage: Storage::F32,
                codes: values,
                ahead: if number == 0 { self.ahead } else { 0 },
                groups: 1,
                activations: self.x.values(tile, at.blocks.start, at.blocks.len()),
                rows: tile.rows,
                zeros: Zeros::All(0),
                finish: Finish {
                    scales: &[],
                    add: at.blocks.start > 0,
                    total: &mut total[at.sums_of(tile)],
                    last: (at.blocks.end == self.blocks).then(|| Last {
                        row_scales: &[],
                        bias: bias.get(),
                        relu: self.epilogue.relu,
                        y: at.output(tile),
                    }),
                },
            }
            .run(self.isa);
        }
    }
}

impl Panels {
    /// Bytes from a code to the one that is fetched meanwhile: with one tile, the weights stream by; with many, the next
    /// panel's piece is fetched while the first tile passes.
    fn ahead(&self, blocked: bool) -> usize {
        if blocked { self.panel_bytes() } else { AHEAD }
    }

    fn zeros(&self, panel: usize, group: usize) -> Zeros<'_> {
        match &self.zero_points {
            ZeroPoints::All(zero) => Zeros::All(i32::from(*zero)),
            ZeroPoints::Each(all) => Zeros::Each(&self.of_panel(panel, all)[group * PANEL..]),
        }
    }
}

/// A bias of 32 values, whatever the number of outputs.
struct PanelBias<'a> {
    of_panel: &'a [f32],
    padded: [f32; PANEL],
}

impl<'a> PanelBias<'a> {
    fn new(bias: Option<&'a [f32]>, panel: usize) -> Self {
        let of_panel = bias.map_or(&[][..], |b| &b[panel * PANEL..]);
        let mut padded = [0.0; PANEL];
        if of_panel.len() < PANEL {
            padded[..of_panel.len()].copy_from_slice(of_panel);
        }
        Self { of_panel, padded }
    }

    fn get(&self) -> &[f32] {
        match self.of_panel.len() {
            0 => &[],
            1..PANEL => &self.padded,
            _ => &self.of_panel[..PANEL],
        }
    }
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
