//! What a process may have only so many of, mappings and open files: a share of them is taken here, the rest is left to
//! the program that this is a part of.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::OnceLock;

use rustix::process::{getrlimit, Resource};

static MAPPINGS: AtomicUsize = AtomicUsize::new(0);
static FILES: AtomicUsize = AtomicUsize::new(0);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Share(&'static AtomicUsize);

impl Share {
    /// A mapping, if half of what the system allows is not yet taken.
    pub(super) fn mapping() -> Option<Share> {
        static MOST: OnceLock<usize> = OnceLock::new();
        let allowed = || std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok();
        Share::of(&MAPPINGS, *MOST.get_or_init(|| allowed().unwrap_or(65_530) / 2))
    }

    /// A file that stays open, if a quarter of what the process may have is not yet taken.
    pub(super) fn file() -> Option<Share> {
        // Miri, an interpreter of programs, knows no limits: there each is opened again to be read.
        if cfg!(miri) {
            return None;
        }
        let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Share::of(&FILES, usize::try_from(allowed / 4).unwrap_or(usize::MAX))
    }

    fn of(taken: &'static AtomicUsize, most: usize) -> Option<Share> {
        let share = (taken.fetch_add(1, Relaxed) < most).then_some(Share(taken));
        if share.is_none() {
            taken.fetch_sub(1, Relaxed);
        }
        share
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_allowed_and_again_what_was_given_back() {
        static TAKEN: AtomicUsize = AtomicUsize::new(0);
        let first = Share::of(&TAKEN, 2).unwrap();
        let _second = Share::of(&TAKEN, 2).unwrap();
        assert!(Share::of(&TAKEN, 2).is_none());
        drop(first);
        assert!(Share::of(&TAKEN, 2).is_some());
    }
}
