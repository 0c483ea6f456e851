//! A small file put in place from outside, and the end of a run, when its state is no longer needed.

use std::path::Path;

use super::system::Directory;
use super::whole::write_in;
use super::{contents, lock, overlap, swap, LOCK, MANIFEST, PLAN, STATE};
use crate::error::{Error, Result};

/// Writes a file as a whole or not at all. Its folder must exist.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().ok_or_else(|| Error::not_a_file_name(path))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = overlap::resolve(parent)?;
    let directory = Directory::open(&parent)?.ok_or_else(|| Error::vanished(&parent))?;
    write_in(&directory, name, bytes)
}

/// Puts an output that was made in the state folder of another, and has its manifest, in the place of that one. Doing it
/// again does no harm; the state stays until [`finish`].
pub fn replace(folder: &Path) -> Result<()> {
    let folder = overlap::resolve(folder)?;
    let directory = Directory::open(&folder)?.ok_or_else(|| Error::vanished(&folder))?;
    let _lock = lock::lock_existing(&directory)?;
    swap::swap(&directory)
}

/// Ends a run: the manifest must be in place; what an interrupted run left half written and the state folder go. The
/// plan goes first, so that a kill in between leaves a finished output and not one that looks unfinished. Doing it
/// again does no harm.
pub fn finish(folder: &Path) -> Result<()> {
    let folder = overlap::resolve(folder)?;
    let directory = Directory::open(&folder)?.ok_or_else(|| Error::vanished(&folder))?;
    let _lock = lock::lock_existing(&directory)?;
    finish_in(&directory)
}

pub(crate) fn finish_in(directory: &Directory) -> Result<()> {
    if directory.file_size(MANIFEST.as_ref())?.is_none() {
        return Err(Error::no_manifest(directory.path(), MANIFEST));
    }
    contents::remove_parts(directory)?;
    if let Some(state) = directory.subfolder(STATE.as_ref())? {
        state.remove_all(PLAN.as_ref())?;
        // From here on the output is complete: what cannot be removed now does no harm, and is no reason to call the
        // run a failure.
        let _ = remove_state(directory, &state);
    }
    Ok(())
}

fn remove_state(directory: &Directory, state: &Directory) -> Result<()> {
    swap::clear(state, false)?;
    for name in state.names()?.iter().filter(|name| *name != LOCK) {
        state.remove_all(name)?;
    }
    state.remove(LOCK.as_ref())?;
    directory.remove_subfolder(STATE.as_ref())?;
    directory.sync()
}
