//! Rows of sparse weights in AVX-512: the processor spreads kept values out to where their columns are.

use std::arch::asm;
use std::arch::x86_64::{
    __m512, __mmask16, _mm_loadu_si128, _mm256_loadu_si256, _mm512_add_ps, _mm512_castsi512_ps,
    _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32,
};

use super::rows::{BLOCK, ROWS, Rows, SparseRows, SparseValues};
use crate::kernels::level::Avx512;
use crate::kernels::matmul::portable::chains;
use crate::kernels::matmul::rows_avx512::sum_lanes;

/// Calls `$function::<ROWS, CHAINS>` for the number of rows of activations.
macro_rules! by_rows {
    ($rows:expr, $function:ident, $arguments:tt) => {
        match $rows {
            1 => $function::<1, { chains(1) }> $arguments,
            2 => $function::<2, { chains(2) }> $arguments,
            3 => $function::<3, { chains(3) }> $arguments,
            4 => $function::<4, { chains(4) }> $arguments,
            5 => $function::<5, { chains(5) }> $arguments,
            6 => $function::<6, { chains(6) }> $arguments,
            7 => $function::<7, { chains(7) }> $arguments,
            ROWS => $function::<ROWS, { chains(ROWS) }> $arguments,
            rows => unreachable!("{rows} rows of activations"),
        }
    };
}

#[target_feature(enable = "popcnt")]
fn count_ones(masks: &[u64]) -> usize {
    masks.iter().map(|mask| mask.count_ones() as usize).sum()
}

const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;
const INT: u8 = 3;

/// Sums of a row of any values.
pub(super) fn float_row(_: Avx512, weight: &SparseRows, row: usize, x: &Rows<'_, f32>, sums: &mut [f32]) {
    assert!(sums.len() == x.count && x.x.len() >= x.count * x.width && x.width >= weight.blocks() * BLOCK);
    let (masks, mut next) = (weight.row_masks(row), weight.starts[row]);
    let (at, width) = (x.x.as_ptr(), x.width);
    // SAFETY: the token proves that the instructions exist. The rows of `x` are `width` long and hold all blocks;
    // `SparseRows::new` holds as many values as the masks have bits, and a register more.
    unsafe {
        match &weight.values {
            SparseValues::F32(v) => {
                by_rows!(x.count, float_rows_f32, (masks, v[next..].as_ptr().cast(), at, width, 1.0, sums));
            }
            SparseValues::F16(v) => {
                by_rows!(x.count, float_rows_f16, (masks, v[next..].as_ptr().cast(), at, width, 1.0, sums));
            }
            SparseValues::Bf16(v) => {
                by_rows!(x.count, float_rows_bf16, (masks, v[next..].as_ptr().cast(), at, width, 1.0, sums));
            }
            SparseValues::Int { codes, scales, group } => {
                let groups = weight.cols.div_ceil(*group);
                sums.fill(0.0);
                for index in 0..groups {
                    let blocks =
                        index * group / BLOCK..((index + 1) * group).min(weight.cols).div_ceil(BLOCK);
                    let scale = scales[row * groups + index];
                    let masks = &masks[blocks.clone()];
                    let at = at.add(blocks.start * BLOCK);
                    by_rows!(
                        x.count,
                        float_rows_int,
                        (masks, codes[next..].as_ptr().cast(), at, width, scale, sums)
                    );
                    next += count_ones(masks);
                }
            }
        }
    }
}

macro_rules! float_rows {
    ($name:ident, $kind:expr, $size:literal) => {
        /// Adds `scale` times the sums of all blocks, as [`super::rows::float_row`] does.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c,popcnt")]
        unsafe fn $name<const N: usize, const CHAINS: usize>(
            masks: &[u64],
            mut value: *const u8,
            x: *const f32,
            width: usize,
            scale: f32,
            sums: &mut [f32],
        ) {
            let mut chains = [[_mm512_setzero_ps(); N]; CHAINS];
            for (block, mask) in masks.iter().enumerate() {
                for quarter in 0..4 {
                    let lanes = (mask >> (quarter * 16)) as __mmask16;
                    // SAFETY: the caller's promise: a value for every bit and 16 more, 64 activations for every mask.
                    unsafe {
                        let weights = expand(lanes, load::<{ $kind }>(value));
                        value = value.add(lanes.count_ones() as usize * $size);
                        let x = x.add(block * BLOCK + quarter * 16);
                        for (row, sum) in chains[quarter % CHAINS].iter_mut().enumerate() {
                            *sum = _mm512_fmadd_ps(_mm512_loadu_ps(x.add(row * width)), weights, *sum);
                        }
                    }
                }
            }
            for (row, sum) in sums.iter_mut().enumerate() {
                let all = chains.iter().fold(_mm512_setzero_ps(), |all, sums| _mm512_add_ps(all, sums[row]));
                *sum += sum_lanes(_mm512_mul_ps(all, _mm512_set1_ps(scale)));
            }
        }
    };
}

float_rows!(float_rows_f32, F32, 4);
float_rows!(float_rows_f16, F16, 2);
float_rows!(float_rows_bf16, BF16, 2);
float_rows!(float_rows_int, INT, 1);

/// The first values, each where a bit is, and zeros elsewhere.
///
/// With the intrinsic, the compiler lets the instruction read memory, which AMD's processors do in microcode, many times slower
/// than from a register.
#[target_feature(enable = "avx512f")]
#[inline]
fn expand(lanes: __mmask16, values: __m512) -> __m512 {
    let spread;
    // SAFETY: the instruction exists, and does nothing but write its output.
    unsafe {
        asm!(
            "vexpandps {spread}{{{lanes}}}{{z}}, {values}",
            spread = lateout(zmm_reg) spread,
            lanes = in(kreg) lanes,
            values = in(zmm_reg) values,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    spread
}

/// Sixteen values, as floats.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
#[inline]
unsafe fn load<const KIND: u8>(from: *const u8) -> __m512 {
    // SAFETY: the caller's promise that 16 values can be read.
    unsafe {
        match KIND {
            F32 => _mm512_loadu_ps(from.cast()),
            F16 => _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())),
            BF16 => {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
            _ => _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))),
        }
    }
}
