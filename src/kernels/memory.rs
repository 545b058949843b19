//! Memory that is about to be written for the first time.

/// Asks for large pages where the system gives them on request: the first write to each small page of a large buffer
/// costs more than the operation that writes it.
///
/// Only advice: nothing depends on whether it is taken.
pub(crate) fn prefer_large_pages<T>(room: &mut [std::mem::MaybeUninit<T>]) {
    #[cfg(target_os = "linux")]
    {
        /// Bytes of a large page, and of the smallest buffer that is worth the call.
        const LARGE: usize = 1 << 21;
        let start = room.as_mut_ptr().cast::<u8>();
        let before = start.align_offset(LARGE);
        let bytes = size_of_val(room).saturating_sub(before) / LARGE * LARGE;
        if bytes >= 2 * LARGE {
            // SAFETY: the range lies in `room`; the advice changes neither contents nor access.
            let advised = unsafe {
                rustix::mm::madvise(start.add(before).cast(), bytes, rustix::mm::Advice::LinuxHugepage)
            };
            // a system without large pages says so here, and works all the same
            let _ = advised;
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = room;
}

/// An empty vector with room for `len` elements that are about to be written from one end to the other.
pub(crate) fn room<T>(len: usize) -> Vec<T> {
    let mut room = Vec::with_capacity(len);
    prefer_large_pages(room.spare_capacity_mut());
    room
}
