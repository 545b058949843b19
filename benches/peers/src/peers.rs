//! The other libraries that are written in Rust.

use std::mem::MaybeUninit;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmUninitOptions, PackedBMatrix, QuantParams};
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;

use crate::cases::{COLD_BYTES, Float};
use crate::data;
use crate::race::Contender;

type Shape = [usize; 2];

/// Values that one task converts at a time, for libraries that leave threads to their caller.
const CHUNK: usize = 1 << 16;

/// candle's block formats have groups of 32, and are compared with no wider ones.
pub(crate) fn candle_quantize(
    w: &[f32],
    shape: Shape,
    bits: u8,
    group: Option<usize>,
) -> Option<Contender<'_>> {
    let kind = match (bits, group) {
        (8, Some(32)) => GgmlDType::Q8_0,
        (4, _) => GgmlDType::Q4_0,
        _ => return None,
    };
    let w = tensor(w, shape);
    let run = move |q: &mut Option<QTensor>| *q = Some(QTensor::quantize(&w, kind).expect("whole blocks"));
    let dense = |q: &Option<QTensor>| {
        q.as_ref().map(|q| values(&q.dequantize(&Device::Cpu).expect("a CPU tensor"))).unwrap_or_default()
    };
    Some(Contender::new(format!("candle {kind:?}, groups of 32"), None, run, dense))
}

pub(crate) fn half_narrow(w: &[f32], to: Float) -> Contender<'_> {
    if to == Float::F16 {
        let run = |out: &mut Vec<f16>| chunked(w, out, |w, out| out.convert_from_f32_slice(w));
        Contender::new("half", data::filled(w.len(), f16::ZERO), run, |out| out.to_f32_vec())
    } else {
        let run = |out: &mut Vec<bf16>| chunked(w, out, |w, out| out.convert_from_f32_slice(w));
        Contender::new("half", data::filled(w.len(), bf16::ZERO), run, |out| out.to_f32_vec())
    }
}

pub(crate) fn half_widen(w: &[f32], from: Float) -> Contender<'_> {
    let out = data::filled(w.len(), 0.0);
    if from == Float::F16 {
        let w: Vec<f16> = w.iter().map(|v| f16::from_f32(*v)).collect();
        Contender::new(
            "half",
            out,
            move |out| chunked(&w, out, |w, out| w.convert_to_f32_slice(out)),
            Vec::clone,
        )
    } else {
        let w: Vec<bf16> = w.iter().map(|v| bf16::from_f32(*v)).collect();
        Contender::new(
            "half",
            out,
            move |out| chunked(&w, out, |w, out| w.convert_to_f32_slice(out)),
            Vec::clone,
        )
    }
}

/// 8 bits in groups of 32, 4 bits in groups of 32 within super-blocks of 256; many copies of the weight if `cold`.
pub(crate) fn candle_linear<'a>(w: &[f32], x: &[f32], shape: Shape, bits: u8, cold: bool) -> Contender<'a> {
    let kind = if bits == 8 { GgmlDType::Q8_0 } else { GgmlDType::Q4K };
    let (w, x) = (tensor(w, shape), tensor(x, [x.len() / shape[1], shape[1]]));
    let first = QTensor::quantize(&w, kind).expect("whole blocks");
    let stored = first.data().expect("a CPU tensor").into_owned();
    let copy = || {
        let storage =
            candle_core::quantized::QStorage::from_data(stored.as_slice().into(), &Device::Cpu, kind);
        QTensor::new(storage.expect("a CPU tensor"), (shape[0], shape[1])).expect("the same shape")
    };
    let count = if cold { COLD_BYTES / stored.len() + 1 } else { 1 };
    let weights: Vec<QMatMul> =
        (0..count).map(|_| QMatMul::from_qtensor(copy()).expect("a CPU tensor")).collect();
    let mut turn = 0;
    let run = move |y: &mut Option<Tensor>| {
        turn = (turn + 1) % weights.len();
        *y = Some(weights[turn].forward(&x).expect("the right columns"));
    };
    let dense = |y: &Option<Tensor>| y.as_ref().map(values).unwrap_or_default();
    Contender::new(format!("candle {kind:?}"), None, run, dense)
}

/// u8 × i8 → i32: quantizing the activations and scaling the result are left out, in rten's favour.
pub(crate) fn rten_linear<'a>(w: &[f32], x: &[f32], shape: Shape) -> Vec<Contender<'a>> {
    let [rows, cols] = shape;
    let batch = x.len() / cols;
    let (weight, scales): (Vec<Vec<i8>>, Vec<f32>) = w.chunks_exact(cols).map(data::int8).unzip();
    let (codes, x_scale) = data::int8(x);
    let x = NdTensor::from_data(
        [batch, cols],
        codes.iter().map(|c| (i16::from(*c) + 128) as u8).collect::<Vec<_>>(),
    );
    let weight = NdTensor::from_data([rows, cols], weight.concat());
    let prepacked = GemmExecutor::<u8, i8, i32>::default().prepack_b(weight.view().transposed());
    let contender = |name: &str, input: RtenWeight| {
        let (x, scales, zero_points) = (x.clone(), scales.clone(), vec![128u8; batch]);
        let gemm = GemmExecutor::<u8, i8, i32>::default();
        let run = move |y: &mut Vec<MaybeUninit<i32>>| {
            let options = GemmUninitOptions {
                alpha: 1.0,
                bias: None,
                a_quant: Some(QuantParams { zero_point: &zero_points }),
                b_quant: None,
            };
            gemm.gemm_uninit(y, GemmInputA::Unpacked(x.view()), input.view(), options)
                .expect("shapes that fit");
        };
        let dense = move |y: &Vec<MaybeUninit<i32>>| {
            // SAFETY: the product has written every element.
            let sums = y.iter().map(|sum| unsafe { sum.assume_init() });
            sums.zip(scales.iter().cycle()).map(|(sum, scale)| sum as f32 * scale * x_scale).collect()
        };
        Contender::new(name, data::filled(batch * rows, MaybeUninit::uninit()), run, dense)
    };
    let mut all = vec![contender("rten-gemm, i32 out", RtenWeight::Packed(prepacked))];
    if batch == 1 {
        all.push(contender("rten-gemm unpacked, i32 out", RtenWeight::Plain(weight)));
    }
    all
}

enum RtenWeight {
    Packed(PackedBMatrix<i8>),
    Plain(NdTensor<i8, 2>),
}

impl RtenWeight {
    fn view(&self) -> GemmInputB<'_, i8> {
        match self {
            Self::Packed(weight) => GemmInputB::Packed(weight),
            Self::Plain(weight) => GemmInputB::Unpacked(weight.view().transposed()),
        }
    }
}

pub(crate) fn gemm_linear<'a>(w: &'a [f32], x: &'a [f32], shape: Shape, threads: usize) -> Contender<'a> {
    let [rows, cols] = shape;
    let batch = x.len() / cols;
    let parallelism = if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    let (stride, one) = (cols as isize, 1);
    let run = move |y: &mut Vec<f32>| {
        // SAFETY: y is [batch, rows], x is [batch, cols] and w is [rows, cols], all row-major.
        unsafe {
            gemm::gemm(
                batch,
                rows,
                cols,
                y.as_mut_ptr(),
                one,
                rows as isize,
                false,
                x.as_ptr(),
                one,
                stride,
                w.as_ptr(),
                stride,
                one,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
    };
    Contender::new("gemm", data::filled(batch * rows, 0.0), run, Vec::clone)
}

/// Select the median of all magnitudes, and zero what is below: on one thread.
pub(crate) fn std_prune(w: &[f32]) -> Contender<'_> {
    let mut magnitudes = data::filled(w.len(), 0.0);
    let run = move |kept: &mut Vec<f32>| data::prune_half(kept, &mut magnitudes);
    let restore = |kept: &mut Vec<f32>| kept.copy_from_slice(w);
    Contender::in_place("std select_nth_unstable", data::filled(w.len(), 0.0), restore, run, Vec::clone)
}

fn chunked<A: Sync, B: Send>(from: &[A], to: &mut [B], convert: impl Fn(&[A], &mut [B]) + Sync) {
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| convert(from, to));
}

fn tensor(values: &[f32], shape: Shape) -> Tensor {
    Tensor::from_slice(values, (shape[0], shape[1]), &Device::Cpu).expect("the right length")
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("f32 values")
}
