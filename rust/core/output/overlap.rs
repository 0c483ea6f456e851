//! Does an output folder touch an input? Decided by device and inode along the parents of resolved paths, so that no
//! spelling, symbolic link or bind mount hides it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::Access;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::file::folder::{known, metadata, names, resolved};
use crate::file::regular;
use crate::workers;

/// Device and inode.
type Identity = (u64, u64);

/// One weight file of an input as it was when the run began; a resumed run must find the same. Runs of earlier versions
/// noted size and time of the last change alone: of those no more is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub(crate) struct Stamp {
    pub(crate) path: String,
    pub(crate) size: u64,
    /// Nanoseconds since 1970.
    pub(crate) modified: i128,
    inode: Option<u64>,
    /// The last change of anything, in nanoseconds since 1970.
    changed: Option<i128>,
    /// Names; one more or one less is a change that leaves the contents alone.
    links: Option<u64>,
    /// BLAKE3 of some of its bytes; of all, where it is not larger than [`WHOLE`].
    sample: Option<String>,
}

/// Bytes up to which a file is read as a whole to know it again.
const WHOLE: u64 = 4 << 20;
/// Of a larger one, so many pieces, evenly from its first byte to its last, of so many bytes each.
const PIECES: u64 = 16;
const PIECE: u64 = 4096;

impl Stamp {
    fn new(path: &Path, metadata: &fs::Metadata) -> Stamp {
        let nanoseconds = |seconds: i64, more: i64| i128::from(seconds) * 1_000_000_000 + i128::from(more);
        Stamp {
            path: path.display().to_string(),
            size: metadata.len(),
            modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            inode: Some(metadata.ino()),
            changed: Some(nanoseconds(metadata.ctime(), metadata.ctime_nsec())),
            links: Some(metadata.nlink()),
            sample: None,
        }
    }

    /// Whether the file that had this stamp is the one that has `now`. What can be read as a whole is known by its
    /// bytes, wherever they lie and whenever they came there.
    pub(crate) fn compare(&self, now: &Stamp) -> Sameness {
        let differ = |a: Option<i128>, b: Option<i128>| a.zip(b).is_some_and(|(a, b)| a != b);
        if self.path != now.path || self.size != now.size || (self.sample.is_some() && self.sample != now.sample) {
            return Sameness::Different;
        }
        if self.sample.is_some() && self.size <= WHOLE {
            return Sameness::Same;
        }
        let moved = differ(self.inode.map(i128::from), now.inode.map(i128::from));
        let changed = self.links == now.links && differ(self.changed, now.changed);
        match () {
            () if self.modified != now.modified => Sameness::Different,
            () if moved || changed => Sameness::NotKnown,
            () => Sameness::Same,
        }
    }
}

/// What can be told about a file and an earlier state of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sameness {
    /// It is the same file, or one of the same bytes.
    Same,
    /// Size, time and sample are the same, but it lies elsewhere or something was changed: put back as it was, or another
    /// file that was given the time of the first.
    NotKnown,
    /// It is another one.
    Different,
}

/// BLAKE3 of a fixed sample of a file; none of what is no file or may not be read, which no run has read either.
fn sample(path: &Path) -> Result<Option<String>> {
    let is_file = metadata(path)?.is_some_and(|metadata| metadata.is_file());
    if !is_file || rustix::fs::access(path, Access::READ_OK) == Err(Errno::ACCESS) {
        return Ok(None);
    }
    let (file, stamp) = regular::open(path)?;
    let mut digest = blake3::Hasher::new();
    let mut bytes = regular::buffer(if stamp.size <= WHOLE { stamp.size } else { PIECE }, path)?;
    let last = stamp.size - bytes.len() as u64;
    for piece in 0..if last == 0 { 1 } else { PIECES } {
        let at = u128::from(last) * u128::from(piece) / u128::from(PIECES - 1);
        regular::read_at(&file, path, &mut bytes, at as u64)?;
        digest.update(&bytes);
    }
    Ok(Some(digest.finalize().to_hex().to_string()))
}

/// The inputs of a run, as far as an output folder must know them.
pub(crate) struct Inputs {
    folders: Vec<(PathBuf, Identity)>,
    files: Vec<PathBuf>,
    pub(crate) stamps: Vec<Stamp>,
}

impl Inputs {
    /// Looks at the input folders (or single files) and the weight files in them.
    pub(crate) fn examine(inputs: &[&Path]) -> Result<Inputs> {
        let mut found = Inputs { folders: Vec::new(), files: Vec::new(), stamps: Vec::new() };
        for input in inputs {
            let resolved = fs::canonicalize(input).map_err(|error| Error::io("opening the input", input, &error))?;
            let there = metadata(&resolved)?.ok_or_else(|| Error::vanished(&resolved))?;
            if there.is_dir() {
                found.folders.push((resolved.clone(), (there.dev(), there.ino())));
                found.weights_of(&resolved)?;
            } else {
                found.file(&resolved)?;
            }
        }
        Ok(found)
    }

    fn weights_of(&mut self, folder: &Path) -> Result<()> {
        let mut paths: Vec<PathBuf> = names(folder)?.iter().map(|name| folder.join(name)).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        paths.sort();
        paths.iter().try_for_each(|path| self.file(path))
    }

    /// Reads of every weight file what it is known again by.
    pub(crate) fn sample(&mut self) -> Result<()> {
        let samples = workers::map(&self.files, |path| sample(path));
        for (stamp, sample) in self.stamps.iter_mut().zip(samples) {
            stamp.sample = sample?;
        }
        Ok(())
    }

    /// A name that leads nowhere is the reader's to report, not ours.
    fn file(&mut self, path: &Path) -> Result<()> {
        let Some(resolved) = resolved(path)? else { return Ok(()) };
        let Some(metadata) = metadata(&resolved)? else { return Ok(()) };
        self.stamps.push(Stamp::new(path, &metadata));
        self.files.push(resolved);
        Ok(())
    }

    /// Refuses an output folder (resolved, perhaps not there yet) that is, contains or lies within an input, or in
    /// which a weight file of an input lies behind a symbolic link. A file in the folder that is only a second hard
    /// link of an input is harmless: outputs are replaced by unlink and rename, never written in place.
    pub(crate) fn refuse_overlap(&self, output: &Path) -> Result<()> {
        let own = identity(output)?;
        let above = ancestors(output)?;
        for (input, it) in &self.folders {
            if own == Some(*it) {
                return Err(Error::output_is_input(output, input));
            }
            if above.contains(it) {
                return Err(Error::output_in_input(output, input));
            }
            let above_input = ancestors(input)?;
            if own.is_some_and(|own| above_input.contains(&own)) {
                return Err(Error::input_in_output(output, input));
            }
        }
        let Some(own) = own else { return Ok(()) };
        for file in &self.files {
            if ancestors(file)?.contains(&own) {
                return Err(Error::input_in_output(output, file));
            }
        }
        Ok(())
    }
}

/// The path without symbolic links and dots, also where its last parts do not exist yet.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf> {
    let whole = std::path::absolute(path).map_err(|error| Error::io("resolving", path, &error))?;
    let mut resolved = PathBuf::from("/");
    for component in whole.components() {
        match component {
            Component::Normal(name) => {
                let next = resolved.join(name);
                match fs::canonicalize(&next) {
                    Ok(found) => resolved = found,
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        // anything else that is there now was made meanwhile
                        let found = known(fs::symlink_metadata(&next), "resolving", &next)?;
                        if found.is_some_and(|found| found.is_symlink()) {
                            return Err(Error::dangling_link(&next));
                        }
                        resolved = next;
                    }
                    Err(error) => return Err(Error::io("resolving", &next, &error)),
                }
            }
            Component::ParentDir => {
                resolved.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(resolved)
}

fn identity(path: &Path) -> Result<Option<Identity>> {
    Ok(metadata(path)?.map(|metadata| (metadata.dev(), metadata.ino())))
}

/// The identities of the folders above a resolved path, as far as they exist.
fn ancestors(path: &Path) -> Result<Vec<Identity>> {
    let mut found = Vec::new();
    for above in path.ancestors().skip(1) {
        found.extend(identity(above)?);
    }
    Ok(found)
}
