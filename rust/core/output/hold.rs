//! A folder locked from before a run until after what follows it.

use std::path::{Path, PathBuf};

use super::admission::start_in;
use super::folder::{look_at, Options};
use super::lock::{lend, lock_existing, withdraw, Borrow, Claim, Identity};
use super::overlap::{resolve, Inputs};
use super::swap;
use super::system::Directory;
use crate::error::{Error, Result};

/// A folder that is locked from before a run until after what follows it: runs of this process in that folder, one at a
/// time, use this lock, and those of others are refused.
#[derive(Debug)]
pub struct Hold {
    identity: Identity,
    // The lock goes after its entry.
    _claim: Claim,
}

impl Hold {
    /// Locks a folder, creating it where needed; what was created goes again where nothing was put into it. A run with
    /// this plan and these options is refused before anything is created, where it would be later, and an output that
    /// an earlier run had begun to put in the place of another is put there.
    ///
    /// # Errors
    /// `Kind::Output` where another run, of this process or of another one, has the folder, or where it touches one of
    /// the folders or files that the run will read.
    pub fn take(path: &Path, inputs: &[&Path], run: Option<(&[u8], &Options)>) -> Result<Hold> {
        let inputs = Inputs::examine(inputs)?;
        let path = match run {
            Some((plan, options)) => look_at(path, &inputs, plan, options).or_else(|error| locked_or(path, error))?,
            None => resolve(path)?,
        };
        inputs.refuse_overlap(&path)?;
        let borrow = if run.is_some() { Borrow::ForRun } else { Borrow::Never };
        let claim = Claim::begin(&path, borrow)?;
        if let Some((plan, options)) = run {
            start_in(Some(&claim.directory), plan, options)?;
            if swap::pending(&claim.state)?.is_some() {
                swap::swap(&claim.directory)?;
            }
        }
        Ok(Hold { identity: lend(&claim, run.is_some())?, _claim: claim })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        withdraw(self.identity);
    }
}

/// The error for a folder that another run has, where one has it; else this one.
fn locked_or(path: &Path, error: Error) -> Result<PathBuf> {
    if let Some(directory) = Directory::open(&resolve(path)?)? {
        lock_existing(&directory)?;
    }
    Err(error)
}
