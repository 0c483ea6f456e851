//! What lies in an output folder, and what of it may be removed: only what an earlier run of taskvec wrote and the
//! files a checkpoint is made of. Anything else stays.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{FileType, Stat};

use super::system::Directory;
use super::{MANIFEST, STATE};
use crate::error::{Error, Result};
use crate::file::platform::{Here, Platform};

/// Files other than weights that change how a checkpoint works: left from another model they would spoil the new one
/// (a `chat_template.jinja` wins over the template in `tokenizer_config.json`, for example).
const BESIDE: [&str; 16] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "tiktoken.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "spiece.model",
];

/// What lists the sub-folders of a pipeline of several models, and is looked for first.
const PIPELINE: &str = "model_index.json";
/// Lists the modules of a model, some of them in sub-folders.
const MODULES: &str = "modules.json";

/// A file that makes a folder look like a complete output.
fn is_marker(name: &OsStr) -> bool {
    name == MANIFEST
        || name == PIPELINE
        || (name.as_bytes().ends_with(b".safetensors.index.json") && !name.as_bytes().contains(&b'/'))
}

fn is_weights(name: &OsStr) -> bool {
    name.as_bytes().ends_with(b".safetensors")
}

/// The name of the file that is written under this one until it is whole, if it is such a name: `.NAME.part`, or
/// `.NAME.PROCESS.part`.
fn whole_name(part: &OsStr) -> Option<&str> {
    let name = part.to_str()?.strip_prefix('.')?.strip_suffix(".part")?;
    match name.rsplit_once('.') {
        Some((name, process)) if !process.is_empty() && process.bytes().all(|byte| byte.is_ascii_digit()) => Some(name),
        _ => Some(name),
    }
}

/// Whether a checkpoint may have a file of this name: what writes one under another name is a run.
fn is_of_checkpoint(name: &str) -> bool {
    is_marker(name.as_ref()) || is_weights(name.as_ref()) || BESIDE.contains(&name)
}

/// The names in an output folder without the state of a run.
pub(crate) fn entries(directory: &Directory) -> Result<Vec<OsString>> {
    let mut names = directory.names()?;
    names.retain(|name| name != STATE);
    Ok(names)
}

/// Whether a folder with these entries holds a checkpoint, so that asking to overwrite it makes sense.
pub(crate) fn is_checkpoint(entries: &[OsString]) -> bool {
    entries.iter().any(|name| is_marker(name) || is_weights(name))
}

/// The files of the checkpoint in this folder, as names relative to it: what an earlier run lists in its manifest, and
/// what a checkpoint is made of.
pub(crate) fn of_checkpoint(directory: &Directory, entries: &[OsString]) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for name in entries {
        let Some(text) = name.to_str() else { continue };
        if is_of_checkpoint(whole_name(name).unwrap_or(text)) {
            if let Some(stat) = directory.stat(name)? {
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    found.insert(text.to_string());
                }
            }
        }
    }
    if entries.iter().any(|name| name == PIPELINE || name == MODULES) {
        found.extend(of_sub_models(directory, entries)?);
    }
    found.extend(in_manifest(directory)?);
    Ok(found)
}

/// The same of the models in its sub-folders.
fn of_sub_models(directory: &Directory, entries: &[OsString]) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for folder in entries.iter().filter_map(|name| name.to_str()) {
        let Some(below) = parent_below(directory, &Path::new(folder).join("file"))? else { continue };
        for name in below.names()?.iter().filter_map(|name| name.to_str()) {
            let is_file = is_below(&below, Path::new(name), None)?;
            if is_file && is_of_checkpoint(whole_name(name.as_ref()).unwrap_or(name)) {
                found.insert(format!("{folder}/{name}"));
            }
        }
    }
    Ok(found)
}

/// The names under `files` in the manifest. A manifest that cannot be read lists nothing.
pub(super) fn in_manifest(directory: &Directory) -> Result<BTreeSet<String>> {
    Ok(sizes_in_manifest(directory)?.into_iter().map(|(name, _)| name).collect())
}

/// The same with the bytes of each file, where they are told.
pub(super) fn sizes_in_manifest(directory: &Directory) -> Result<Vec<(String, Option<u64>)>> {
    let bytes = directory.read(OsStr::new(MANIFEST))?.unwrap_or_default();
    let manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let files = manifest.get("files").and_then(serde_json::Value::as_array);
    let rows = files.into_iter().flatten().filter_map(|file| Some((file.get("name")?.as_str()?, file.get("bytes"))));
    let inside = rows.filter(|(name, _)| is_inside(name));
    Ok(inside.map(|(name, bytes)| (name.to_string(), bytes.and_then(serde_json::Value::as_u64))).collect())
}

/// A relative path without `..` and not into the state of a run, as a manifest may name it; the manifest is as hostile
/// as any file.
pub(crate) fn is_inside(name: &str) -> bool {
    let allowed = |part| matches!(part, Component::Normal(part) if part != STATE);
    !name.is_empty() && Path::new(name).components().all(allowed)
}

/// How much a file makes its folder look complete: a manifest most, then what programs look for first, then the rest.
pub(super) fn rank(name: &str) -> u8 {
    match name {
        MANIFEST => 2,
        "config.json" | PIPELINE => 1,
        name => u8::from(is_marker(name.as_ref())),
    }
}

/// The first part of a relative path, and what follows it.
pub(super) fn split(path: &Path) -> Option<(&OsStr, Option<&Path>)> {
    let mut parts = path.components();
    let Some(Component::Normal(first)) = parts.next() else { return None };
    let rest = parts.as_path();
    Some((first, (!rest.as_os_str().is_empty()).then_some(rest)))
}

/// Whether these entries are folders in which there is nothing but such folders: what is left of a checkpoint whose
/// files have gone.
pub(super) fn are_empty(directory: &Directory, entries: &[OsString]) -> Result<bool> {
    for name in entries {
        let stat = directory.stat(name)?;
        if stat.is_none_or(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory) {
            return Ok(false);
        }
        match directory.subfolder(name)? {
            Some(below) if are_empty(&below, &below.names()?)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// The folder in which a file of this relative path lies; `None` where it is not there or no folder.
fn parent_below(directory: &Directory, path: &Path) -> Result<Option<Directory>> {
    let mut folder = directory.clone();
    for part in path.parent().into_iter().flat_map(Path::components) {
        let Component::Normal(part) = part else { return Ok(None) };
        let stat = folder.stat(part)?;
        if stat.is_none_or(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory) {
            return Ok(None);
        }
        match folder.subfolder(part)? {
            Some(below) => folder = below,
            None => return Ok(None),
        }
    }
    Ok(Some(folder))
}

/// The folder in which a file of this relative path is to lie, made with those above it where it is missing, and its
/// name there.
pub(super) fn place_below(directory: &Directory, path: &Path) -> Result<(Directory, OsString)> {
    let name = path.file_name().ok_or_else(|| Error::not_a_file_name(path))?;
    let mut folder = directory.clone();
    for part in path.parent().into_iter().flat_map(Path::components) {
        let made = folder.create_subfolder(part.as_os_str())?;
        if made {
            folder.sync()?;
        }
        let below = folder.subfolder(part.as_os_str())?;
        folder = below.ok_or_else(|| Error::vanished(&folder.path().join(part)))?;
    }
    Ok((folder, name.to_owned()))
}

/// Whether a folder is at a relative path.
pub(super) fn is_folder_below(directory: &Directory, path: &Path) -> Result<bool> {
    let kind = stat_below(directory, path)?.map(|stat| FileType::from_raw_mode(stat.st_mode));
    Ok(kind == Some(FileType::Directory))
}

/// What is at a relative path; `None` where nothing is.
fn stat_below(directory: &Directory, path: &Path) -> Result<Option<Stat>> {
    let (Some(parent), Some(name)) = (parent_below(directory, path)?, path.file_name()) else { return Ok(None) };
    parent.stat(name)
}

/// Device and inode of a file by its relative path; `None` where it is not there.
pub(super) fn identity_below(directory: &Directory, path: &Path) -> Result<Option<(u64, u64)>> {
    Ok(stat_below(directory, path)?.map(|stat| (Here::device(&stat), stat.st_ino)))
}

/// Whether a regular file is at a relative path, with so many bytes where a number is given.
pub(super) fn is_below(directory: &Directory, path: &Path, bytes: Option<u64>) -> Result<bool> {
    let stat = stat_below(directory, path)?;
    let stat = stat.filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    Ok(stat.is_some_and(|stat| bytes.is_none_or(|bytes| stat.st_size as u64 == bytes)))
}

/// Flushes the folders below this one that lead to a file.
pub(super) fn sync_below(directory: &Directory, path: &Path) -> Result<()> {
    for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
        if let Some(folder) = parent_below(directory, &above.join("file"))? {
            folder.sync()?;
        }
    }
    Ok(())
}

/// Removes the folders that lead to a file and are empty.
pub(super) fn remove_empty(directory: &Directory, path: &Path) -> Result<()> {
    for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
        let (Some(parent), Some(name)) = (parent_below(directory, above)?, above.file_name()) else { continue };
        let stat = parent.stat(name)?;
        let is_folder = stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if is_folder && !parent.remove_subfolder(name)? {
            break;
        }
    }
    Ok(())
}

/// Refuses where one of these files could not be removed: a folder that it lies in may not be written to.
pub(super) fn hold_removable(directory: &Directory, names: &BTreeSet<String>) -> Result<()> {
    let folders: BTreeSet<&Path> = names.iter().filter_map(|name| Path::new(name).parent()).collect();
    for folder in folders {
        if let Some(folder) = parent_below(directory, &folder.join("file"))? {
            folder.hold_writable()?;
        }
    }
    Ok(())
}

/// Bytes that removing these files gives back; a file with a second hard link gives nothing.
pub(crate) fn bytes_released(directory: &Directory, names: &BTreeSet<String>) -> Result<u64> {
    let mut released = 0;
    for name in names {
        if let Some(stat) = stat_below(directory, Path::new(name))? {
            released += if stat.st_nlink == 1 { stat.st_blocks as u64 * 512 } else { 0 };
        }
    }
    Ok(released)
}

/// Removes these files: first what makes the folder look complete, then, once that is on the disk, the rest.
pub(crate) fn remove(directory: &Directory, names: &BTreeSet<String>) -> Result<()> {
    let (markers, others): (Vec<_>, Vec<_>) = names.iter().partition(|name| is_marker(name.as_ref()));
    if markers.iter().any(|name| *name == MANIFEST) {
        remove_below(directory, Path::new(MANIFEST))?;
    }
    for name in markers {
        remove_below(directory, Path::new(name))?;
    }
    directory.sync()?;
    for name in others {
        remove_below(directory, Path::new(name))?;
    }
    directory.sync()
}

/// Removes one file by its relative path, and the sub-folders that are empty after it. A folder on the way that is a
/// symbolic link leads out of the output: it is left alone.
pub(super) fn remove_below(directory: &Directory, path: &Path) -> Result<()> {
    let mut parts = path.components();
    let Some(Component::Normal(first)) = parts.next() else { return Ok(()) };
    let kind = directory.stat(first)?.map(|stat| FileType::from_raw_mode(stat.st_mode));
    let rest = parts.as_path();
    let is_last = rest.as_os_str().is_empty();
    match kind {
        Some(FileType::Directory) if !is_last => {
            let Some(below) = directory.subfolder(first)? else { return Ok(()) };
            remove_below(&below, rest)?;
            if below.names()?.is_empty() {
                directory.remove_subfolder(first)?;
            }
        }
        Some(kind) if kind != FileType::Directory && is_last => {
            directory.remove(first)?;
        }
        _ => {}
    }
    Ok(())
}

/// What an interrupted run was writing: files with the name of one that a run may write until it is whole. What another
/// program calls `.NAME.part` is its own.
fn parts(entries: &[OsString], is_ours: &dyn Fn(&str) -> bool) -> BTreeSet<String> {
    let ours = |name: &str| is_ours(name) || is_marker(name.as_ref()) || BESIDE.contains(&name);
    let parts = entries.iter().filter(|name| whole_name(name).is_some_and(ours));
    parts.filter_map(|name| name.to_str()).map(str::to_string).collect()
}

/// The same in a folder and in those of its sub-folders that some of these files lie in.
pub(super) fn parts_of<'n>(directory: &Directory, names: impl Iterator<Item = &'n String>) -> Result<BTreeSet<String>> {
    let names: BTreeSet<&str> = names.map(String::as_str).collect();
    let folders: BTreeSet<&str> = names.iter().filter_map(|name| Some(name.rsplit_once('/')?.0)).collect();
    let mut found = parts(&entries(directory)?, &|name| names.contains(name));
    for folder in folders {
        let Some(below) = parent_below(directory, &Path::new(folder).join("file"))? else { continue };
        let here = parts(&below.names()?, &|name| names.contains(&*format!("{folder}/{name}")));
        found.extend(here.iter().map(|name| format!("{folder}/{name}")));
    }
    Ok(found)
}

/// Removes what an interrupted run was writing of the files that the manifest lists.
pub(crate) fn remove_parts(directory: &Directory) -> Result<()> {
    let listed = in_manifest(directory)?;
    remove(directory, &parts_of(directory, listed.iter())?)
}

/// Removes what makes the folder look complete.
pub(crate) fn remove_markers(directory: &Directory) -> Result<()> {
    let entries = entries(directory)?;
    let markers = entries.iter().filter(|name| is_marker(name)).filter_map(|name| name.to_str());
    remove(directory, &markers.map(str::to_string).collect())
}
