//! The threads of a run: a pool, work that is shared out over it, and who does a pass.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Mutex;

use crate::error::{Error, Result};
use crate::kernels::dispatch::ControlRegister;
use crate::monitor::Monitor;
use crate::workers;

/// Who does a pass.
#[derive(Clone, Copy)]
pub(crate) enum Threads<'a> {
    /// The calling thread alone: passes over many small tensors run side by side instead.
    Alone,
    /// The threads of the pool that are free, chunk by chunk.
    Pool(&'a rayon::ThreadPool),
}

/// A pool whose threads compute as IEEE says, whatever the embedding process has set; 0 is a thread per core.
pub(crate) fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("taskvec-{i}"))
        .start_handler(|_| std::mem::forget(ControlRegister::ieee()))
        .build()
        .map_err(|error| Error::no_threads(workers::count(threads), &error.to_string()))
}

/// Runs `work` on the threads of the pool that are or become free until it returns, on one at least. May be called
/// from a thread of the pool, while others are at something else.
pub(crate) fn together(pool: &rayon::ThreadPool, work: impl Fn() + Sync) {
    let work = &work;
    pool.scope(|scope| {
        for _ in 1..pool.current_num_threads() {
            scope.spawn(move |_| work());
        }
        work();
    });
}

/// Runs `each` for 0..n over the pool, in order, stopping at the first error.
pub(crate) fn each(
    pool: &rayon::ThreadPool,
    monitor: &Monitor,
    n: usize,
    each: impl Fn(usize) -> Result<()> + Sync,
) -> Result<()> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    together(pool, || one_by_one(&next, n, &failed, |index| monitor.check().and_then(|()| each(index))));
    let failed = lock(&failed).take();
    failed.map_or(Ok(()), Err)
}

/// Takes indices up to `n` until there are none or one has failed.
pub(crate) fn one_by_one(
    next: &AtomicUsize,
    n: usize,
    failed: &Mutex<Option<Error>>,
    mut each: impl FnMut(usize) -> Result<()>,
) {
    loop {
        let index = next.fetch_add(1, Relaxed);
        if index >= n {
            return;
        }
        if let Err(error) = each(index) {
            lock(failed).get_or_insert(error);
            next.store(n, Relaxed);
        }
    }
}

/// A lock whose holder panicked is still good here: the run is failing anyway.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
