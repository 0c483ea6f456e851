//! The BLAKE3 digests of input files, made of their bytes while these are in memory for the arithmetic: the digest that
//! `b3sum` prints for the file. BLAKE3 is a tree, so the blocks of a file may come in any order and from any thread.
//! What no tensor of the plan is computed from (the header, gaps, tensors that are left out) is read at the end.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde::Serialize;

use super::ranges::joined;
use crate::error::Result;
use crate::file::mapped::Mapped;
use crate::monitor::Monitor;
use crate::output::digest::{FileDigest, BLOCK};
use crate::storage::input::Input;
use crate::storage::sources::Sources;
use crate::threads::each;

/// A file of which a run reads less than one byte in so many is not digested: the rest would be read for that alone.
const LEAST_SHARE: u64 = 2;

/// The input files whose digests are asked for.
#[derive(Default)]
pub(crate) struct Contents<'a> {
    files: Vec<InputFile<'a>>,
    /// Position in `files` by the address of the map: two sources that are one folder have two maps of a file.
    places: HashMap<usize, usize>,
    /// Those that are not digested, and whether they are read whole.
    others: Vec<(PathBuf, bool)>,
}

struct InputFile<'a> {
    mapped: &'a Mapped,
    digest: FileDigest,
    /// The blocks that a thread has taken.
    taken: Vec<AtomicBool>,
}

/// A file that is asked about.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Where it is.
    pub path: PathBuf,
    /// Whether its digest is wanted, or only whether it is read whole.
    pub digest: bool,
}

/// What is answered.
#[derive(Serialize)]
pub(crate) struct Content {
    path: String,
    /// Whether it is read, for the most part.
    whole: bool,
    /// Only where it is wanted, and the file is read whole.
    blake3: Option<String>,
}

impl<'a> Contents<'a> {
    /// Those of the `wanted` files that are read by the plan of these `inputs` for the most part.
    pub(crate) fn of<'i>(
        wanted: &[Asked],
        sources: &'a Sources<'_>,
        inputs: impl Iterator<Item = &'i Input<'a>>,
    ) -> Self
    where
        'a: 'i,
    {
        let mut found = Contents::default();
        if wanted.is_empty() {
            return found;
        }
        let mut read: HashMap<PathBuf, Vec<(u64, u64)>> = HashMap::new();
        for part in inputs.flat_map(|input| input.storage().parts()) {
            read.entry(part.file.path().to_path_buf()).or_default().push((part.offset, part.offset + part.bytes()));
        }
        let wanted: HashMap<&Path, bool> = wanted.iter().map(|each| (&*each.path, each.digest)).collect();
        let mut known: HashMap<PathBuf, Option<usize>> = HashMap::new();
        for mapped in sources.files() {
            let Some(digest) = wanted.get(mapped.path()) else { continue };
            let place = *known.entry(mapped.path().to_path_buf()).or_insert_with(|| {
                let ranges = joined(read.remove(mapped.path()).unwrap_or_default());
                let share: u64 = ranges.iter().map(|(start, end)| end - start).sum();
                let whole = share.saturating_mul(LEAST_SHARE) >= mapped.len();
                if !(whole && *digest) {
                    found.others.push((mapped.path().to_path_buf(), whole));
                    return None;
                }
                let digest = FileDigest::new(mapped.len());
                let taken = (0..digest.blocks()).map(|_| AtomicBool::new(false)).collect();
                found.files.push(InputFile { mapped, digest, taken });
                Some(found.files.len() - 1)
            });
            if let Some(place) = place {
                found.places.insert(std::ptr::from_ref(mapped).addr(), place);
            }
        }
        found
    }

    /// Whether there is nothing to digest.
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Digests the blocks of the files that hold these elements, which have just been read; each once. Of parts that are
    /// not divided by elements, their share: what is missed so, [`Contents::finish`] finds.
    ///
    /// # Errors
    /// A file that was truncated or cannot be read.
    pub(crate) fn touch(&self, input: &Input<'_>, elements: &Range<u64>, scratch: &mut Vec<u8>) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let storage = input.storage();
        let all = u128::from(storage.elements().max(1));
        for part in storage.parts() {
            let Some(file) = self.places.get(&std::ptr::from_ref(part.file).addr()).map(|place| &self.files[*place])
            else {
                continue;
            };
            let share = |element: u64| part.offset + (u128::from(part.bytes()) * u128::from(element) / all) as u64;
            let (start, end) = (share(elements.start), share(elements.end));
            for index in start / BLOCK..end.div_ceil(BLOCK).min(file.digest.blocks()) {
                file.block(index, scratch)?;
            }
        }
        Ok(())
    }

    /// The digests, once what is left of the files has been read.
    ///
    /// # Errors
    /// A file that was truncated or cannot be read, or the run was stopped.
    pub(crate) fn finish(&self, pool: &rayon::ThreadPool, monitor: &Monitor) -> Result<Vec<Content>> {
        let left: Vec<(&InputFile<'_>, u64)> = self
            .files
            .iter()
            .flat_map(|file| (0..file.digest.blocks()).map(move |index| (file, index)))
            .filter(|(file, index)| !file.taken[*index as usize].load(Relaxed))
            .collect();
        each(pool, monitor, left.len(), |at| {
            let (file, index) = left[at];
            file.block(index, &mut Vec::new())?;
            file.mapped.drop_behind(file.range(index));
            Ok(())
        })?;
        let whole = self.files.iter().map(|file| {
            Ok(Content { path: text(file.mapped.path()), whole: true, blake3: Some(file.digest.finish()?) })
        });
        let others = self.others.iter();
        let others = others.map(|(path, whole)| Ok(Content { path: text(path), whole: *whole, blake3: None }));
        whole.chain(others).collect()
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl InputFile<'_> {
    fn range(&self, index: u64) -> Range<u64> {
        index * BLOCK..((index + 1) * BLOCK).min(self.mapped.len())
    }

    /// Digests a block, unless another thread has or does.
    fn block(&self, index: u64, scratch: &mut Vec<u8>) -> Result<()> {
        if !self.taken[index as usize].swap(true, Relaxed) {
            self.digest.leaf(index, self.mapped.read(self.range(index), scratch)?);
        }
        Ok(())
    }
}
