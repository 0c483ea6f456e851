//! Regular files: opened without blocking, read at an offset, and recognised again later.

use std::fs::{self, File, Metadata, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::heap::filled;
use crate::error::{shown_path, Error, Kind, Result};

/// What tells a file from another, and from itself after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Bytes.
    pub size: u64,
    /// Seconds and nanoseconds of the last change of its contents.
    pub modified: (i64, i64),
    /// Seconds and nanoseconds of the last change of anything, also where the other was put back.
    pub changed: (i64, i64),
    /// Names; one more or one less is a change that leaves the contents alone.
    pub links: u64,
    /// Device and inode.
    pub identity: (u64, u64),
}

impl Stamp {
    pub(crate) fn new(metadata: &Metadata) -> Self {
        Stamp {
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            links: metadata.nlink(),
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
        } else if now.changed != self.changed && now.links == self.links {
            "was changed, or its permissions were, while it was being read".into()
        } else {
            return Ok(());
        };
        Err(disturbed(path, &what))
    }
}

fn disturbed(path: &Path, what: &str) -> Error {
    Error::new(Kind::Format, format!("`{}` {what}", shown_path(path)))
        .hint("wait until nothing writes there any more, then start again")
}

/// The error for a file whose bytes are not those that were there before.
pub(crate) fn written_to(path: &Path) -> Error {
    disturbed(path, "was written to while it was being read")
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
    // Miri, an interpreter of programs, knows neither flag.
    let flags = if cfg!(miri) { OFlags::empty() } else { OFlags::NONBLOCK | OFlags::NOCTTY };
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
    Err(Error::new(Kind::Format, format!("`{}` is {found}, not a regular file", shown_path(path))))
}

/// Fills `buffer` from `offset` on.
///
/// # Errors
/// `Kind::Format` where the file ends too early, or what the system says.
pub(crate) fn read_at(file: &File, path: &Path, buffer: &mut [u8], offset: u64) -> Result<()> {
    let (mut patience, mut done) = (Patience::default(), 0);
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => return Err(truncated(path, offset + buffer.len() as u64)),
            Ok(read) => (patience, done) = (Patience::default(), done + read),
            Err(error) if is_passing(&error) && patience.wait() => {}
            Err(error) => return Err(Error::io("reading", path, &error)),
        }
    }
    Ok(())
}

fn is_passing(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock)
}

/// A buffer of `length` zeros, which a file has announced.
///
/// # Errors
/// `Kind::Output` where the system does not give that much memory.
pub(crate) fn buffer(length: u64, path: &Path) -> Result<Vec<u8>> {
    filled(length, 0).map_err(|error| error.at(path))
}

/// How often a call that the system asks to make again is made again, with a pause that grows: about a second in all.
#[derive(Debug, Default)]
pub(crate) struct Patience(u32);

impl Patience {
    /// Waits a little; false when it has been long enough.
    pub(crate) fn wait(&mut self) -> bool {
        self.0 += 1;
        if self.0 > 1 {
            std::thread::sleep(std::time::Duration::from_micros(1 << self.0.min(20)));
        }
        self.0 < 20
    }
}

/// The file has lost bytes before `end`.
pub(crate) fn truncated(path: &Path, end: u64) -> Error {
    Error::new(Kind::Format, format!("`{}` was truncated, or cannot be read, before byte {end}", shown_path(path)))
        .hint("check the disk and that nothing writes to that file, then start again")
}
