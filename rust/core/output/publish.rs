//! Small files: written next to their place, flushed and renamed, so that a reader sees the old or the new one, never
//! a part. And the end of a run, when its state is no longer needed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::fault::Operation;
use super::system::{part_name, Directory};
use super::{contents, lock, overlap, LOCK, MANIFEST, PLAN, STATE};
use crate::error::{Error, Result};

/// Writes a file as a whole or not at all. Its folder must exist.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().ok_or_else(|| Error::not_a_file_name(path))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = overlap::resolve(parent)?;
    let directory = Directory::open(&parent)?.ok_or_else(|| Error::vanished(&parent))?;
    write_in(&directory, name, bytes)
}

/// The same in a folder that is already open.
pub(crate) fn write_in(directory: &Directory, name: &OsStr, bytes: &[u8]) -> Result<()> {
    let part = part_name(name);
    let written = write_part(directory, &part, bytes).and_then(|()| directory.rename(&part, name));
    if written.is_err() {
        // The first failure is the one to report.
        let _ = directory.remove(&part);
    }
    written.and_then(|()| directory.sync())
}

fn write_part(directory: &Directory, part: &OsStr, bytes: &[u8]) -> Result<()> {
    let failed = |action: &str, error: std::io::Error| Error::io(action, &directory.path().join(part), &error);
    let mut file: File = directory.create(part)?;
    directory.fault(Operation::Write).and_then(|()| file.write_all(bytes)).map_err(|error| failed("writing", error))?;
    directory.fault(Operation::Sync).and_then(|()| file.sync_data()).map_err(|error| failed("flushing", error))
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
        state.remove(PLAN.as_ref())?;
        // From here on the output is complete: what cannot be removed now does no harm, and is no reason to call the
        // run a failure.
        let _ = remove_state(directory, &state);
    }
    Ok(())
}

fn remove_state(directory: &Directory, state: &Directory) -> Result<()> {
    state.sync()?;
    for name in state.names()?.iter().filter(|name| *name != LOCK) {
        state.remove(name)?;
    }
    state.remove(LOCK.as_ref())?;
    directory.remove_subfolder(STATE.as_ref())?;
    directory.sync()
}
