//! Rounding to codes and back, one run of values under one scale at a time.

mod portable;

pub(crate) use portable::{dequantize_f8, dequantize_int, quantize_f8, quantize_int, quantize_one};
