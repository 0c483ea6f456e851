//! One run at a time in a folder: an advisory lock on a file in its state folder, which the system releases when the
//! process ends, however it ends.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, FlockOperation};
use rustix::io::Errno;

use super::overlap::{resolve, Inputs};
use super::system::Directory;
use super::{LOCK, STATE};
use crate::error::{Error, Result};
use crate::file::folder::metadata;

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
    lock: Lock,
}

/// The lock itself.
#[derive(Debug)]
pub(crate) enum Lock {
    /// Ours. It is given back explicitly: a process forked in the meantime has a copy of the descriptor, and closing
    /// ours alone would leave the folder locked for as long as that process lives. Such a process gives nothing back.
    Own(File, Process),
    /// That of a [`Hold`] in this process.
    Lent(Identity),
}

/// Device and inode of a lock file.
type Identity = (u64, u64);
type Process = u32;

/// The locks that this process holds beyond its runs, and whether a run has one.
static HELD: Mutex<Vec<(Process, Identity, bool)>> = Mutex::new(Vec::new());

impl Drop for Lock {
    fn drop(&mut self) {
        match self {
            Lock::Own(file, process) if *process == std::process::id() => {
                let _ = rustix::fs::flock(&*file, FlockOperation::Unlock);
            }
            Lock::Own(..) => {}
            Lock::Lent(identity) => lent(*identity, false),
        }
    }
}

impl Lock {
    fn own(file: File) -> Lock {
        Lock::Own(file, std::process::id())
    }
}

/// Notes whether a run has the held lock.
fn lent(identity: Identity, now: bool) {
    let process = std::process::id();
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.iter_mut().filter(|held| (held.0, held.1) == (process, identity)).for_each(|held| held.2 = now);
}

/// A folder that is locked from before a run until after what follows it: runs of this process in that folder, one at a
/// time, use this lock, and those of others are refused.
#[derive(Debug)]
pub struct Hold {
    identity: Identity,
    // The lock goes after its entry.
    _claim: Claim,
}

impl Hold {
    /// Locks a folder, creating it where needed; what was created goes again where nothing was put into it.
    ///
    /// # Errors
    /// `Kind::Output` where another run, of this process or of another one, has the folder, or where it touches one of
    /// the folders or files that the run will read.
    pub fn take(path: &Path, inputs: &[&Path]) -> Result<Hold> {
        let path = resolve(path)?;
        Inputs::examine(inputs)?.refuse_overlap(&path)?;
        let claim = Claim::begin(&path, false)?;
        let stat = claim.state.stat(OsStr::new(LOCK))?.ok_or_else(|| Error::vanished(&path))?;
        let identity = (stat.st_dev, stat.st_ino);
        HELD.lock().unwrap_or_else(PoisonError::into_inner).push((std::process::id(), identity, false));
        Ok(Hold { identity, _claim: claim })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let process = std::process::id();
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|held| (held.0, held.1) != (process, self.identity));
    }
}

impl Claim {
    /// Locks the folder at a resolved path, creating it where needed.
    pub(crate) fn take(path: &Path) -> Result<Claim> {
        Claim::begin(path, true)
    }

    /// `borrow`: the lock that this process holds already will do.
    fn begin(path: &Path, borrow: bool) -> Result<Claim> {
        let created = create_folders(path)?;
        let taken = Directory::open(path)
            .and_then(|directory| directory.ok_or_else(|| Error::vanished(path)))
            .and_then(|directory| Ok((lock(&directory, borrow)?, directory)));
        match taken {
            Ok(((state, lock, created_state), directory)) => {
                Ok(Claim { directory, state, created, created_state, kept: false, lock })
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
        let foreign = matches!(&self.lock, Lock::Own(_, process) if *process != std::process::id());
        if self.kept || foreign {
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
        Some(state) => {
            try_lock(directory, &state, true)?.map(Some).ok_or_else(|| Error::locked(directory.path(), None))
        }
        None => Ok(None),
    }
}

fn lock(directory: &Directory, borrow: bool) -> Result<(Directory, Lock, bool)> {
    // Another run may end between our steps and take the state folder with it; then there is nothing to wait for.
    for _ in 0..16 {
        let created = directory.create_subfolder(OsStr::new(STATE))?;
        let Some(state) = directory.subfolder(OsStr::new(STATE))? else { continue };
        if let Some(lock) = try_lock(directory, &state, borrow)? {
            return Ok((state, lock, created));
        }
    }
    Err(Error::locked(directory.path(), None))
}

/// `None` when the lock file was removed while we locked it.
fn try_lock(directory: &Directory, state: &Directory, borrow: bool) -> Result<Option<Lock>> {
    if let Some(held) = held(directory, state, borrow)? {
        return Ok(Some(held));
    }
    if state.stat(OsStr::new(LOCK))?.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile)
    {
        // No run has made that, and none can hold it.
        state.remove_all(OsStr::new(LOCK))?;
    }
    let file = match state.open_or_create(OsStr::new(LOCK)) {
        Ok(file) => file,
        Err(error) if error.kind == crate::error::Kind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(Error::locked(directory.path(), owner(&file))),
        // A file system without locks: the run goes on without this protection.
        Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => return Ok(Some(Lock::own(file))),
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
    Ok(Some(Lock::own(file)))
}

/// The lock that this process holds, if it does: for one run at a time.
fn held(directory: &Directory, state: &Directory, borrow: bool) -> Result<Option<Lock>> {
    let Some(stat) = state.stat(OsStr::new(LOCK))? else { return Ok(None) };
    let (process, identity) = (std::process::id(), (stat.st_dev, stat.st_ino));
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    match held.iter_mut().find(|held| (held.0, held.1) == (process, identity)) {
        None => Ok(None),
        Some(held) if borrow && !held.2 => {
            held.2 = true;
            Ok(Some(Lock::Lent(identity)))
        }
        Some(_) => Err(Error::locked(directory.path(), Some(process))),
    }
}

/// The process that noted itself in the lock file.
fn owner(file: &File) -> Option<u32> {
    let mut note = [0; 16];
    let length = file.read_at(&mut note, 0).ok()?;
    std::str::from_utf8(&note[..length]).ok()?.trim().parse().ok()
}

/// Creates the folders of a resolved path that are missing and returns them, outermost first.
fn create_folders(path: &Path) -> Result<Vec<PathBuf>> {
    let mut missing: Vec<&Path> = Vec::new();
    for folder in path.ancestors() {
        if metadata(folder)?.is_some() {
            break;
        }
        missing.push(folder);
    }
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
