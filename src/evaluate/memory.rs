use std::fs;

/// The most memory of this process that was resident since a moment, as Linux counts it.
#[derive(Debug)]
pub(super) struct PeakMemory(());

impl PeakMemory {
    /// Starts counting anew, for the whole process; `None` where the system does not offer it or refuses.
    pub(super) fn reset() -> Option<Self> {
        // proc(5): 5 sets the high-water mark to what is resident now
        fs::write("/proc/self/clear_refs", "5").ok().map(|()| Self(()))
    }

    /// Bytes.
    #[allow(clippy::unused_self)] // a mark that was not reset says nothing
    pub(super) fn peak(&self) -> Option<u64> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let mark = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kibibytes: u64 = mark.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kibibytes.checked_mul(1024)
    }
}
