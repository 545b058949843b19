//! Products with sparse weights, at the cost of what is kept: row by row with float activations ([`rows`]), and by slices of 16
//! rows with 8-bit ones ([`slices`]).

pub(crate) mod rows;
#[cfg(target_arch = "x86_64")]
mod rows_avx512;
pub(crate) mod slices;
#[cfg(target_arch = "x86_64")]
mod slices_avx512;
