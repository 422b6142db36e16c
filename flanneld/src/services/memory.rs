//! Memory that a look at everything took and does not need any more.

/// Hands free pages back to the kernel. The C library keeps what was freed unless it lies at the end of its heap, and behind a list of
/// 100,000 elements lies what was made of it: tens of megabytes would stay with the daemon until its end.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim(3) may be called at any time by any thread; it takes the locks of the heaps itself, and touches free memory only.
        let _ = unsafe { libc::malloc_trim(0) };
    }
}
