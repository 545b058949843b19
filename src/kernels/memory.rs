//! Memory that is about to be written for the first time.

/// Asks for large pages where the system gives them on request: the first write to each small page of a large buffer
/// costs more than the operation that writes it.
///
/// Only advice: nothing depends on whether it is taken.
pub(crate) fn prefer_large_pages<T>(room: &mut [std::mem::MaybeUninit<T>]) {
    advise(room.as_mut_ptr().cast(), size_of_val(room));
}

/// So many zeros, which have large pages once they are written.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    // memory that is new to the process is zero without being touched
    let mut zeros = vec![0.0; len];
    advise(zeros.as_mut_ptr().cast(), len * size_of::<f32>());
    zeros
}

/// Advises the system of a buffer that is written soon.
fn advise(start: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        /// Bytes of a large page, and of the smallest buffer that is worth the call.
        const LARGE: usize = 1 << 21;
        let before = start.align_offset(LARGE);
        let bytes = bytes.saturating_sub(before) / LARGE * LARGE;
        if bytes >= 2 * LARGE {
            // SAFETY: the range lies in the caller's buffer; the advice changes neither contents nor access.
            let advised = unsafe {
                rustix::mm::madvise(
                    start.wrapping_add(before).cast(),
                    bytes,
                    rustix::mm::Advice::LinuxHugepage,
                )
            };
            // a system without large pages says so here, and works all the same
            let _ = advised;
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes);
}

/// An empty vector with room for `len` elements that are about to be written from one end to the other.
pub(crate) fn room<T>(len: usize) -> Vec<T> {
    let mut room = Vec::with_capacity(len);
    prefer_large_pages(room.spare_capacity_mut());
    room
}

/// The same values elsewhere.
pub(crate) fn copy(values: &[f32]) -> Vec<f32> {
    let mut copy = room(values.len());
    copy.extend_from_slice(values);
    copy
}
