//! Slices of numbers seen as the little-endian bytes of a file, and back, without a copy where the machine allows it.

use std::borrow::Cow;

use half::{bf16, f16};

/// A number without padding and invalid bit patterns, which can be seen as its bytes.
///
/// # Safety
/// Every bit pattern of `Self` is valid, and none of its bytes is padding.
pub(crate) unsafe trait Number: Copy {
    /// Its little-endian bytes, on a machine that keeps them in another order.
    fn append_le_bytes(self, out: &mut Vec<u8>);
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        // SAFETY: a plain number.
        unsafe impl Number for $number {
            fn append_le_bytes(self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
        }
    )*};
}
numbers!(u16, u32, u64, f32, f16, bf16);

/// The little-endian bytes of some numbers.
pub(crate) fn le_bytes<T: Number>(values: &[T]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        // SAFETY: the same memory, of which every byte is initialized; `u8` needs no alignment.
        Cow::Borrowed(unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) })
    } else {
        let mut bytes = Vec::with_capacity(size_of_val(values));
        for v in values {
            v.append_le_bytes(&mut bytes);
        }
        Cow::Owned(bytes)
    }
}

/// The memory of some floats, to read the bytes of a file into; `None` on a machine of another byte order.
pub(crate) fn le_bytes_mut(values: &mut [f32]) -> Option<&mut [u8]> {
    let bytes = size_of_val(values);
    cfg!(target_endian = "little").then(|| {
        // SAFETY: the same memory, borrowed exclusively; every bit pattern of its bytes is a valid `f32`.
        unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), bytes) }
    })
}

/// The floats that these little-endian bytes are; `None` when they do not stand at an address of floats, or the machine
/// has another byte order.
pub(crate) fn floats(bytes: &[u8]) -> Option<&[f32]> {
    // SAFETY: every bit pattern is a valid `f32`.
    match unsafe { bytes.align_to::<f32>() } {
        ([], floats, []) if cfg!(target_endian = "little") => Some(floats),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_a_file() {
        assert_eq!(*le_bytes(&[1u32, 0x0203_0405]), [1, 0, 0, 0, 5, 4, 3, 2]);
        assert_eq!(*le_bytes(&[f16::ONE]), [0x00, 0x3c]);
        assert!(le_bytes::<f32>(&[]).is_empty());
        let mut floats_read = [0f32; 2];
        if let Some(bytes) = le_bytes_mut(&mut floats_read) {
            bytes.copy_from_slice(&[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]);
            assert_eq!(floats_read, [1.0, -2.0]);
        }
    }

    #[test]
    fn only_aligned_bytes_are_floats() {
        let values = [1.0f32, 2.0, 3.0];
        let bytes = le_bytes(&values).into_owned();
        let mut shifted = vec![0u8; bytes.len() + 8];
        let mut seen = 0;
        for start in 0..4 {
            shifted[start..start + bytes.len()].copy_from_slice(&bytes);
            if let Some(floats) = floats(&shifted[start..start + bytes.len()]) {
                assert_eq!(floats, values);
                seen += 1;
            }
        }
        assert_eq!(seen, usize::from(cfg!(target_endian = "little")));
        assert_eq!(floats(&shifted[..7]), None);
    }
}
