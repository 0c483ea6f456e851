//! Linux, with glibc and with musl.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;

use memmap2::{Advice as MapAdvice, Mmap};
use rustix::fd::AsFd;
use rustix::fs::{Advice, FallocateFlags, Stat};
use rustix::io::Errno;

use super::contract::{FileSystem, Platform, Unpopulated};

pub(crate) struct Linux;

/// tmpfs and ramfs, from linux/magic.h.
const MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];

/// Numbers from linux/magic.h and the file systems' sources.
const REMOTE: [(u32, &str); 17] = [
    (0x6969, "nfs"),
    (0x517b, "smb"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x6573_5546, "fuse"),
    (0x0102_1997, "9p"),
    (0x5346_414f, "afs"),
    (0x6b41_4653, "kafs"),
    (0x7375_7245, "coda"),
    (0x00c3_6400, "ceph"),
    (0x0bd0_0bd0, "lustre"),
    (0x4750_4653, "gpfs"),
    (0x1983_0326, "beegfs"),
    (0x0116_1970, "gfs2"),
    (0x7461_636f, "ocfs2"),
    (0x2003_0528, "orangefs"),
    (0x786f_4256, "vboxsf"),
];

impl Platform for Linux {
    fn file_system(file: impl AsFd) -> Option<FileSystem> {
        // The width and the sign of the number differ between architectures; its low 32 bits are the same.
        let kind = rustix::fs::fstatfs(file).ok()?.f_type as u32;
        Some(if MEMORY.contains(&kind) {
            FileSystem::Memory
        } else if REMOTE.iter().any(|(magic, _)| *magic == kind) {
            FileSystem::Remote
        } else {
            FileSystem::Local
        })
    }

    /// `MADV_POPULATE_READ`: kernels before 5.14 answer EINVAL.
    fn populate(map: &Mmap, range: Range<usize>) -> Result<(), Unpopulated> {
        map.advise_range(MapAdvice::PopulateRead, range.start, range.len()).map_err(|error| match Errno::from_io_error(
            &error,
        ) {
            Some(Errno::INTR | Errno::AGAIN) => Unpopulated::Again(error),
            Some(Errno::FAULT | Errno::HWPOISON) => Unpopulated::Gone,
            _ => Unpopulated::Failed(error),
        })
    }

    fn will_read(file: &File, range: Range<u64>) {
        if let Some(length) = length(&range) {
            let _ = rustix::fs::fadvise(file, range.start, Some(length), Advice::WillNeed);
        }
    }

    /// Linux starts the write-out of dirty pages and drops clean ones.
    fn write_out(file: &File, range: Option<Range<u64>>) {
        let _ = match range {
            None => rustix::fs::fadvise(file, 0, None, Advice::DontNeed),
            Some(range) => match length(&range) {
                Some(length) => rustix::fs::fadvise(file, range.start, Some(length), Advice::DontNeed),
                None => Ok(()),
            },
        };
    }

    fn reserve(file: &File, range: Range<u64>) -> io::Result<bool> {
        let Some(length) = length(&range) else { return Ok(true) };
        loop {
            match rustix::fs::fallocate(file, FallocateFlags::empty(), range.start, length.get()) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                // The range is one that may be reserved, so that this is of the file system.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// `FICLONE`, of file systems with shared blocks (btrfs, XFS, bcachefs).
    fn share_blocks(source: &File, file: &File) -> bool {
        rustix::fs::ioctl_ficlone(file, source).is_ok()
    }

    /// The call is made directly, so the thread's errno stays as it was.
    fn thread() -> usize {
        rustix::thread::gettid().as_raw_nonzero().get() as usize
    }

    fn device(stat: &Stat) -> u64 {
        stat.st_dev
    }
}

/// Zero would mean up to the end of the file.
fn length(range: &Range<u64>) -> Option<NonZeroU64> {
    NonZeroU64::new(range.end.saturating_sub(range.start))
}
