/// `y[b, y_offset + r] = Σ_c x[b, c] · w[r, c]` for every batch row `b` and weight row `r`, on the calling thread.
///
/// # Shapes
/// `x` is `[batch, cols]`, `w` is `[rows, cols]`, both row-major; `y` is `[rows, batch]`, row-major: each tile of weight
/// rows writes a contiguous piece of `yᵀ`, so that tiles can be computed by different threads without sharing.
///
/// # Panics
/// When a slice is shorter than its shape.
pub(crate) fn matmul_transposed(x: &[f32], w: &[f32], batch: usize, rows: usize, cols: usize, y: &mut [f32]) {
    assert!(x.len() >= batch * cols && w.len() >= rows * cols && y.len() >= rows * batch);
    if batch == 0 || rows == 0 {
        return;
    }
    if cols == 0 {
        y[..rows * batch].fill(0.0);
        return;
    }
    let [cols_stride, batch_stride] = [cols as isize, batch as isize];
    // SAFETY: the assertion above bounds every access: the destination is rows × batch with unit column stride, the
    // left side is w (rows × cols, row stride cols), the right side is xᵀ (cols × batch: element (c, b) at b·cols + c).
    unsafe {
        gemm::gemm(
            rows,
            batch,
            cols,
            y.as_mut_ptr(),
            1,
            batch_stride,
            false,
            w.as_ptr(),
            1,
            cols_stride,
            x.as_ptr(),
            cols_stride,
            1,
            0.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_definition() {
        for (batch, rows, cols) in [(0, 3, 4), (2, 0, 4), (2, 3, 0), (1, 1, 1), (3, 5, 7), (17, 33, 65)] {
            let x: Vec<f32> = (0..batch * cols).map(|i| ((i * 7) % 13) as f32 - 6.0).collect();
            let w: Vec<f32> = (0..rows * cols).map(|i| ((i * 5) % 11) as f32 - 5.0).collect();
            let mut y = vec![f32::NAN; rows * batch];
            matmul_transposed(&x, &w, batch, rows, cols, &mut y);
            for r in 0..rows {
                for b in 0..batch {
                    // small integers: every order of summation gives the same f32
                    let sum: f32 = (0..cols).map(|c| x[b * cols + c] * w[r * cols + c]).sum();
                    assert_eq!(y[r * batch + b], sum);
                }
            }
        }
    }
}
