//! Products `y = x · Wᵀ`: of plain matrices, and of activations with weights that were prepacked once.
//!
//! Weights lie in panels of 32 outputs ([`panels`]), activations in tiles of up to 12 rows ([`activations`]), and a
//! product ([`product`]) runs every tile ([`tile`]) over every panel, in the order of a [`schedule`]. Sparse weights have arrangements of their own
//! ([`sparse`]).

pub(in crate::kernels) mod activations;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod codes;
#[cfg(target_arch = "x86_64")]
mod codes_avx512;
mod decode;
mod dense;
#[cfg(target_arch = "x86_64")]
mod floats_avx2;
#[cfg(target_arch = "x86_64")]
mod ints_avx2;
pub(in crate::kernels) mod output;
pub(crate) mod panels;
mod portable;
mod product;
pub(crate) mod rows;
#[cfg(target_arch = "x86_64")]
mod rows_avx512;
pub(in crate::kernels) mod schedule;
pub(crate) mod sparse;
pub(in crate::kernels) mod tile;

pub use activations::ActivationCodes;
pub(crate) use dense::matmul_transposed;
pub use product::Epilogue;
pub(crate) use product::{Product, float_products, int_products};
