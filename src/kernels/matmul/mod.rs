//! Products `y = x · Wᵀ` in `f32`.

#[allow(unsafe_code)]
mod dense;

pub(crate) use dense::matmul_transposed;
