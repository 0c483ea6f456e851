//! Regular files: opened without blocking, read at an offset, and recognised again later.

use std::fs::{self, File, Metadata, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::error::{shown, Error, Kind, Result};

/// What tells a file from another, and from itself after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Bytes.
    pub size: u64,
    /// Seconds and nanoseconds of the last change of its contents.
    pub modified: (i64, i64),
    /// Device and inode.
    pub identity: (u64, u64),
}

impl Stamp {
    fn new(metadata: &Metadata) -> Self {
        Stamp {
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            identity: (metadata.dev(), metadata.ino()),
        }
    }

    /// The file that `path` leads to is still the one that had this stamp, and has not changed.
    ///
    /// # Errors
    /// `Kind::Format` saying what changed.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        let now = fs::metadata(path).map_err(|error| Error::io("looking again at", path, &error))?;
        self.same(&Stamp::new(&now), path)
    }

    /// `now`, taken later at `path`, is this stamp.
    ///
    /// # Errors
    /// `Kind::Format` saying what changed.
    pub(crate) fn same(&self, now: &Stamp, path: &Path) -> Result<()> {
        let what = if now.identity != self.identity {
            "was replaced by another file while it was being read".into()
        } else if now.size != self.size {
            format!("had {} bytes and now has {}: it was changed while it was being read", self.size, now.size)
        } else if now.modified != self.modified {
            "was written to while it was being read".into()
        } else {
            return Ok(());
        };
        Err(Error::new(Kind::Format, format!("`{}` {what}", shown(&path.to_string_lossy())))
            .hint("wait until nothing writes there any more, then start again"))
    }
}

/// Opens a regular file for reading; symbolic links are followed. Anything else is refused before it is opened: opening
/// a FIFO can wait for ever, and opening a device can do things.
///
/// # Errors
/// `Kind::NotFound`, `Kind::Format` where it is not a regular file, or what the system says.
pub(crate) fn open(path: &Path) -> Result<(File, Stamp)> {
    let failed = |error: std::io::Error| Error::io("opening", path, &error);
    regular(&fs::metadata(path).map_err(failed)?, path)?;
    // Between that look and this call the path may have come to lead elsewhere; so it must not block either.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    regular(&metadata, path)?;
    Ok((file, Stamp::new(&metadata)))
}

fn regular(metadata: &Metadata, path: &Path) -> Result<()> {
    let kind = metadata.file_type();
    let found = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(Error::new(Kind::Format, format!("`{}` is {found}, not a regular file", shown(&path.to_string_lossy()))))
}

/// Fills `buffer` from `offset` on.
///
/// # Errors
/// `Kind::Format` where the file ends too early, or what the system says.
pub(crate) fn read_at(file: &File, path: &Path, buffer: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => truncated(path, offset + buffer.len() as u64),
        _ => Error::io("reading", path, &error),
    })
}

/// The file has lost bytes before `end`.
pub(crate) fn truncated(path: &Path, end: u64) -> Error {
    Error::new(
        Kind::Format,
        format!("`{}` was truncated, or cannot be read, before byte {end}", shown(&path.to_string_lossy())),
    )
    .hint("check the disk and that nothing writes to that file, then start again")
}
