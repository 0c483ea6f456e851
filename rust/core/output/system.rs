//! The system calls of this room on one open folder. Names are looked up relative to its descriptor and symbolic
//! links are never followed, so nothing outside the folder is created, replaced or removed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::fault::{Faults, Operation};
use crate::error::{Error, Result};

/// An open folder.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    descriptor: Arc<OwnedFd>,
    faults: Option<Arc<Faults>>,
}

impl Directory {
    /// Opens the folder at a resolved path; `None` when it does not exist.
    pub(crate) fn open(path: &Path) -> Result<Option<Directory>> {
        let faults = Faults::of(path);
        Directory::open_below(rustix::fs::CWD, path.as_os_str(), path.to_path_buf(), faults)
    }

    /// Opens a folder in this one.
    pub(crate) fn subfolder(&self, name: &OsStr) -> Result<Option<Directory>> {
        Directory::open_below(&*self.descriptor, name, self.path.join(name), self.faults.clone())
    }

    fn open_below<Fd: std::os::fd::AsFd>(
        parent: Fd,
        name: &OsStr,
        path: PathBuf,
        faults: Option<Arc<Faults>>,
    ) -> Result<Option<Directory>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(parent, name, flags, Mode::empty()) {
            Ok(descriptor) => Ok(Some(Directory { path, descriptor: Arc::new(descriptor), faults })),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => Err(Error::not_a_folder(&path)),
            Err(error) => Err(Error::io("opening the folder", &path, &error.into())),
        }
    }

    /// Creates a folder in this one; false when it is already there.
    pub(crate) fn create_subfolder(&self, name: &OsStr) -> Result<bool> {
        let made = self
            .fault(Operation::Create)
            .and_then(|()| Ok(rustix::fs::mkdirat(&*self.descriptor, name, Mode::from_raw_mode(0o777))?));
        match made {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(Error::io("creating the folder", &self.path.join(name), &error)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    /// Fails when a test asked for it.
    pub(crate) fn fault(&self, operation: Operation) -> io::Result<()> {
        match &self.faults {
            Some(faults) => faults.check(operation),
            None => Ok(()),
        }
    }

    /// The names in the folder, sorted.
    pub(crate) fn names(&self) -> Result<Vec<OsString>> {
        let failed = |error: Errno| Error::io("listing", &self.path, &error.into());
        let mut names = Vec::new();
        for entry in Dir::read_from(&*self.descriptor).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_os_string());
            }
        }
        names.sort();
        Ok(names)
    }

    /// What is at a name, itself and not what it links to.
    pub(crate) fn stat(&self, name: &OsStr) -> Result<Option<Stat>> {
        match rustix::fs::statat(&*self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Error::io("examining", &self.path.join(name), &error.into())),
        }
    }

    /// The size of a regular file in the folder.
    pub(crate) fn file_size(&self, name: &OsStr) -> Result<Option<u64>> {
        let stat = self.stat(name)?.filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        Ok(stat.map(|stat| stat.st_size as u64))
    }

    /// Creates a new file for reading and writing; what was there is removed.
    pub(crate) fn create(&self, name: &OsStr) -> Result<File> {
        self.remove(name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.open_file("creating", name, flags)
    }

    /// Opens a file for reading and writing, making it if it is not there.
    pub(crate) fn open_or_create(&self, name: &OsStr) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.open_file("opening", name, flags)
    }

    fn open_file(&self, action: &str, name: &OsStr, flags: OFlags) -> Result<File> {
        self.fault(Operation::Create)
            .and_then(|()| Ok(rustix::fs::openat(&*self.descriptor, name, flags, Mode::from_raw_mode(0o666))?))
            .map(File::from)
            .map_err(|error| Error::io(action, &self.path.join(name), &error))
    }

    /// The bytes of a regular file in the folder; `None` when it is not there.
    pub(crate) fn read(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        let failed = |error: io::Error| Error::io("reading", &self.path.join(name), &error);
        if self.file_size(name)?.is_none() {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&*self.descriptor, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(failed(error.into())),
        };
        let mut bytes = Vec::new();
        File::from(file).read_to_end(&mut bytes).map_err(failed)?;
        Ok(Some(bytes))
    }

    /// Removes a file or a link, never what it links to; false when it was not there.
    pub(crate) fn remove(&self, name: &OsStr) -> Result<bool> {
        self.unlink(name, AtFlags::empty()).map_err(|error| Error::io("removing", &self.path.join(name), &error))
    }

    /// Removes whatever is at a name, a folder with all that is in it: for the state of a run, where all is ours.
    pub(crate) fn remove_all(&self, name: &OsStr) -> Result<()> {
        let kind = self.stat(name)?.map(|stat| FileType::from_raw_mode(stat.st_mode));
        if kind != Some(FileType::Directory) {
            return self.remove(name).map(drop);
        }
        if let Some(folder) = self.subfolder(name)? {
            folder.names()?.iter().try_for_each(|name| folder.remove_all(name))?;
        }
        self.remove_subfolder(name).map(drop)
    }

    /// Removes a folder in this one if it is empty; false when it stays or was not there.
    pub(crate) fn remove_subfolder(&self, name: &OsStr) -> Result<bool> {
        match self.unlink(name, AtFlags::REMOVEDIR) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
            other => other.map_err(|error| Error::io("removing the folder", &self.path.join(name), &error)),
        }
    }

    fn unlink(&self, name: &OsStr, flags: AtFlags) -> io::Result<bool> {
        self.fault(Operation::Remove)?;
        match rustix::fs::unlinkat(&*self.descriptor, name, flags) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Renames within the folder, replacing what was there.
    pub(crate) fn rename(&self, from: &OsStr, to: &OsStr) -> Result<()> {
        self.fault(Operation::Rename)
            .and_then(|()| Ok(rustix::fs::renameat(&*self.descriptor, from, &*self.descriptor, to)?))
            .map_err(|error| Error::io("renaming to", &self.path.join(to), &error))
    }

    /// Moves a file or a link to the same name in another folder, replacing what was there.
    pub(crate) fn rename_to(&self, name: &OsStr, other: &Directory) -> Result<()> {
        self.fault(Operation::Rename)
            .and_then(|()| Ok(rustix::fs::renameat(&*self.descriptor, name, &*other.descriptor, name)?))
            .map_err(|error| Error::io("renaming to", &other.path.join(name), &error))
    }

    /// Gives a file the same name in another folder, where nothing has that name: a second one or, where a file cannot
    /// have two, that alone.
    pub(crate) fn link_to(&self, name: &OsStr, other: &Directory) -> Result<()> {
        let linked = self.fault(Operation::Create).and_then(|()| {
            Ok(rustix::fs::linkat(&*self.descriptor, name, &*other.descriptor, name, AtFlags::empty())?)
        });
        linked.or_else(|_| self.rename_to(name, other))
    }

    /// Refuses a folder in which this process may neither make nor remove files.
    pub(crate) fn hold_writable(&self) -> Result<()> {
        match rustix::fs::accessat(&*self.descriptor, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
            Err(error @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => {
                Err(Error::io("writing to", &self.path, &error.into()))
            }
            // The answer of a system that cannot tell: what follows finds out.
            _ => Ok(()),
        }
    }

    /// Flushes the folder itself, so that names survive a power cut.
    pub(crate) fn sync(&self) -> Result<()> {
        let synced = self
            .fault(Operation::SyncFolder)
            .and_then(|()| flushed(rustix::fs::fsync(&*self.descriptor).map_err(io::Error::from)));
        synced.map_err(|error| Error::io("flushing the folder", &self.path, &error))
    }
}

/// The answer to flushing a file or a folder. File systems that have nothing to flush, or cannot flush a folder (network
/// and user-space ones), say so in one of these ways, in every run: that is not a disk that fails.
pub(crate) fn flushed(answer: io::Result<()>) -> io::Result<()> {
    match answer {
        Err(error) if Errno::from_io_error(&error).is_some_and(is_not_offered) => Ok(()),
        other => other,
    }
}

/// Whether an answer means that the file system does not have this call.
pub(crate) fn is_not_offered(answer: Errno) -> bool {
    [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOTSUP].contains(&answer)
}

/// The name under which a file is written before it is renamed into place.
pub(crate) fn part_name(name: &OsStr) -> OsString {
    let mut part = OsString::from(".");
    part.push(name);
    part.push(".part");
    part
}
