use super::{BLOCK, Pivot};

/// Factorizes one block, `[size, size]`; pivots have to be above `least`.
#[inline(always)]
pub(super) fn factor_block(block: &mut [f32], size: usize, least: &[f32]) -> Result<(), Pivot> {
    let mut column = [0f32; BLOCK];
    for j in (0..size).rev() {
        let value = block[j * size + j];
        if !(value > least[j] && value.is_finite()) {
            return Err(Pivot { index: j, value });
        }
        let pivot = value.sqrt();
        block[j * size + j] = pivot;
        for (i, to) in column[..j].iter_mut().enumerate() {
            let x = &mut block[i * size + j];
            *x /= pivot;
            *to = *x;
        }
        for (i, x) in column[..j].iter().enumerate() {
            let factor = -x;
            let row = &mut block[i * size + i..i * size + j];
            row.iter_mut().zip(&column[i..j]).for_each(|(to, x)| *to = factor.mul_add(*x, *to));
        }
    }
    Ok(())
}

#[inline(always)]
pub(super) fn subtract(from: &mut [f32], sums: &[f32]) {
    from.iter_mut().zip(sums).for_each(|(to, sum)| *to -= sum);
}
