//! Failures on demand, for tests: the n-th operation on one output folder fails with a chosen error number. A folder
//! for which nothing was injected pays one relaxed load when it is opened, and nothing per operation.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::overlap;
use crate::error::Result;

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Creating a file or a folder.
    Create,
    /// Reserving space.
    Allocate,
    /// Writing bytes.
    Write,
    /// Flushing a file to the disk.
    Sync,
    /// Flushing a folder to the disk.
    SyncFolder,
    /// Renaming a file into place.
    Rename,
    /// Removing a file or a folder.
    Remove,
    /// Any of these.
    Any,
}

/// The failures still to come for one folder.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Vec<Fault>>);

#[derive(Debug)]
struct Fault {
    operation: Operation,
    remaining: u64,
    errno: i32,
    lasting: bool,
}

static ARMED: AtomicBool = AtomicBool::new(false);
static REGISTRY: Mutex<BTreeMap<PathBuf, Arc<Faults>>> = Mutex::new(BTreeMap::new());

/// Lets the operation number `nth` (from 0) of this kind on `folder` fail once with `errno`.
pub fn inject(folder: &Path, operation: Operation, nth: u64, errno: i32) -> Result<()> {
    arm(folder, Fault { operation, remaining: nth, errno, lasting: false })
}

/// Lets the operation number `nth` and every one after it fail: what is on the disk then is what a kill at that moment
/// leaves there, since nothing can be tidied up any more.
pub fn cut_off(folder: &Path, nth: u64, errno: i32) -> Result<()> {
    arm(folder, Fault { operation: Operation::Any, remaining: nth, errno, lasting: true })
}

fn arm(folder: &Path, fault: Fault) -> Result<()> {
    let faults = Arc::clone(registry().entry(overlap::resolve(folder)?).or_default());
    faults.pending().push(fault);
    ARMED.store(true, Ordering::Release);
    Ok(())
}

/// Forgets what was injected for `folder`; true when something had not happened yet.
pub fn clear(folder: &Path) -> Result<bool> {
    let faults = registry().remove(&overlap::resolve(folder)?);
    Ok(faults.is_some_and(|faults| faults.pending().iter().any(|fault| !fault.lasting || fault.remaining > 0)))
}

fn registry() -> MutexGuard<'static, BTreeMap<PathBuf, Arc<Faults>>> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Faults {
    /// What was injected for the folder at this resolved path, or for one that it lies in.
    pub(crate) fn of(folder: &Path) -> Option<Arc<Faults>> {
        let find = || {
            let registry = registry();
            folder.ancestors().find_map(|above| registry.get(above).cloned())
        };
        ARMED.load(Ordering::Acquire).then(find).flatten()
    }

    /// Fails if this operation is the one chosen to fail.
    pub(crate) fn check(&self, operation: Operation) -> io::Result<()> {
        let mut pending = self.pending();
        let mut due = None;
        for (at, fault) in pending.iter_mut().enumerate() {
            if fault.operation == operation || fault.operation == Operation::Any {
                match fault.remaining {
                    0 => due = Some(at),
                    _ => fault.remaining -= 1,
                }
            }
        }
        match due {
            Some(at) => {
                let errno = pending[at].errno;
                if !pending[at].lasting {
                    pending.swap_remove(at);
                }
                Err(io::Error::from_raw_os_error(errno))
            }
            None => Ok(()),
        }
    }

    fn pending(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
