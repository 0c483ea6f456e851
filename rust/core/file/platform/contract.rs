//! What every platform has to answer.

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::Mmap;
use rustix::fd::AsFd;
use rustix::fs::Stat;

/// Where a file lies, as far as it matters for how it is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// No disk is behind it: there is nothing to read ahead and nothing to wait for.
    Memory,
    /// A network or a process of a user is behind it: a page fault can fail or hang for reasons of its own.
    Remote,
    /// A disk of this machine.
    Local,
}

/// Why pages of a mapping are not in memory after they were asked for.
#[derive(Debug)]
#[cfg_attr(target_os = "macos", expect(dead_code, reason = "the call does not exist there"))]
pub(crate) enum Unpopulated {
    /// The call was interrupted or memory was short for a moment: it may be made again.
    Again(io::Error),
    /// The file has no such page any more, or the memory that held it is broken.
    Gone,
    /// Anything else; on a platform without the call always this.
    Failed(io::Error),
}

/// The system calls of which platforms have different ones, or none.
pub(crate) trait Platform {
    /// Where an open file or folder lies; `None` where the system does not say.
    fn file_system(file: impl AsFd) -> Option<FileSystem>;

    /// Brings pages of a mapping into memory, so that reading them cannot fail for a reason known now.
    ///
    /// # Errors
    /// [`Unpopulated`]. A mapping of which this cannot be done is not used: the file is read instead.
    fn populate(map: &Mmap, range: Range<usize>) -> Result<(), Unpopulated>;

    /// Says that a range of a file will be read soon. Advice: nothing happens where it cannot be taken.
    fn will_read(file: &File, range: Range<u64>);

    /// Starts the way to the disk of what was written in a range (`None`: in the whole file), and drops from the page
    /// cache what has arrived. Advice, as above.
    fn write_out(file: &File, range: Option<Range<u64>>);

    /// Reserves space on the disk for a range of a file, whose length stays as it is or grows to the end of the range.
    /// `false` where it cannot be reserved, and the writes find their space themselves.
    ///
    /// # Errors
    /// The disk is full, or the call failed otherwise.
    fn reserve(file: &File, range: Range<u64>) -> io::Result<bool>;

    /// Makes an empty file of the length of `source` share its blocks; `false` where that cannot be.
    fn share_blocks(source: &File, file: &File) -> bool;

    /// What tells the calling thread from the others of the process. May be called in a signal handler.
    fn thread() -> usize;

    /// The device of a file; with its inode it tells the file from all others.
    fn device(stat: &Stat) -> u64;
}
