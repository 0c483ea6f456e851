//! A file in memory, from which reading never ends in a signal.
//!
//! A mapped page that lies beyond the end of a file that has shrunk raises SIGBUS when it is touched. Three things stand
//! against that:
//!
//! 1. [`Mapped::read`] populates the pages first (`MADV_POPULATE_READ`), which turns a page that cannot be read into an
//!    error code. It also maps the pages of a chunk in one call instead of one fault each.
//! 2. A page can vanish after it was populated, while a caller computes on it: truncation takes it away at once, memory
//!    pressure takes it and truncation then keeps it from coming back. [`guard`] puts a page of zeros in its place and
//!    notes the loss; the next [`Mapped::read`] and [`Mapped::unchanged`] report it.
//! 3. Bytes may change without a page getting lost (a write in place; a truncation within the last page, which reads as
//!    zeros). [`Mapped::unchanged`] sees that by size and by the times of the last change of contents and of anything
//!    else. What no time shows stays unseen: a write through a shared mapping before the system has noted it, which on
//!    a file system in memory may be never.
//!
//! So the contract: the bytes that it gives are what the file held only if [`Mapped::unchanged`] succeeds *after* they were
//! used. Whoever publishes something computed from them calls it first.
//!
//! Where mapping is a bad idea (network file systems, on which a lost server means a signal or an endless wait) or is
//! not possible (kernels before 5.14, macOS, file systems without mmap, more files than a process may map), the same calls
//! read into the caller's buffer.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::platform::{FileSystem, Here, Platform, Unpopulated};
use super::regular::{self, Patience, Stamp};
use crate::error::{shown_path, Error, Kind, Result};

mod guard;
mod share;

use share::Share;

/// Up to this many bytes a fault, which `guard` watches over, is cheaper than the call that prevents it: models of many
/// small tensors are read by the thousand.
const FAULTED: usize = 8 << 10;

/// A regular file, readable by range from any thread.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    stamp: Stamp,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Without its file descriptor: three large models have more shards than a process may have open files.
    Memory {
        // Before the map: fields are dropped in this order, and a watch must not outlive what it watches.
        watch: guard::Watch,
        map: Mmap,
        /// The file system itself is in memory: asking ahead only costs.
        resident: bool,
        _share: Share,
    },
    /// Open, or where too many are, opened again to be read.
    File(Option<(File, Share)>),
}

impl Mapped {
    /// Maps `path`, or keeps it open for reading where mapping will not do.
    ///
    /// # Errors
    /// As [`regular::open`].
    pub fn open(path: &Path) -> Result<Mapped> {
        let (file, stamp) = regular::open(path)?;
        let source = match map(&file, &stamp) {
            Some((map, watch, share)) => {
                let resident = Here::file_system(&file) == Some(FileSystem::Memory);
                Source::Memory { map, watch, resident, _share: share }
            }
            None => Source::File(Share::file().map(|share| (file, share))),
        };
        Ok(Mapped { path: path.to_owned(), stamp, source })
    }

    /// Keeps `path` open for reading and maps nothing, as on a network file system: for tests of that.
    ///
    /// # Errors
    /// As [`regular::open`].
    #[doc(hidden)]
    pub fn open_unmapped(path: &Path) -> Result<Mapped> {
        let (file, stamp) = regular::open(path)?;
        Ok(Mapped { path: path.to_owned(), stamp, source: Source::File(Share::file().map(|share| (file, share))) })
    }

    /// As on a network file system, with more files than may stay open.
    ///
    /// # Errors
    /// As [`regular::open`].
    #[doc(hidden)]
    pub fn open_closed(path: &Path) -> Result<Mapped> {
        let (_, stamp) = regular::open(path)?;
        Ok(Mapped { path: path.to_owned(), stamp, source: Source::File(None) })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.stamp.size
    }

    /// Whether it had none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it was when it was opened.
    pub(crate) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// Whether it is in memory, not read into buffers.
    pub fn is_mapped(&self) -> bool {
        matches!(self.source, Source::Memory { .. })
    }

    /// The bytes of `range`: the file's own pages, now in memory, or a copy in `scratch`. Read the module's contract.
    ///
    /// # Errors
    /// `Kind::Format` where the file was truncated; `Kind::Engine` where `range` is not within its length.
    pub fn read<'a>(&'a self, range: Range<u64>, scratch: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        let at = self.within(&range)?;
        match &self.source {
            Source::Memory { map, watch, .. } => {
                if at.len() > FAULTED {
                    self.populate(range)?;
                } else if watch.lost() {
                    return Err(regular::truncated(&self.path, range.end));
                } else {
                    watch.renew();
                }
                Ok(&map[at])
            }
            Source::File(kept) => {
                // Grown once, never shrunk: resizing down and up again would fill it with zeros each time.
                if scratch.len() < at.len() {
                    scratch.resize(at.len(), 0);
                }
                let buffer = &mut scratch[..at.len()];
                match kept {
                    Some((file, _)) => regular::read_at(file, &self.path, buffer, range.start)?,
                    None => {
                        let (file, stamp) = regular::open(&self.path)?;
                        self.stamp.same(&stamp, &self.path)?;
                        regular::read_at(&file, &self.path, buffer, range.start)?;
                    }
                }
                Ok(buffer)
            }
        }
    }

    /// Brings the pages of `range` into memory; nothing to do where the file is not mapped.
    ///
    /// # Errors
    /// As [`Mapped::read`].
    pub(crate) fn populate(&self, range: Range<u64>) -> Result<()> {
        let at = self.within(&range)?;
        let Source::Memory { map, watch, .. } = &self.source else { return Ok(()) };
        if watch.lost() {
            return Err(regular::truncated(&self.path, range.end));
        }
        if at.is_empty() {
            return Ok(());
        }
        watch.renew();
        let mut patience = Patience::default();
        loop {
            let Err(error) = Here::populate(map, at.clone()) else { return Ok(()) };
            return match error {
                Unpopulated::Again(_) if patience.wait() => continue,
                Unpopulated::Gone => Err(regular::truncated(&self.path, range.end)),
                // The probe in `map` succeeded, so the kernel knows the call; only a page-table shortage is left.
                Unpopulated::Again(error) | Unpopulated::Failed(error) => Err(Error::io("reading", &self.path, &error)),
            };
        }
    }

    /// Says that `range` will be read soon. Costs nothing where it cannot be honoured.
    pub fn advise_ahead(&self, range: Range<u64>) {
        let Ok(at) = self.within(&range) else { return };
        // Advice that is not taken changes nothing but the time.
        match &self.source {
            Source::Memory { map, resident: false, .. } if !at.is_empty() => {
                let _ = map.advise_range(Advice::WillNeed, at.start, at.len());
            }
            Source::Memory { .. } | Source::File(None) => {}
            Source::File(Some((file, _))) => Here::will_read(file, range),
        }
    }

    /// Says that `range` will not be read again: its whole pages leave this process, not the page cache, whose owner is
    /// the system. Reading them again is allowed and faults them in again.
    pub fn drop_behind(&self, range: Range<u64>) {
        let (Ok(at), Source::Memory { map, .. }) = (self.within(&range), &self.source) else { return };
        let page = rustix::param::page_size();
        // The file's last page ends where the file does.
        let end = if at.end == map.len() { at.end } else { at.end / page * page };
        let start = at.start.next_multiple_of(page);
        if start < end {
            // SAFETY: the mapping is shared and read-only, so its pages hold nothing that the file does not: dropping
            // them changes no byte that a slice shows, however many slices there are. What a fault may find instead of
            // the page is the matter of `guard`.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
        }
    }

    /// The file is still what it was when it was opened, and no page of it has been lost.
    ///
    /// # Errors
    /// `Kind::Format` saying what changed.
    pub fn unchanged(&self) -> Result<()> {
        self.stamp.check(&self.path)?;
        match &self.source {
            Source::Memory { watch, .. } if watch.lost() => Err(regular::truncated(&self.path, self.len())),
            _ => Ok(()),
        }
    }

    /// `range` as indices, if it lies within the file.
    fn within(&self, range: &Range<u64>) -> Result<Range<usize>> {
        let inside = range.start <= range.end && range.end <= self.len();
        match (usize::try_from(range.start), usize::try_from(range.end)) {
            (Ok(start), Ok(end)) if inside => Ok(start..end),
            _ => Err(Error::new(
                Kind::Engine,
                format!(
                    "bytes {}..{} were asked of `{}`, which has {}",
                    range.start,
                    range.end,
                    shown_path(&self.path),
                    self.len()
                ),
            )),
        }
    }
}

/// A mapping of the whole file, unless it is better read.
fn map(file: &File, stamp: &Stamp) -> Option<(Mmap, guard::Watch, Share)> {
    // Miri, an interpreter of programs, maps no files.
    if cfg!(miri) || stamp.size == 0 || usize::try_from(stamp.size).is_err() {
        return None;
    }
    // On a file system that cannot be told, a page fault may be as bad as on a remote one.
    if matches!(Here::file_system(file), None | Some(FileSystem::Remote)) {
        return None;
    }
    let share = Share::mapping()?;
    // SAFETY: the one place where a file is mapped. The bytes behind the returned slice belong to the file, and another
    // process can change them. Nothing here or in the crate depends on them staying the same: they are only ever
    // numbers to compute with or bytes to copy, headers being read into buffers of their own; a change is found by
    // `unchanged`, before a result is published. A page that is no longer there is caught by `guard`, whose watch is
    // dropped before the mapping.
    let map = unsafe { Mmap::map(file) }.ok()?;
    // Kernels before 5.14 say EINVAL. A file already cut short says EFAULT, and reading will report it.
    Here::populate(&map, 0..1).ok()?;
    let watch = guard::Watch::new(&map)?;
    Some((map, watch, share))
}
