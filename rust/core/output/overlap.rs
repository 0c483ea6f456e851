//! Does an output folder touch an input? Decided by device and inode along the parents of resolved paths, so that no
//! spelling, symbolic link or bind mount hides it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::error::{Error, Result};

/// Device and inode.
type Identity = (u64, u64);

/// One weight file of an input as it was when the run began; a resumed run must find the same.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Stamp {
    pub(crate) path: String,
    pub(crate) size: u64,
    /// Nanoseconds since 1970.
    pub(crate) modified: i128,
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
            if resolved.is_dir() {
                let identity = identity(&resolved)?.ok_or_else(|| Error::vanished(&resolved))?;
                found.folders.push((resolved.clone(), identity));
                found.weights_of(&resolved)?;
            } else {
                found.file(&resolved)?;
            }
        }
        Ok(found)
    }

    fn weights_of(&mut self, folder: &Path) -> Result<()> {
        let list = |error| Error::io("listing", folder, &error);
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(list)? {
            let path = entry.map_err(list)?.path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                names.push(path);
            }
        }
        names.sort();
        names.iter().try_for_each(|path| self.file(path))
    }

    /// A name that leads nowhere is the reader's to report, not ours.
    fn file(&mut self, path: &Path) -> Result<()> {
        let Ok(resolved) = fs::canonicalize(path) else { return Ok(()) };
        let Some(metadata) = metadata(&resolved)? else { return Ok(()) };
        let modified = metadata.modified().map_err(|error| Error::io("examining", path, &error))?;
        let modified = match modified.duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_nanos() as i128,
            Err(before) => -(before.duration().as_nanos() as i128),
        };
        self.stamps.push(Stamp { path: path.display().to_string(), size: metadata.len(), modified });
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
            if own.is_some_and(|own| ancestors(input).is_ok_and(|above| above.contains(&own))) {
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
                        if fs::symlink_metadata(&next).is_ok() {
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

fn metadata(path: &Path) -> Result<Option<fs::Metadata>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("examining", path, &error)),
    }
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
