//! The specification of a tile.

use half::{bf16, f16};

use super::activations::TILE;
use super::panels::{BLOCK, PANEL, Storage};
use super::tile::{Finish, FloatTile, IntTile, Start, Zeros};
use crate::kernels::convert::f8_e4m3_to_f32;

pub(super) fn int_tile(tile: &mut IntTile<'_, '_>) {
    int_groups(tile, |tile, codes, activations| {
        for (block, codes) in codes.chunks_exact(tile.storage.block_bytes()).enumerate() {
            for (row, partial) in tile.partial.chunks_exact_mut(PANEL).take(tile.rows).enumerate() {
                for half in 0..2 {
                    let four = activations[(block * tile.rows + row) * 2 + half].to_le_bytes();
                    for (output, sum) in partial.iter_mut().enumerate() {
                        for (j, activation) in four.iter().enumerate() {
                            let code = match tile.storage {
                                Storage::Nibble => codes[output * 4 + j] >> (4 * half) & 15,
                                _ => codes[half * PANEL * 4 + output * 4 + j],
                            };
                            *sum = sum.wrapping_add(i32::from(*activation as i8) * i32::from(code));
                        }
                    }
                }
            }
        }
    });
}

/// Runs group by group; `dot(tile, codes, activations)` adds a group's products to `partial`.
fn int_groups<'a>(
    tile: &mut IntTile<'a, '_>,
    mut dot: impl FnMut(&mut IntTile<'a, '_>, &'a [u8], &'a [i32]),
) {
    let bytes = tile.codes.len() / tile.groups;
    let words = bytes / tile.storage.block_bytes() * tile.rows * 2;
    let (codes, activations) = (tile.codes, tile.activations);
    for group in 0..tile.groups {
        start(tile, group);
        dot(tile, &codes[group * bytes..][..bytes], &activations[group * words..][..words]);
        let rows = tile.rows;
        if let Some(finish) = &mut tile.finish {
            let mut sums = [0f32; TILE * PANEL];
            for (sum, partial) in sums.iter_mut().zip(&tile.partial[..rows * PANEL]) {
                *sum = *partial as f32;
            }
            finish_rows(finish, group, tile.groups, 1.0, &sums[..rows * PANEL]);
        }
    }
}

/// Sets `partial` to what the sums of a group begin with.
fn start(tile: &mut IntTile<'_, '_>, group: usize) {
    for (row, partial) in tile.partial.chunks_exact_mut(PANEL).take(tile.rows).enumerate() {
        match tile.start {
            Start::Continue => {}
            Start::Shared(starts) => partial.fill(starts[group * tile.rows + row]),
            Start::Each { zeros, starts, code_sums, activation_zeros } => {
                let zeros = zeros.of_group(group);
                for (output, partial) in partial.iter_mut().enumerate() {
                    // the sum is small again in the end, whatever it is in between
                    *partial = zeros.of(output).wrapping_mul(starts[group * tile.rows + row]);
                    if !code_sums.is_empty() {
                        let both = code_sums[group * PANEL + output].wrapping_mul(activation_zeros[row]);
                        *partial = partial.wrapping_sub(both);
                    }
                }
            }
        }
    }
}

/// Scales a group's sums, which count in `unit`s, adds them to the total, and completes it after the last group.
#[inline(always)]
pub(super) fn finish_rows(finish: &mut Finish<'_, '_>, group: usize, groups: usize, unit: f32, sums: &[f32]) {
    let mut factors = [unit; PANEL];
    if let Some(scales) = finish.scales.get(group * PANEL..) {
        factors.iter_mut().zip(scales).for_each(|(factor, scale)| *factor = scale * unit);
    }
    let add = finish.add || group > 0;
    let totals = finish.total.as_chunks_mut::<PANEL>().0;
    for (sums, total) in sums.as_chunks::<PANEL>().0.iter().zip(totals) {
        let mut scaled = *sums;
        scaled.iter_mut().zip(&factors).for_each(|(sum, factor)| *sum *= factor);
        if add {
            total.iter_mut().zip(&scaled).for_each(|(total, scaled)| *total += scaled);
        } else {
            *total = scaled;
        }
    }
    if group + 1 == groups {
        complete(finish, sums.len() / PANEL);
    }
}

/// What follows after the last group.
#[inline(always)]
pub(super) fn complete(finish: &mut Finish<'_, '_>, rows: usize) {
    let Some(last) = &mut finish.last else { return };
    for (row, total) in finish.total.as_chunks::<PANEL>().0.iter().take(rows).enumerate() {
        let mut values = *total;
        if let Some(scale) = last.row_scales.get(row) {
            for value in &mut values {
                *value *= scale;
            }
        }
        values.iter_mut().zip(last.bias).for_each(|(value, bias)| *value += bias);
        if last.relu {
            // a comparison, because `max` would turn NaN into 0
            for value in &mut values {
                *value = if *value < 0.0 { 0.0 } else { *value };
            }
        }
        let y = last.y.row_mut(row);
        y.copy_from_slice(&values[..y.len()]);
    }
}

/// Sums that run beside each other for each output: one chain of few rows would wait for itself.
pub(in crate::kernels) const fn chains(rows: usize) -> usize {
    match rows {
        1 => 4,
        2 | 3 => 2,
        _ => 1,
    }
}

/// e4m3 bits, shifted to where f16 has them, are too small by the difference of the biases, 2^(15 − 7).
pub(super) const F8_UNIT: f32 = 256.0;

/// Fused multiply-adds in order of the columns: column `c` belongs to chain `c mod chains`, and chains are added in order.
/// e4m3 codes count in units of [`F8_UNIT`].
pub(super) fn float_tile(tile: &mut FloatTile<'_, '_>) {
    match tile.rows {
        // numbers that the compiler knows
        1 => float_chains::<4>(tile),
        2 | 3 => float_chains::<2>(tile),
        _ => float_chains::<1>(tile),
    }
}

fn float_chains<const CHAINS: usize>(tile: &mut FloatTile<'_, '_>) {
    debug_assert_eq!(CHAINS, chains(tile.rows));
    let blocks = tile.codes.len() / tile.storage.block_bytes() / tile.groups;
    let bytes = blocks * tile.storage.block_bytes();
    let unit = if tile.storage == Storage::F8 { F8_UNIT } else { 1.0 };
    for group in 0..tile.groups {
        let mut sums = [[0f32; TILE * PANEL]; CHAINS];
        let mut weights = [0f32; BLOCK * PANEL];
        let codes = tile.codes[group * bytes..][..bytes].chunks_exact(tile.storage.block_bytes());
        let activations =
            tile.activations[group * blocks * BLOCK * tile.rows..].chunks_exact(BLOCK * tile.rows);
        let zeros = tile.zeros.of_group(group);
        for (codes, activations) in codes.zip(activations) {
            decode_block(tile.storage, codes, zeros, &mut weights);
            if tile.storage == Storage::F8 {
                for w in &mut weights {
                    *w /= F8_UNIT;
                }
            }
            let columns = weights.chunks_exact(PANEL).zip(activations.chunks_exact(tile.rows));
            for (column, (weights, activations)) in columns.enumerate() {
                for (sums, x) in sums[column % CHAINS].chunks_exact_mut(PANEL).zip(activations) {
                    for (sum, w) in sums.iter_mut().zip(weights) {
                        *sum = x.mul_add(*w, *sum);
                    }
                }
            }
        }
        let (first, others) = sums.split_at_mut(1);
        for chain in others {
            first[0].iter_mut().zip(chain).for_each(|(sum, more)| *sum += *more);
        }
        let rows = tile.rows;
        finish_rows(&mut tile.finish, group, tile.groups, unit, &first[0][..rows * PANEL]);
    }
}

/// Values of a block before scaling, `[8 columns][32 outputs]`.
#[inline(always)]
pub(super) fn decode_block(storage: Storage, codes: &[u8], zeros: Zeros<'_>, out: &mut [f32; BLOCK * PANEL]) {
    match storage {
        Storage::F32 => {
            for (out, bytes) in out.iter_mut().zip(codes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        Storage::F16 => {
            for (out, bytes) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
                *out = f16::from_le_bytes(*bytes).to_f32();
            }
        }
        Storage::Bf16 => {
            for (out, bytes) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
                *out = bf16::from_le_bytes(*bytes).to_f32();
            }
        }
        Storage::F8 => {
            for (out, code) in out.iter_mut().zip(codes) {
                *out = f8_e4m3_to_f32(*code);
            }
        }
        Storage::Byte | Storage::Nibble => {
            for (column, out) in out.chunks_exact_mut(PANEL).enumerate() {
                let (half, j) = (column / 4, column % 4);
                for (output, out) in out.iter_mut().enumerate() {
                    let code = match storage {
                        Storage::Nibble => codes[output * 4 + j] >> (4 * half) & 15,
                        _ => codes[half * PANEL * 4 + output * 4 + j],
                    };
                    *out = (i32::from(code) - zeros.of(output)) as f32;
                }
            }
        }
    }
}
