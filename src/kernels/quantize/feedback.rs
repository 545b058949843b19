//! Rounding and pruning column by column, where each column makes good what became of earlier ones.
//!
//! With `H = U·Uᵀ` the error of an output is `‖Uᵀ(w − q)‖²`, whose `j`-th term holds no later column than `j`: it is least for the
//! `q_j` that is nearest to `w_j + Σ_{i<j} U_ij (w_i − q_i) / U_jj`.

use std::ops::Range;

use super::portable::{clamp, e4m3, e4m3_value, with_precision};
use super::{Codes, F8_E4M3_MAX, ROUND};
use crate::dtype::Precision;
use crate::kernels::level::{Isa, multiversion};
use crate::kernels::update::{InTurn, PANEL};

/// Some neighbouring columns of 32 rows.
pub(crate) struct Feedback<'a> {
    pub(crate) isa: Isa,
    /// What values are rounded to.
    pub(crate) precision: Precision,
    /// `U`, `[size, size]`.
    pub(crate) factor: &'a [f32],
    pub(crate) size: usize,
    /// Columns to round.
    pub(crate) columns: Range<usize>,
    /// `[columns][32]`.
    pub(crate) weights: &'a [f32],
    /// A bit for every row of every column; what is not kept becomes zero. Empty: all is kept.
    pub(crate) kept: &'a [u32],
    /// `Σ U_ij (w_i − q_i)` over all earlier columns, `[columns and later ones][32]`: completed for the later ones.
    pub(crate) sums: &'a mut [f32],
    /// `w − q`, `[columns][32]`.
    pub(crate) errors: &'a mut [f32],
    /// What `U·Uᵀ` has more than `H` on the diagonal, of every column.
    pub(crate) damping: &'a [f32],
    pub(crate) squares: &'a mut Squares,
}

/// What columns become.
pub(crate) enum Target<'a> {
    Codes(CodeColumns<'a>),
    /// Values of the precision, `[columns][32]`.
    Values(&'a mut [f32]),
}

/// Columns of codes.
pub(crate) struct CodeColumns<'a> {
    pub(crate) codes: Codes,
    /// Scales and zero points of a column: index of 32 of them.
    pub(crate) groups: &'a [usize],
    pub(crate) scales: &'a [f32],
    pub(crate) zero_points: &'a [f32],
    /// `[columns][32]`: integers in two's complement, or e4m3.
    pub(crate) out: &'a mut [u8],
}

/// The squared error of the output of 32 rows: `Σ_j (Uᵀ(w − q))_j²` over the columns so far, and how much of it is damping.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Squares {
    pub(crate) all: [f64; PANEL],
    pub(crate) damping: [f64; PANEL],
}

multiversion! {
    fn round_any(block: Feedback<'_>, to: Target<'_>) = round_columns
}

pub(crate) fn round_with_feedback(block: Feedback<'_>, to: Target<'_>) {
    round_any(block.isa, block, to);
}

#[inline(always)]
fn round_columns(block: Feedback<'_>, to: Target<'_>) {
    // constants for the loops over rows
    with_precision!(block.precision, |p| match to {
        Target::Values(out) => go_through(
            block,
            out,
            |_| (),
            |(), _, x| {
                let value = p.round(x);
                (value, value)
            },
            |(), _| 0.0,
        ),
        Target::Codes(CodeColumns { codes, groups, scales, zero_points, out }) => {
            let (scales, zero_points) = (scales.as_chunks::<PANEL>().0, zero_points.as_chunks::<PANEL>().0);
            let of_column = |at: usize| (&scales[groups[at]], &zero_points[groups[at]]);
            let pruned = |(_, zero_points): Parameters<'_>, lane: usize| zero_points[lane] as i8 as u8;
            match codes {
                Codes::Int { bits, .. } => {
                    let half = (1i32 << (bits - 1)) as f32;
                    let round = |(scales, zero_points): Parameters<'_>, lane: usize, x: f32| {
                        let (scale, zero_point) = (scales[lane], zero_points[lane]);
                        let rounded = clamp(x / scale + zero_point, -half, half - 1.0) + ROUND;
                        (rounded.to_bits() as u8, p.round((rounded - ROUND - zero_point) * scale))
                    };
                    go_through(block, out, of_column, round, pruned);
                }
                Codes::F8E4M3 => {
                    let round = |(scales, _): Parameters<'_>, lane: usize, x: f32| {
                        let code = e4m3(clamp(x / scales[lane], -F8_E4M3_MAX, F8_E4M3_MAX) + 0.0);
                        (code, p.round(e4m3_value(code) * scales[lane]))
                    };
                    go_through(block, out, of_column, round, pruned);
                }
            }
        }
    });
}

/// Scales and zero points of 32 rows.
type Parameters<'a> = (&'a [f32; PANEL], &'a [f32; PANEL]);

/// `round` gives what a value becomes and the value that this stands for, with regard to what `of_column` gives of its column;
/// `pruned` what becomes of one that is not kept.
#[inline(always)]
fn go_through<P: Copy, T>(
    block: Feedback<'_>,
    out: &mut [T],
    of_column: impl Fn(usize) -> P,
    round: impl Fn(P, usize, f32) -> (T, f32),
    pruned: impl Fn(P, usize) -> T,
) {
    let Feedback { isa, factor, size, columns, weights, kept, sums, errors, damping, squares, .. } = block;
    let weights = weights.as_chunks::<PANEL>().0;
    let out = out.as_chunks_mut::<PANEL>().0.iter_mut();
    let errors = errors.as_chunks_mut::<PANEL>().0.iter_mut();
    let mut in_turn = InTurn::new(isa, columns.len(), sums);
    for (at, (out, errors)) in out.zip(errors).enumerate() {
        let row = &factor[(columns.start + at) * (size + 1)..];
        let (now, parameters) = (*in_turn.sums(), of_column(at));
        let kept = kept.get(at).copied().unwrap_or(u32::MAX);
        for (r, (out, error)) in out.iter_mut().zip(errors.iter_mut()).enumerate() {
            let w = weights[at][r];
            let (code, value) = round(parameters, r, w + now[r] / row[0]);
            let keep = kept >> r & 1 == 1;
            *out = if keep { code } else { pruned(parameters, r) };
            *error = w - if keep { value } else { 0.0 };
        }
        let damping = f64::from(damping[at]);
        for (r, error) in errors.iter().enumerate() {
            let (error, term) = (f64::from(*error), f64::from(row[0].mul_add(*error, now[r])));
            squares.all[r] += term * term;
            squares.damping[r] += damping * (error * error);
        }
        in_turn.finish(&row[1..], errors);
    }
}

/// The values that columns would have if they were not rounded at all, but made good what happened to earlier ones.
///
/// `weights` is `[columns][32]` and becomes that; `sums`, as in [`Feedback`], is used up.
pub(crate) fn expected_weights(
    isa: Isa,
    factor: &[f32],
    size: usize,
    columns: Range<usize>,
    weights: &mut [f32],
    sums: &mut [f32],
) {
    let weights = weights.as_chunks_mut::<PANEL>().0;
    let mut in_turn = InTurn::new(isa, weights.len(), sums);
    for (at, weights) in weights.iter_mut().enumerate() {
        let row = &factor[(columns.start + at) * (size + 1)..];
        let made_good = in_turn.sums().map(|sum| sum / row[0]);
        weights.iter_mut().zip(made_good).for_each(|(weight, made_good)| *weight += made_good);
        in_turn.finish(&row[1..], &made_good.map(|x| -x));
    }
}
