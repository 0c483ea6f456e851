//! Memory: asked for in sizes that a file or a plan decides, and given back where it was freed.
#![allow(unsafe_code)]

use crate::error::{Error, Result};

/// So many elements of one value.
///
/// # Errors
/// `Kind::Output` where the system does not give that much memory.
pub(crate) fn filled<T: Clone>(length: u64, value: T) -> Result<Vec<T>> {
    let mut made = Vec::new();
    let fits = usize::try_from(length).ok().filter(|length| made.try_reserve_exact(*length).is_ok());
    let length = fits.ok_or_else(|| Error::no_memory(length.saturating_mul(size_of::<T>() as u64)))?;
    made.resize(length, value);
    Ok(made)
}

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
