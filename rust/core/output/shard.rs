//! One weight file being written: by many threads, at final offsets, under another name until it is complete.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD};
use serde::Serialize;

use super::contents;
use super::digest::{each_block, FileDigest};
use super::fault::Operation;
use super::folder::OutputFolder;
use super::journal::JournalRecord;
use super::shared::Shared;
use super::system::{flushed, part_name, Directory};
use crate::error::{Error, Result};
use crate::file::platform::{FileSystem, Here, Platform};
use crate::file::regular;

/// Bytes written to a file between two waits for the disk. Large enough that a wait costs little (one flush per
/// window), small enough that what a kill or the last flush has to deal with is bounded.
const WINDOW: u64 = 128 << 20;

/// A weight file in the making. Dropped without [`publish`](ShardFile::publish), it leaves nothing behind.
#[derive(Debug)]
pub struct ShardFile {
    shared: Arc<Shared>,
    /// The folder that it lies in: that of the output, or one below.
    directory: Directory,
    name: String,
    /// Its name in that folder.
    base: OsString,
    part: OsString,
    path: PathBuf,
    file: File,
    size: u64,
    in_memory: bool,
    behind: AtomicU64,
    waiting: Mutex<()>,
    failed: AtomicBool,
    published: AtomicBool,
}

/// What an output may share with an input, or with another output, when a whole shard is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Blocks on the disk, until one of the two is changed (a reflink).
    Blocks,
    /// The file itself, under two names: changing one in place changes both. Where that cannot be, blocks.
    File,
}

impl ShardFile {
    /// Creates the file at its final size, without reserving space; any number of shards may be open at once. Name and
    /// size are those of the admission.
    pub fn create(folder: &OutputFolder, name: &str, size: u64) -> Result<ShardFile> {
        let shared = Arc::clone(folder.shared());
        if expected_size(&shared, name)? != size {
            return Err(Error::engine(format!("`{name}` was not admitted with {size} bytes")));
        }
        let (directory, base) = contents::place_below(&shared.claim.directory, Path::new(name))?;
        let file = directory.create(&part_name(&base))?;
        let shard = ShardFile::new(shared, directory, base, name, file, size)?;
        shard.checked("sizing", shard.file.set_len(size))?;
        Ok(shard)
    }

    fn new(
        shared: Arc<Shared>,
        directory: Directory,
        base: OsString,
        name: &str,
        file: File,
        size: u64,
    ) -> Result<ShardFile> {
        let path = directory.path().join(&base);
        let in_memory = Here::file_system(directory.descriptor()) == Some(FileSystem::Memory);
        Ok(ShardFile {
            name: name.to_string(),
            part: part_name(&base),
            base,
            path,
            file,
            size,
            in_memory,
            behind: AtomicU64::new(0),
            waiting: Mutex::new(()),
            failed: AtomicBool::new(false),
            published: AtomicBool::new(false),
            directory,
            shared,
        })
    }

    /// The final file name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The final size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reserves space for a range, so that a full disk shows now and not in the middle of the run. May be called by
    /// several threads for different ranges. Where the file system cannot reserve, nothing happens; nor does it on one
    /// in memory, where reserving means clearing pages: of a write of 1 GB that takes two thirds of the time, with the
    /// file locked against all other threads (0.27 of 0.41 s, two cores, AMD Zen 5 class).
    pub fn allocate(&self, range: Range<u64>) -> Result<()> {
        let range = range.start.min(self.size)..range.end.min(self.size);
        if range.is_empty() || self.in_memory {
            return Ok(());
        }
        let fault = self.shared.claim.directory.fault(Operation::Allocate);
        self.checked("reserving space for", fault.and_then(|()| Here::reserve(&self.file, range))).map(drop)
    }

    /// Writes bytes at their final place. May be called by several threads.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.size) {
            return Err(Error::engine(format!("a write beyond the end of `{}`", self.path.display())));
        }
        let fault = self.shared.claim.directory.fault(Operation::Write);
        self.checked("writing", fault.and_then(|()| self.file.write_all_at(bytes, offset)))
    }

    /// Says that a range is complete: its way to the disk begins now, what arrived there leaves the page cache, and
    /// once in a while the caller waits for the disk. On a file system in memory nothing happens.
    pub fn write_behind(&self, range: Range<u64>) -> Result<()> {
        let length = range.end.saturating_sub(range.start);
        if self.in_memory || length == 0 {
            return Ok(());
        }
        Here::write_out(&self.file, Some(range));
        let before = self.behind.fetch_add(length, Ordering::Relaxed);
        if before / WINDOW == (before + length) / WINDOW {
            return Ok(());
        }
        // Whoever fills a window waits for what is under way; whoever fills the next waits for that, so at most two
        // windows are ever dirty.
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.flush()?;
        drop(waiting);
        Here::write_out(&self.file, None);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let fault = self.shared.claim.directory.fault(Operation::Sync);
        let synced = fault.and_then(|()| flushed(self.file.sync_data()));
        if let Err(error) = &synced {
            self.failed.store(true, Ordering::Relaxed);
            return Err(Error::failed_flush(&self.path, error));
        }
        Ok(())
    }

    /// The digest of what has been written, read back: for files whose parts are not blocks.
    pub fn digest(&self, threads: usize, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<String> {
        let digest = FileDigest::new(self.size);
        super::digest::each_block(&digest, &self.file, &self.path, threads, cancelled, &|_, _| Ok(()))?;
        digest.finish()
    }

    /// Puts the complete file in place and enters it in the journal. After an error it is not published: the next run
    /// writes it again.
    ///
    /// `digest` is that of the whole file in hexadecimal, `extra` what a resumed run finds in
    /// [`OutputFolder::done`].
    pub fn publish(&self, digest: &str, extra: &impl Serialize) -> Result<()> {
        if self.failed.load(Ordering::Relaxed) || self.published.load(Ordering::Relaxed) {
            return Err(Error::engine(format!("`{}` cannot be published", self.path.display())));
        }
        let metadata = self.file.metadata().map_err(|error| Error::io("examining", &self.path, &error))?;
        if metadata.len() != self.size {
            return Err(Error::unexpected_size(&self.path, self.size, metadata.len()));
        }
        // A flush that fails once may succeed when tried again although the data is lost, so it is never tried again.
        self.flush()?;
        self.directory.rename(&self.part, &self.base)?;
        self.published.store(true, Ordering::Relaxed);
        self.directory.sync()?;
        let (shard, digest) = (self.name.clone(), digest.to_string());
        self.shared.enter(JournalRecord { shard, size: self.size, digest, extra: None }, extra)
    }

    fn checked<T>(&self, action: &str, outcome: io::Result<T>) -> Result<T> {
        outcome.map_err(|error| {
            self.failed.store(true, Ordering::Relaxed);
            Error::io(action, &self.path, &error)
        })
    }
}

impl Drop for ShardFile {
    fn drop(&mut self) {
        if !self.published.load(Ordering::Relaxed) {
            // The next run removes it where this fails.
            let _ = self.directory.remove(&self.part);
        }
    }
}

fn expected_size(shared: &Shared, name: &str) -> Result<u64> {
    shared.sizes.get(name).copied().ok_or_else(|| Error::bad_shard_name(name))
}

/// Makes an output shard out of a whole file, byte for byte, and returns it with its digest, ready to be published.
/// Unless the digest is known, reading is inevitable for it, so where nothing can be shared the same pass writes
/// (`copy_file_range` would read everything a second time). `threads` is as in
/// [`digest_file`](super::digest::digest_file).
pub fn copy_whole(
    folder: &OutputFolder,
    source: &Path,
    name: &str,
    sharing: Sharing,
    known: Option<&str>,
    threads: usize,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<(ShardFile, String)> {
    let size = expected_size(folder.shared(), name)?;
    let (input, stamp) = regular::open(source)?;
    if stamp.size != size {
        return Err(Error::unexpected_size(source, size, stamp.size));
    }
    let linked = if sharing == Sharing::File { hard_link(folder, source, name, size)? } else { None };
    let (shard, shared) = match linked {
        Some(shard) => (shard, true),
        None => {
            let shard = ShardFile::create(folder, name, size)?;
            let shared = Here::share_blocks(&input, &shard.file);
            (shard, shared)
        }
    };
    if let (true, Some(known)) = (shared, known) {
        return Ok((shard, known.to_owned()));
    }
    let digest = FileDigest::new(size);
    if shared {
        each_block(&digest, &shard.file, source, threads, cancelled, &|_, _| Ok(()))?;
    } else {
        shard.allocate(0..size)?;
        each_block(&digest, &input, source, threads, cancelled, &|offset, bytes| {
            shard.write_at(offset, bytes)?;
            shard.write_behind(offset..offset + bytes.len() as u64)
        })?;
    }
    Ok((shard, digest.finish()?))
}

/// `None` where the file system, or a rule of the system, does not allow a second name for the file.
fn hard_link(folder: &OutputFolder, source: &Path, name: &str, size: u64) -> Result<Option<ShardFile>> {
    let shared = Arc::clone(folder.shared());
    let (directory, base) = contents::place_below(&shared.claim.directory, Path::new(name))?;
    let part = part_name(&base);
    directory.remove(&part)?;
    // Two names of one file: renaming one onto the other would do nothing.
    directory.remove(&base)?;
    if rustix::fs::linkat(CWD, source, directory.descriptor(), &part, AtFlags::SYMLINK_FOLLOW).is_err() {
        return Ok(None);
    }
    let path = directory.path().join(&part);
    let file = File::open(&path).map_err(|error| Error::io("opening", &path, &error))?;
    ShardFile::new(shared, directory, base, name, file, size).map(Some)
}
