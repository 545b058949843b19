//! Products `y = x · Wᵀ` in `f32`.

mod dense;

pub(crate) use dense::matmul_transposed;
