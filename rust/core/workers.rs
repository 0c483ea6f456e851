//! Threads for one piece of work, started for it and gone after it: a process that was forked in between misses none,
//! and where the system refuses one the others do its share.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Mutex;
use std::thread::{available_parallelism, scope, Builder};

/// Runs `work` on the calling thread and on as many others as start, `threads` in all.
pub(crate) fn side_by_side(threads: usize, work: impl Fn() + Sync) {
    let work = &work;
    scope(|scope| {
        for _ in 1..threads {
            if Builder::new().name("taskvec-aside".into()).spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
}

/// `each` of all items, in their order.
pub(crate) fn map<T: Sync, R: Send>(items: &[T], each: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(items.len())));
    side_by_side(count(0).min(items.len()), || loop {
        let index = next.fetch_add(1, Relaxed);
        let Some(item) = items.get(index) else { return };
        let one = each(item);
        found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((index, one));
    });
    let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort_unstable_by_key(|(index, _)| *index);
    found.into_iter().map(|(_, one)| one).collect()
}

/// As many threads as asked for; 0 is one per core.
pub(crate) fn count(threads: usize) -> usize {
    match threads {
        0 => available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads,
    }
}
