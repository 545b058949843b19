//! tersor's side: one function per operation, so that this file is all there is to change when its interface does.

use std::num::NonZeroUsize;

use half::{bf16, f16};
use ndarray::Array2;
use tersor::kernels::convert::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use tersor::kernels::pack::{unpack, words_for};
use tersor::kernels::quantize::{IntRows, quantize_int_rows};
use tersor::{
    ActivationCodes, Activations, Bits, CompressedWeight, Epilogue, Granularity, Layer, LayoutKind,
    MagnitudeThreshold, Mask, Method, NofM, Observer, PackedWeight, Precision, RoundToNearest,
};

use crate::cases::{COLD_BYTES, Float, Pattern};
use crate::data;
use crate::race::Contender;

const NAME: &str = "tersor";

/// How products that quantize their activations do it.
const INT8: Activations = Activations::Int8(ActivationCodes::PerToken);

type Shape = [usize; 2];

/// The kernel, into memory that is there already.
pub(crate) fn quantize(w: &[f32], shape: Shape, bits: u8, group: Option<usize>) -> Contender<'_> {
    let [rows, cols] = shape;
    let (group, row_words) = (group.unwrap_or(cols), words_for(cols, bits));
    let room = (data::filled(rows * row_words, 0u32), data::filled(rows * cols / group, 0.0f32));
    let run = move |(words, scales): &mut (Vec<u32>, Vec<f32>)| {
        let out = IntRows { words, scales, zero_points: None };
        quantize_int_rows(w, cols, group, bits, Precision::F32, out).expect("finite weights");
    };
    let values = move |(words, scales): &(Vec<u32>, Vec<f32>)| {
        let mut codes = vec![0; rows * cols];
        for (row, codes) in codes.chunks_mut(cols).enumerate() {
            unpack(&words[row * row_words..(row + 1) * row_words], bits, 0, codes);
        }
        let zero = (1 << (bits - 1)) as f32;
        let groups = codes.chunks(group).zip(scales);
        groups.flat_map(|(codes, s)| codes.iter().map(move |c| (f32::from(*c) - zero) * s)).collect()
    };
    Contender::new(NAME, room, run, values)
}

/// The method, as it is called on a layer.
pub(crate) fn quantize_method(w: &[f32], shape: Shape, bits: u8, group: Option<usize>) -> Contender<'_> {
    compress("tersor RoundToNearest", w, shape, round_to_nearest(bits, group).observer(Observer::AbsMax))
}

pub(crate) fn quantize_mse(w: &[f32], shape: Shape, bits: u8, group: Option<usize>) -> Contender<'_> {
    compress(NAME, w, shape, round_to_nearest(bits, group).observer(Observer::Mse))
}

pub(crate) fn narrow(w: &[f32], to: Float) -> Contender<'_> {
    if to == Float::F16 {
        let run = |out: &mut Vec<f16>| f32_to_f16(w, out);
        Contender::new(NAME, data::filled(w.len(), f16::ZERO), run, |out| widened(out, f16_to_f32))
    } else {
        let run = |out: &mut Vec<bf16>| f32_to_bf16(w, out);
        Contender::new(NAME, data::filled(w.len(), bf16::ZERO), run, |out| widened(out, bf16_to_f32))
    }
}

pub(crate) fn widen(w: &[f32], from: Float) -> Contender<'_> {
    let out = data::filled(w.len(), 0.0);
    if from == Float::F16 {
        let mut codes = data::filled(w.len(), f16::ZERO);
        f32_to_f16(w, &mut codes);
        Contender::new(NAME, out, move |out| f16_to_f32(&codes, out), Vec::clone)
    } else {
        let mut codes = data::filled(w.len(), bf16::ZERO);
        f32_to_bf16(w, &mut codes);
        Contender::new(NAME, out, move |out| bf16_to_f32(&codes, out), Vec::clone)
    }
}

pub(crate) fn int8_linear<'a>(w: &[f32], x: &'a [f32], shape: Shape, cold: bool) -> Contender<'a> {
    product(packed(&encode(w, shape, &round_to_nearest(8, None)), INT8), x, cold)
}

/// `float` leaves the activations as they are.
pub(crate) fn int4_linear<'a>(
    w: &[f32],
    x: &'a [f32],
    shape: Shape,
    cold: bool,
    float: bool,
) -> Contender<'a> {
    let activations = if float { Activations::Float } else { INT8 };
    product(packed(&encode(w, shape, &round_to_nearest(4, Some(128))), activations), x, cold)
}

pub(crate) fn f32_linear<'a>(w: &[f32], x: &'a [f32], shape: Shape) -> Contender<'a> {
    let weight = CompressedWeight::from_f32(&shape, Precision::F32, w).expect("the right length");
    product(packed(&weight, Activations::Float), x, false)
}

/// The int8 product of a weight whose pruned values are zero.
pub(crate) fn sparse_linear<'a>(w: &[f32], x: &'a [f32], shape: Shape, pattern: Pattern) -> Contender<'a> {
    let layout = match pattern {
        Pattern::NinetyPercent => LayoutKind::Bitmask,
        Pattern::TwoOfFour => LayoutKind::NofM(NofM::new(2, 4).expect("a pattern")),
    };
    let mask = Mask::from_fn(shape[0], shape[1], |row, col| w[row * shape[1] + col] != 0.0);
    let layer = Layer { mask: Some(&mask), layout, ..layer(w, &shape) };
    let weight = round_to_nearest(8, None).compress(&layer).expect("finite weights").weight;
    product(packed(&weight, INT8), x, false)
}

/// Half of all values of the tensors zeroed in place, by one threshold.
pub(crate) fn prune(w: &[f32], shape: Shape) -> Contender<'_> {
    let tensor = shape[0] * shape[1];
    let drop = (w.len() / 2) as u64;
    let run = move |kept: &mut Vec<f32>| {
        let tensors: Vec<&[f32]> = kept.chunks(tensor).collect();
        let mut threshold = MagnitudeThreshold::of(drop, &tensors);
        kept.chunks_mut(tensor).for_each(|tensor| threshold.apply_next(tensor));
    };
    let restore = |kept: &mut Vec<f32>| kept.copy_from_slice(w);
    Contender::in_place(NAME, data::filled(w.len(), 0.0), restore, run, Vec::clone)
}

fn compress<'a>(name: &str, w: &'a [f32], shape: Shape, method: impl Method + 'a) -> Contender<'a> {
    let run = move |weight: &mut Option<CompressedWeight>| *weight = Some(encode(w, shape, &method));
    let dense = |weight: &Option<CompressedWeight>| weight.as_ref().map(|w| values(&w.dequantize()));
    Contender::new(name, None, run, move |weight| dense(weight).unwrap_or_default())
}

/// `x · Wᵀ`; if `cold`, with the next of many copies of the weight every time.
fn product(weight: PackedWeight, x: &[f32], cold: bool) -> Contender<'_> {
    let (rows, cols, bytes) = (weight.rows(), weight.cols(), weight.bytes());
    let weights = vec![weight; if cold { COLD_BYTES / bytes + 1 } else { 1 }];
    let mut turn = 0;
    let run = move |y: &mut Vec<f32>| {
        turn = (turn + 1) % weights.len();
        weights[turn].matmul_into(x, Epilogue::default(), y).expect("the right lengths");
    };
    Contender::new(NAME, data::filled(x.len() / cols * rows, 0.0), run, Vec::clone).with_weight_bytes(bytes)
}

fn packed(weight: &CompressedWeight, activations: Activations) -> PackedWeight {
    PackedWeight::new(weight, activations).expect("a product for this coding")
}

fn encode(w: &[f32], shape: Shape, method: &dyn Method) -> CompressedWeight {
    method.compress(&layer(w, &shape)).expect("finite weights").weight
}

fn layer<'a>(values: &'a [f32], shape: &'a Shape) -> Layer<'a> {
    Layer::new(shape, values, Precision::F32)
}

fn round_to_nearest(bits: u8, group: Option<usize>) -> RoundToNearest {
    let granularity = group.and_then(NonZeroUsize::new).map_or(Granularity::Channel, Granularity::Group);
    RoundToNearest::int(Bits::new(bits).expect("2 to 8 bits")).granularity(granularity)
}

fn widened<T>(codes: &[T], widen: impl Fn(&[T], &mut [f32])) -> Vec<f32> {
    let mut values = vec![0.0; codes.len()];
    widen(codes, &mut values);
    values
}

fn values(matrix: &Array2<f32>) -> Vec<f32> {
    matrix.iter().copied().collect()
}
