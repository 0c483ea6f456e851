//! One run at a time in a folder: an advisory lock on a file in its state folder, which the system releases when the
//! process ends, however it ends.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::system::Directory;
use super::{LOCK, STATE};
use crate::error::{Error, Result};

/// A folder that is ours until this is dropped. Unless [`Claim::keep`] was called, whatever had to be created for the
/// claim is removed again.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) directory: Directory,
    pub(crate) state: Directory,
    created: Vec<PathBuf>,
    created_state: bool,
    kept: bool,
    // Last, so that the lock is released after everything else.
    _lock: Lock,
}

/// The lock itself. It is given back explicitly: a process forked in the meantime has a copy of the descriptor, and
/// closing ours alone would leave the folder locked for as long as that process lives.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl Claim {
    /// Locks the folder at a resolved path, creating it where needed.
    pub(crate) fn take(path: &Path) -> Result<Claim> {
        let created = create_folders(path)?;
        let taken = Directory::open(path)
            .and_then(|directory| directory.ok_or_else(|| Error::vanished(path)))
            .and_then(|directory| Ok((lock(&directory)?, directory)));
        match taken {
            Ok(((state, lock, created_state), directory)) => {
                Ok(Claim { directory, state, created, created_state, kept: false, _lock: lock })
            }
            Err(error) => {
                remove_folders(&created);
                Err(error)
            }
        }
    }

    /// The folder was admitted: what was created stays.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // Nothing here may hide the error that led here, and a folder that others use in the meantime stays.
        if self.created_state && self.state.names().is_ok_and(|names| names == [LOCK]) {
            let _ = self.state.remove(OsStr::new(LOCK));
            let _ = self.directory.remove_subfolder(OsStr::new(STATE));
        }
        remove_folders(&self.created);
    }
}

/// Locks a folder that has a state folder; `None` when it has none.
pub(crate) fn lock_existing(directory: &Directory) -> Result<Option<Lock>> {
    match directory.subfolder(OsStr::new(STATE))? {
        Some(state) => try_lock(directory, &state)?.map(Some).ok_or_else(|| Error::locked(directory.path(), None)),
        None => Ok(None),
    }
}

fn lock(directory: &Directory) -> Result<(Directory, Lock, bool)> {
    // Another run may end between our steps and take the state folder with it; then there is nothing to wait for.
    for _ in 0..16 {
        let created = directory.create_subfolder(OsStr::new(STATE))?;
        let Some(state) = directory.subfolder(OsStr::new(STATE))? else { continue };
        if let Some(lock) = try_lock(directory, &state)? {
            return Ok((state, lock, created));
        }
    }
    Err(Error::locked(directory.path(), None))
}

/// `None` when the lock file was removed while we locked it.
fn try_lock(directory: &Directory, state: &Directory) -> Result<Option<Lock>> {
    let file = match state.open_or_create(OsStr::new(LOCK)) {
        Ok(file) => file,
        Err(error) if error.kind == crate::error::Kind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(Error::locked(directory.path(), owner(&file))),
        // A file system without locks: the run goes on without this protection.
        Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => return Ok(Some(Lock(file))),
        Err(error) => return Err(Error::io("locking", &state.path().join(LOCK), &error.into())),
    }
    let ours = rustix::fs::fstat(&file).map_err(|error| Error::io("examining", state.path(), &error.into()))?;
    let there = state.stat(OsStr::new(LOCK))?;
    if there.is_none_or(|there| (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)) {
        return Ok(None);
    }
    // Only for the message of whoever comes second: a failure to note it changes nothing.
    let note = std::process::id().to_string();
    let _ = file.set_len(0).and_then(|()| file.write_all_at(note.as_bytes(), 0));
    Ok(Some(Lock(file)))
}

/// The process that noted itself in the lock file.
fn owner(file: &File) -> Option<u32> {
    let mut note = [0; 16];
    let length = file.read_at(&mut note, 0).ok()?;
    std::str::from_utf8(&note[..length]).ok()?.trim().parse().ok()
}

/// Creates the folders of a resolved path that are missing and returns them, outermost first.
fn create_folders(path: &Path) -> Result<Vec<PathBuf>> {
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    let mut created = Vec::new();
    for folder in missing.into_iter().rev() {
        let made = parent_of(folder).and_then(|(parent, name)| {
            if parent.create_subfolder(name)? {
                created.push(folder.to_path_buf());
                parent.sync()?;
            }
            Ok(())
        });
        if let Err(error) = made {
            remove_folders(&created);
            return Err(error);
        }
    }
    Ok(created)
}

fn parent_of(folder: &Path) -> Result<(Directory, &OsStr)> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else {
        return Err(Error::vanished(folder));
    };
    Ok((Directory::open(parent)?.ok_or_else(|| Error::vanished(parent))?, name))
}

fn remove_folders(created: &[PathBuf]) {
    for folder in created.iter().rev() {
        // Removes empty folders only.
        let _ = std::fs::remove_dir(folder);
    }
}
