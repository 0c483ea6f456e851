//! macOS. Compiled in every check of the project where the target's standard library can be had; the release builds it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::Mmap;
use rustix::fd::AsFd;
use rustix::fs::Stat;

use super::contract::{FileSystem, Platform, Unpopulated};

pub(crate) struct MacOs;

impl Platform for MacOs {
    /// The system marks what lies on a disk of this machine. File systems of user processes (macFUSE) may mark
    /// themselves as local, so they are told by name. None is in memory.
    fn file_system(file: impl AsFd) -> Option<FileSystem> {
        let system = rustix::fs::fstatfs(file).ok()?;
        let name = system.f_fstypename.map(|letter| (letter as u8).to_ascii_lowercase());
        let is_local = system.f_flags & libc::MNT_LOCAL as u32 != 0;
        let is_of_a_process = name.windows(4).any(|part| part == b"fuse");
        Some(if is_local && !is_of_a_process { FileSystem::Local } else { FileSystem::Remote })
    }

    /// There is no such call, so files are read into buffers and never mapped.
    fn populate(_: &Mmap, _: Range<usize>) -> Result<(), Unpopulated> {
        Err(Unpopulated::Failed(io::ErrorKind::Unsupported.into()))
    }

    /// `F_RDADVISE`.
    fn will_read(file: &File, range: Range<u64>) {
        let _ = rustix::fs::fcntl_rdadvise(file, range.start, range.end.saturating_sub(range.start));
    }

    /// There is no such advice: the system writes when it likes, and the windows of a shard wait for it.
    fn write_out(_: &File, _: Option<Range<u64>>) {}

    /// What stands for `fallocate` here, `F_PREALLOCATE`, reserves behind the end of a file alone, and libraries that
    /// imitate the other cut the file to the end of the range: shards have their final size before their parts are
    /// reserved, so that would lose what other threads have written behind it.
    fn reserve(_: &File, _: Range<u64>) -> io::Result<bool> {
        Ok(false)
    }

    /// APFS shares blocks only with a file that the same call creates; here the file exists, so it is copied.
    fn share_blocks(_: &File, _: &File) -> bool {
        false
    }

    fn thread() -> usize {
        // SAFETY: takes nothing, cannot fail, and may be called in a signal handler.
        unsafe { libc::pthread_self() as usize }
    }

    /// The number is a signed 32-bit one, whose bits are what `std` shows too.
    fn device(stat: &Stat) -> u64 {
        stat.st_dev as u64
    }
}
