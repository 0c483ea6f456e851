//! What a caller may see and say while a run is under way.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};

/// Shared between a run and whoever watches it.
#[derive(Debug, Default)]
pub struct Monitor {
    cancelled: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
    notices: Mutex<Notices>,
    taken: Condvar,
}

/// What a run has to say before it goes on.
#[derive(Debug, Default)]
struct Notices {
    waiting: Vec<String>,
    /// Somebody takes them.
    heard: bool,
}

/// How long a run waits for what it says to be taken.
const PATIENCE: Duration = Duration::from_secs(2);

impl Monitor {
    /// Asks the run to stop; it does so within one block per thread.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    /// An error once [`Monitor::cancel`] was called.
    ///
    /// # Errors
    /// `Kind::Interrupted`.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            Err(Error::interrupted())
        } else {
            Ok(())
        }
    }

    /// Whether [`Monitor::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Relaxed)
    }

    /// Bytes read and written so far, and in all.
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Relaxed), self.total.load(Relaxed))
    }

    /// Says that [`Monitor::notices`] will be called until the run has ended.
    pub fn listen(&self) {
        self.lock().heard = true;
    }

    /// What the run has said since the last call, in lower case and without a full stop.
    pub fn notices(&self) -> Vec<String> {
        let waiting = std::mem::take(&mut self.lock().waiting);
        self.taken.notify_all();
        waiting
    }

    /// Says something of which a user should know before it is done, and waits until it has been heard.
    pub(crate) fn say(&self, notice: String) {
        let mut notices = self.lock();
        notices.waiting.push(notice);
        if notices.heard {
            let _ = self.taken.wait_timeout_while(notices, PATIENCE, |notices| !notices.waiting.is_empty());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Notices> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
    }
}
