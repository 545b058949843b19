//! tersor's side: one function per operation, so that this file is all there is to change when its interface does.

use std::num::NonZeroUsize;

use ndarray::{Array2, ArrayView2};
use tersor::{
    Bits, CompressedWeight, FloatCast, Granularity, Layer, LayoutKind, MagnitudeThreshold, Mask, Method,
    NofM, Observer, Precision, RoundToNearest,
};

use crate::cases::{COLD_BYTES, Float, Pattern};
use crate::race::Contender;

const NAME: &str = "tersor";

type Shape = [usize; 2];

pub(crate) fn quantize(w: &[f32], shape: Shape, bits: u8, group: Option<usize>) -> Contender<'_> {
    compress(w, shape, round_to_nearest(bits, group).observer(Observer::AbsMax))
}

pub(crate) fn quantize_mse(w: &[f32], shape: Shape, bits: u8, group: Option<usize>) -> Contender<'_> {
    compress(w, shape, round_to_nearest(bits, group).observer(Observer::Mse))
}

pub(crate) fn narrow(w: &[f32], shape: Shape, to: Float) -> Contender<'_> {
    compress(w, shape, FloatCast::to(precision(to)))
}

pub(crate) fn widen(w: &[f32], shape: Shape, from: Float) -> Contender<'_> {
    let weight = CompressedWeight::from_f32(&shape, precision(from), w).expect("the right length");
    Contender::new(NAME, Array2::default((0, 0)), move |y| *y = weight.dequantize(), values)
}

pub(crate) fn int8_linear<'a>(w: &'a [f32], x: &'a [f32], shape: Shape) -> Contender<'a> {
    product(vec![encode(w, shape, &round_to_nearest(8, None))], x)
}

pub(crate) fn int8_linear_cold<'a>(w: &'a [f32], x: &'a [f32], shape: Shape) -> Contender<'a> {
    product(copies(encode(w, shape, &round_to_nearest(8, None))), x)
}

pub(crate) fn int4_linear<'a>(w: &'a [f32], x: &'a [f32], shape: Shape) -> Contender<'a> {
    product(vec![encode(w, shape, &round_to_nearest(4, Some(128)))], x)
}

pub(crate) fn int4_linear_cold<'a>(w: &'a [f32], x: &'a [f32], shape: Shape) -> Contender<'a> {
    product(copies(encode(w, shape, &round_to_nearest(4, Some(128)))), x)
}

pub(crate) fn f32_linear<'a>(w: &'a [f32], x: &'a [f32], shape: Shape) -> Contender<'a> {
    product(vec![CompressedWeight::from_f32(&shape, Precision::F32, w).expect("the right length")], x)
}

/// The int8 product of a weight whose pruned values are zero.
pub(crate) fn sparse_linear<'a>(w: &'a [f32], x: &'a [f32], shape: Shape, pattern: Pattern) -> Contender<'a> {
    let layout = match pattern {
        Pattern::Dense => LayoutKind::Dense,
        Pattern::NinetyPercent => LayoutKind::Bitmask,
        Pattern::TwoOfFour => LayoutKind::NofM(NofM::new(2, 4).expect("a pattern")),
    };
    let mask = Mask::from_fn(shape[0], shape[1], |row, col| w[row * shape[1] + col] != 0.0);
    let layer = Layer { mask: Some(&mask), layout, ..layer(w, &shape) };
    let method = round_to_nearest(8, None);
    product(vec![method.compress(&layer).expect("finite weights").weight], x)
}

/// Half of all values dropped from copies of the tensors, by one threshold.
pub(crate) fn prune(w: &[f32], shape: Shape, tensors: usize) -> Contender<'_> {
    let tensor = shape[0] * shape[1];
    let drop = (tensors * tensor / 2) as u64;
    let run = move |kept: &mut Vec<f32>| {
        let find = |show: &mut dyn FnMut(&[f32])| {
            w.chunks(tensor).for_each(show);
            Ok::<(), std::convert::Infallible>(())
        };
        let Ok(mut threshold) = MagnitudeThreshold::find(drop, find);
        for (w, kept) in w.chunks(tensor).zip(kept.chunks_mut(tensor)) {
            let mask = threshold.next_mask(shape[0], shape[1], w).expect("the right length");
            kept.copy_from_slice(w);
            mask.apply(kept).expect("the same shape");
        }
    };
    Contender::new(NAME, vec![0.0; w.len()], run, Vec::clone)
}

fn compress<'a>(w: &'a [f32], shape: Shape, method: impl Method + 'a) -> Contender<'a> {
    let run = move |weight: &mut Option<CompressedWeight>| *weight = Some(encode(w, shape, &method));
    let dense = |weight: &Option<CompressedWeight>| weight.as_ref().map(|w| values(&w.dequantize()));
    Contender::new(NAME, None, run, move |weight| dense(weight).unwrap_or_default())
}

/// `x · Wᵀ`, with the next of the weights every time.
fn product(weights: Vec<CompressedWeight>, x: &[f32]) -> Contender<'_> {
    let cols = weights[0].cols();
    let x = ArrayView2::from_shape((x.len() / cols, cols), x).expect("whole rows");
    let mut turn = 0;
    let run = move |y: &mut Array2<f32>| {
        turn = (turn + 1) % weights.len();
        *y = weights[turn].matmul(x).expect("the right columns");
    };
    Contender::new(NAME, Array2::default((0, 0)), run, values)
}

fn copies(weight: CompressedWeight) -> Vec<CompressedWeight> {
    let count = COLD_BYTES / weight.form().bytes().total() as usize + 1;
    vec![weight; count]
}

fn encode(w: &[f32], shape: Shape, method: &dyn Method) -> CompressedWeight {
    method.compress(&layer(w, &shape)).expect("finite weights").weight
}

fn layer<'a>(values: &'a [f32], shape: &'a Shape) -> Layer<'a> {
    Layer { shape, values, mask: None, precision: Precision::F32, layout: LayoutKind::Dense }
}

fn round_to_nearest(bits: u8, group: Option<usize>) -> RoundToNearest {
    let granularity = group.and_then(NonZeroUsize::new).map_or(Granularity::Channel, Granularity::Group);
    RoundToNearest::int(Bits::new(bits).expect("2 to 8 bits")).granularity(granularity)
}

fn precision(float: Float) -> Precision {
    match float {
        Float::F32 => Precision::F32,
        Float::F16 => Precision::F16,
        Float::Bf16 => Precision::Bf16,
    }
}

fn values(matrix: &Array2<f32>) -> Vec<f32> {
    matrix.iter().copied().collect()
}
