//! What the parts of an output folder share: what the caller allows, and what the shards being written need.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::journal::{Journal, JournalRecord, Records};
use super::lock::Claim;
use crate::error::{Error, Result};

/// What the caller allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// A checkpoint or an unfinished run of another plan in the folder is replaced as a whole.
    pub overwrite: bool,
    /// An unfinished run of the same plan goes on where it stopped; without this it begins again.
    pub resume: bool,
    /// What an unfinished run left complete is read once more; a shard whose digest differs is written again.
    pub rehash: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { overwrite: false, resume: true, rehash: false }
    }
}

/// What the shards being written need of their folder.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) claim: Claim,
    /// That of the folder whose output this one is to replace.
    pub(super) outer: Option<Claim>,
    pub(crate) sizes: BTreeMap<String, u64>,
    journal: Mutex<Journal>,
    published: Mutex<Records>,
}

impl Shared {
    pub(super) fn new(
        claim: Claim,
        outer: Option<Claim>,
        sizes: BTreeMap<String, u64>,
        journal: Journal,
        published: Records,
    ) -> Shared {
        Shared { claim, outer, sizes, journal: Mutex::new(journal), published: Mutex::new(published) }
    }

    /// Enters a shard that is in place, with what a resumed run finds in [`JournalRecord::extra`].
    pub(crate) fn enter(&self, record: JournalRecord, extra: &impl Serialize) -> Result<()> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).append(&record, extra)?;
        self.published().insert(record.shard.clone(), Arc::new(record));
        Ok(())
    }

    /// The error for what the journal says and nobody has written.
    pub(super) fn damaged(&self, problem: &str) -> Error {
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        Error::damaged_journal(journal.path(), problem)
    }

    pub(super) fn published(&self) -> MutexGuard<'_, Records> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
