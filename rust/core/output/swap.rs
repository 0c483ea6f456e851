//! An output that takes the place of another. It is made below the state folder of the other, which stays as it is
//! until the new one is whole. Then names change, and nothing but names: those of the old files first, which are kept
//! until those of the new ones are in place. A record on the disk lets whoever finds this half done end it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use super::contents;
use super::system::Directory;
use super::whole::write_in;
use super::{MANIFEST, PLAN, STATE};
use crate::error::{Error, Result};

/// The folder, in the state folder of an output, in which the one that is to replace it is made.
pub(crate) const NEW: &str = "new";
/// Where the files that it replaces are until it is in place.
const OLD: &str = "old";
/// Present while names are changed.
const RECORD: &str = "swap.json";

/// What is to be done once the new output is whole.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Swap {
    /// BLAKE3 of the new output's plan, in hexadecimal.
    pub(crate) plan: String,
    old: BTreeSet<String>,
    new: BTreeSet<String>,
    /// Whether all of the old files are out of the way.
    parked: bool,
}

/// The change that was begun in this folder and has not been ended, as far as its record can be read: one that cannot
/// be is begun again.
pub(crate) fn pending(state: &Directory) -> Result<Option<Swap>> {
    Ok(state.read(OsStr::new(RECORD))?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Puts the new output in the place of the old one, or goes on with that. Doing it again does no harm.
///
/// # Errors
/// A file of the new output has gone, or the disk fails: the same call goes on.
pub(crate) fn swap(directory: &Directory) -> Result<()> {
    let state = directory.subfolder(OsStr::new(STATE))?.ok_or_else(|| Error::vanished(directory.path()))?;
    let mut swap = match pending(&state)? {
        Some(swap) => swap,
        None => begin(directory, &state)?,
    };
    if !swap.parked {
        swap.park(directory, &folder(&state, OLD)?)?;
        swap.parked = true;
        swap.note(&state)?;
    }
    swap.place(directory, &folder(&state, NEW)?, &state)
}

/// Forgets a change of names that has come to its end.
pub(crate) fn clear(state: &Directory, keep_new: bool) -> Result<()> {
    if !keep_new {
        state.remove_all(OsStr::new(NEW))?;
    }
    state.remove_all(OsStr::new(OLD))?;
    state.sync()?;
    state.remove(OsStr::new(RECORD))?;
    Ok(())
}

fn begin(directory: &Directory, state: &Directory) -> Result<Swap> {
    state.remove_all(OsStr::new(OLD))?;
    let made = state.subfolder(OsStr::new(NEW))?.ok_or_else(|| Error::vanished(&state.path().join(NEW)))?;
    let mut new = contents::in_manifest(&made)?;
    if made.file_size(OsStr::new(MANIFEST))?.is_none() || new.is_empty() {
        return Err(Error::no_manifest(made.path(), MANIFEST));
    }
    new.insert(MANIFEST.to_owned());
    let mut old = contents::of_checkpoint(directory, &contents::entries(directory)?)?;
    old.extend(new.iter().cloned());
    let own = made.subfolder(OsStr::new(STATE))?.map(|own| own.read(OsStr::new(PLAN))).transpose()?.flatten();
    let plan = blake3::hash(&own.unwrap_or_default()).to_hex().to_string();
    let swap = Swap { plan, old, new, parked: false };
    swap.note(state)?;
    Ok(swap)
}

impl Swap {
    fn note(&self, state: &Directory) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|error| Error::engine(format!("the state of a run: {error}")))?;
        write_in(state, OsStr::new(RECORD), &text)
    }

    /// Takes the old files out of the way: first what makes them look complete, then, once that is on the disk, the rest.
    fn park(&self, directory: &Directory, old: &Directory) -> Result<()> {
        for rank in [2, 1, 0] {
            for name in self.old.iter().filter(|name| contents::rank(name) == rank) {
                move_below(directory, old, Path::new(name))?;
            }
            directory.sync()?;
        }
        old.sync()
    }

    /// Gives the new files their names, in the opposite order. Before the last one, by which the output says that it is
    /// complete, the others are looked at: where one is not what it was, the old output comes back.
    fn place(&mut self, directory: &Directory, new: &Directory, state: &Directory) -> Result<()> {
        for rank in [0, 1, 2] {
            if rank == 2 {
                if let Err(error) = self.hold_complete(directory, new) {
                    self.take_back(directory, state)?;
                    return Err(error);
                }
            }
            let names: Vec<&String> = self.new.iter().filter(|name| contents::rank(name) == rank).collect();
            for name in &names {
                self.give(directory, new, Path::new(name))?;
            }
            names.iter().try_for_each(|name| contents::sync_below(directory, Path::new(name)))?;
            directory.sync()?;
        }
        self.old.iter().try_for_each(|name| contents::remove_empty(directory, Path::new(name)))
    }

    fn hold_complete(&self, directory: &Directory, new: &Directory) -> Result<()> {
        let made = if new.file_size(OsStr::new(MANIFEST))?.is_some() { new } else { directory };
        for (name, bytes) in contents::sizes_in_manifest(made)? {
            if !contents::is_below(directory, Path::new(&name), bytes)? {
                return Err(Error::lost_of_new(&directory.path().join(name)));
            }
        }
        Ok(())
    }

    /// Puts the old files back in their places.
    fn take_back(&mut self, directory: &Directory, state: &Directory) -> Result<()> {
        contents::remove(directory, &self.new)?;
        self.parked = false;
        self.note(state)?;
        let old = folder(state, OLD)?;
        for rank in [0, 1, 2] {
            for name in self.old.iter().filter(|name| contents::rank(name) == rank) {
                move_below(&old, directory, Path::new(name))?;
            }
            directory.sync()?;
        }
        state.remove(OsStr::new(RECORD)).map(drop)
    }

    /// Gives one new file its name: a second one, where that can be, so that the new output stays whole until the end.
    fn give(&self, directory: &Directory, new: &Directory, path: &Path) -> Result<()> {
        let there = contents::identity_below(directory, path)?;
        let made = contents::identity_below(new, path)?;
        if made.is_none() || made == there {
            return Ok(());
        }
        link_below(new, directory, path)
    }
}

/// A folder of the state, made where it is missing.
fn folder(state: &Directory, name: &str) -> Result<Directory> {
    state.create_subfolder(OsStr::new(name))?;
    state.subfolder(OsStr::new(name))?.ok_or_else(|| Error::vanished(&state.path().join(name)))
}

/// Moves a file by its relative path into another folder, to the same path. One that is not there, a folder, or one
/// behind a symbolic link, which leads out of the output, is left alone.
fn move_below(from: &Directory, to: &Directory, path: &Path) -> Result<()> {
    let Some((first, rest)) = contents::split(path) else { return Ok(()) };
    let Some(stat) = from.stat(first)? else { return Ok(()) };
    let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    match rest {
        Some(rest) if is_folder => {
            let Some(below) = from.subfolder(first)? else { return Ok(()) };
            to.create_subfolder(first)?;
            let Some(target) = to.subfolder(first)? else { return Err(Error::vanished(to.path())) };
            move_below(&below, &target, rest)?;
            below.sync()
        }
        None if !is_folder => from.rename_to(first, to),
        _ => Ok(()),
    }
}

/// Gives a file of one folder the same path in another, in place of what is there.
fn link_below(from: &Directory, to: &Directory, path: &Path) -> Result<()> {
    let Some((first, rest)) = contents::split(path) else { return Ok(()) };
    match rest {
        None => {
            to.remove(first)?;
            from.link_to(first, to)
        }
        Some(rest) => {
            let below = from.subfolder(first)?.ok_or_else(|| Error::vanished(&from.path().join(first)))?;
            to.create_subfolder(first)?;
            let target = to.subfolder(first)?.ok_or_else(|| Error::vanished(&to.path().join(first)))?;
            link_below(&below, &target, rest)
        }
    }
}
