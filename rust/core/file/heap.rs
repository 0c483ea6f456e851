//! Memory that was freed and that the allocator keeps.
#![allow(unsafe_code)]

/// Bytes of a plan, those of about ten thousand tensors, from which on what is left of one stage of a run is worth
/// being given back before the next. Of a smaller one it is a few megabytes, and looking for it takes as long as the
/// stage.
const LARGE: usize = 2 << 20;

/// Gives freed memory back to the system where the plan is a large one. glibc keeps what a thread has freed for this
/// thread's arena: the small pieces that were the plan of a hundred thousand tensors are 100 MB that nobody else gets.
pub fn give_back(plan: &[u8]) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if plan.len() >= LARGE {
        // SAFETY: the call takes no pointer, locks each arena itself, and touches free memory alone.
        unsafe { libc::malloc_trim(0) };
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = (plan, LARGE);
}
