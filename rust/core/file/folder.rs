//! What is in a folder, and whether something is there. Only a path that leads nowhere is absent: everything else that
//! the system says is an error, not an answer.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags, CWD};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// The names in a folder, in the order of the system.
///
/// # Errors
/// `Kind::NotFound`, or what the system says.
pub(crate) fn names(folder: &Path) -> Result<Vec<OsString>> {
    // The standard library panics where closing a folder fails.
    let failed = |error: Errno| Error::io("listing", folder, &error.into());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, folder, flags, Mode::empty()).map_err(failed)?;
    let mut names = Vec::new();
    for entry in Dir::new(opened).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}

/// What a path leads to, if it leads anywhere.
///
/// # Errors
/// Whatever the system says but that nothing is there.
pub(crate) fn metadata(path: &Path) -> Result<Option<Metadata>> {
    known(std::fs::metadata(path), "examining", path)
}

/// A path without links and dots, if it leads anywhere.
///
/// # Errors
/// As [`metadata`].
pub(crate) fn resolved(path: &Path) -> Result<Option<PathBuf>> {
    known(std::fs::canonicalize(path), "resolving", path)
}

/// What was found, or none where nothing is there.
///
/// # Errors
/// Every other failure.
pub(crate) fn known<T>(found: std::io::Result<T>, action: &str, path: &Path) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(Error::io(action, path, &error)),
    }
}

/// Whether an error says that nothing is there.
pub(crate) fn is_absence(error: &std::io::Error) -> bool {
    [Errno::NOENT, Errno::NOTDIR].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
