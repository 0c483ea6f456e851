//! One run at a time in a folder: an advisory lock on a file in its state folder, which the system releases when the
//! process ends, however it ends.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, FlockOperation};
use rustix::io::Errno;

use super::system::{is_not_offered, Directory};
use super::{LOCK, STATE};
use crate::error::{Error, Result};
use crate::file::folder::metadata;
use crate::file::platform::{Here, Platform};

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
    /// That of a [`Hold`](super::hold::Hold) in this process.
    Lent(Identity),
}

/// Device and inode of a lock file.
pub(super) type Identity = (u64, u64);
type Process = u32;

/// A lock that this process holds for what comes later.
struct Held {
    process: Process,
    identity: Identity,
    /// Whether it is for one run with all that follows it, and for no other.
    is_of_run: bool,
    /// Whether someone has it at the moment.
    is_lent: bool,
}

/// All of them, the innermost of a folder last.
static HELD: Mutex<Vec<Held>> = Mutex::new(Vec::new());

/// Who may use a lock that this process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Borrow {
    /// Nobody: a lock of its own is asked for.
    Never,
    /// A run with all that follows it: one that was taken for whoever comes.
    ForRun,
    /// The engine: any that nobody has at the moment.
    ForEngine,
}

impl Drop for Lock {
    fn drop(&mut self) {
        match self {
            Lock::Own(file, process) if *process == std::process::id() => {
                let _ = rustix::fs::flock(&*file, FlockOperation::Unlock);
            }
            Lock::Own(..) => {}
            Lock::Lent(identity) => give_back(*identity),
        }
    }
}

impl Lock {
    fn own(file: File) -> Lock {
        Lock::Own(file, std::process::id())
    }
}

/// Lets what this process does next use a lock that it has, until [`withdraw`] is called.
pub(super) fn lend(claim: &Claim, is_of_run: bool) -> Result<Identity> {
    let stat = claim.state.stat(OsStr::new(LOCK))?.ok_or_else(|| Error::vanished(claim.directory.path()))?;
    let identity = (Here::device(&stat), stat.st_ino);
    let held = Held { process: std::process::id(), identity, is_of_run, is_lent: false };
    HELD.lock().unwrap_or_else(PoisonError::into_inner).push(held);
    Ok(identity)
}

/// The opposite of [`lend`].
pub(super) fn withdraw(identity: Identity) {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = innermost(&held, identity) {
        held.remove(at);
    }
}

fn innermost(held: &[Held], identity: Identity) -> Option<usize> {
    held.iter().rposition(|held| (held.process, held.identity) == (std::process::id(), identity))
}

/// Notes that nobody has the held lock any more.
fn give_back(identity: Identity) {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = innermost(&held, identity) {
        held[at].is_lent = false;
    }
}

impl Claim {
    /// Locks the folder at a resolved path, creating it where needed.
    pub(crate) fn take(path: &Path) -> Result<Claim> {
        Claim::begin(path, Borrow::ForEngine)
    }

    /// `borrow`: whether the lock that this process holds already will do.
    pub(super) fn begin(path: &Path, borrow: Borrow) -> Result<Claim> {
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

    /// Locks a folder of the state, which goes with it.
    pub(super) fn within(&self, name: &OsStr) -> Result<Claim> {
        let is_new = self.state.create_subfolder(name)?;
        let created = if is_new { vec![self.state.path().join(name)] } else { Vec::new() };
        let directory = self.state.subfolder(name)?.ok_or_else(|| Error::vanished(&self.state.path().join(name)))?;
        let (state, lock, created_state) = lock(&directory, Borrow::Never)?;
        self.state.sync()?;
        Ok(Claim { directory, state, created, created_state, kept: false, lock })
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
        Some(state) => try_lock(directory, &state, Borrow::ForEngine)?
            .map(Some)
            .ok_or_else(|| Error::locked(directory.path(), None)),
        None => Ok(None),
    }
}

fn lock(directory: &Directory, borrow: Borrow) -> Result<(Directory, Lock, bool)> {
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
fn try_lock(directory: &Directory, state: &Directory, borrow: Borrow) -> Result<Option<Lock>> {
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
        Err(error) if error == Errno::NOLCK || is_not_offered(error) => return Ok(Some(Lock::own(file))),
        Err(error) => return Err(Error::io("locking", &state.path().join(LOCK), &error.into())),
    }
    let ours = rustix::fs::fstat(&file).map_err(|error| Error::io("examining", state.path(), &error.into()))?;
    let there = state.stat(OsStr::new(LOCK))?;
    if there.is_none_or(|there| (Here::device(&there), there.st_ino) != (Here::device(&ours), ours.st_ino)) {
        return Ok(None);
    }
    // Only for the message of whoever comes second: a failure to note it changes nothing.
    let note = std::process::id().to_string();
    let _ = file.set_len(0).and_then(|()| file.write_all_at(note.as_bytes(), 0));
    Ok(Some(Lock::own(file)))
}

/// The lock that this process holds, if it does: for one at a time.
fn held(directory: &Directory, state: &Directory, borrow: Borrow) -> Result<Option<Lock>> {
    let Some(stat) = state.stat(OsStr::new(LOCK))? else { return Ok(None) };
    let identity = (Here::device(&stat), stat.st_ino);
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(at) = innermost(&held, identity) else { return Ok(None) };
    let may_have = match borrow {
        Borrow::Never => false,
        Borrow::ForRun => !held[at].is_of_run,
        Borrow::ForEngine => true,
    };
    if !may_have || held[at].is_lent {
        return Err(Error::locked(directory.path(), Some(std::process::id())));
    }
    held[at].is_lent = true;
    Ok(Some(Lock::Lent(identity)))
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
