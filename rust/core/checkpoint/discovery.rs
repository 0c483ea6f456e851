//! Which files of a folder are the checkpoint.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::index::Index;
use super::names::is_inside;
use crate::error::{shown, Error, Kind, Result};
use crate::file::folder::{metadata, names};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const INDEX_SUFFIX: &str = ".safetensors.index.json";
const SUFFIX: &str = ".safetensors";
const ADAPTER: &str = "adapter_model";
const ADAPTER_CONFIG: &str = "adapter_config.json";
const PICKLES: [&str; 5] = [".bin", ".pt", ".pth", ".ckpt", ".pkl"];
/// What a trainer leaves behind: pickles, but not the weights.
const NOT_WEIGHTS: [&str; 4] = ["training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"];

/// Beginning and tag of the index of a variant, weights in another type: `model.safetensors.index.fp16.json` by
/// `save_pretrained`, `model.safetensors.fp16.index.json` by others.
fn variant(name: &str) -> Option<(&str, &str)> {
    let (stem, rest) = name.strip_suffix(".json")?.rsplit_once(".safetensors.")?;
    let tag = rest.strip_prefix("index.").or_else(|| rest.strip_suffix(".index"))?;
    (!tag.is_empty() && !tag.contains('.')).then_some((stem, tag))
}

/// The files of a checkpoint.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) folder: PathBuf,
    /// Bare names in natural order; as given, where they are given.
    pub(super) files: Vec<String>,
    pub(super) index: Option<Index>,
    /// Other safetensors files in the folder.
    pub(super) unlisted: Vec<String>,
}

/// The checkpoint at `path`: a folder, one safetensors file, or an index.
pub(super) fn find(path: &Path) -> Result<Found> {
    let metadata = fs::metadata(path).map_err(|error| Error::io("opening", path, &error))?;
    if metadata.is_dir() {
        return in_folder(path);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with(INDEX_SUFFIX) {
        let folder = parent(path);
        let listing = Listing::read(&folder)?;
        return indexed(&folder, &name, &listing);
    }
    if variant(&name).is_some() {
        return Err(of_variant(&name).at(&parent(path)));
    }
    if is_pickle(&name) {
        return Err(pickle(&name).at(path));
    }
    if !name.ends_with(SUFFIX) {
        let message = "this is neither a folder nor a `.safetensors` file";
        return Err(Error::new(Kind::Format, message).at(path).hint("give the folder that holds the model's weights"));
    }
    single(path)
}

/// One file, whatever its name.
pub(super) fn single(path: &Path) -> Result<Found> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Error::new(Kind::Format, "the file's name is not UTF-8").at(path))?;
    Ok(Found { folder: parent(path), files: vec![name.to_owned()], index: None, unlisted: Vec::new() })
}

/// These files of a folder and of its sub-folders.
pub(super) fn listed(folder: &Path, files: &[String]) -> Result<Found> {
    match files.iter().find(|file| !is_inside(file) || !file.ends_with(SUFFIX)) {
        Some(file) => {
            let message = format!("`{}` is not a path below the folder that ends in `{SUFFIX}`", shown(file));
            Err(Error::new(Kind::Format, message).at(folder).hint("name files that lie in the folder"))
        }
        None => Ok(Found { folder: folder.to_owned(), files: files.to_vec(), index: None, unlisted: Vec::new() }),
    }
}

/// The folder that a file is in.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn in_folder(folder: &Path) -> Result<Found> {
    let listing = Listing::read(folder)?;
    match listing.indices.as_slice() {
        [] => {}
        indices if indices.iter().any(|name| name == INDEX) => return indexed(folder, INDEX, &listing),
        [name] => return indexed(folder, name, &listing),
        several => {
            return Err(Error::new(Kind::Format, format!("there are several indices: {}", list(several)))
                .at(folder)
                .hint(format!("give the path of one of them, or keep only `{INDEX}`")));
        }
    }
    if listing.tensors.iter().any(|name| name == SINGLE) {
        return Ok(chosen(folder, SINGLE, &listing));
    }
    let plain: Vec<String> = listing.tensors.iter().filter(|name| !listing.is_of_variant(name)).cloned().collect();
    match plain.as_slice() {
        [] => Err(listing.nothing().at(folder)),
        [name] if is_adapter(name) => Err(adapter().at(folder)),
        [name] => Ok(chosen(folder, name, &listing)),
        several => {
            let message = format!("there are {} safetensors files and no index: {}", several.len(), list(several));
            Err(Error::new(Kind::Format, message).at(folder).hint(format!(
                "a sharded checkpoint needs its `{INDEX}`; of several models, give the path of one file"
            )))
        }
    }
}

fn chosen(folder: &Path, name: &str, listing: &Listing) -> Found {
    let unlisted = listing.tensors.iter().filter(|other| *other != name).cloned().collect();
    Found { folder: folder.to_owned(), files: vec![name.to_owned()], index: None, unlisted }
}

fn indexed(folder: &Path, name: &str, listing: &Listing) -> Result<Found> {
    let index = Index::read(folder, name)?;
    let listed: HashSet<&str> = index.weight_map.files.iter().map(String::as_str).collect();
    let unlisted: Vec<String> =
        listing.tensors.iter().filter(|other| !listed.contains(other.as_str())).cloned().collect();
    // transformers loads this file and never looks at the index: the two readers would see two models.
    if name == INDEX && unlisted.iter().any(|other| other == SINGLE) {
        let message = format!("both `{SINGLE}` and `{INDEX}` are there, and the index does not list that file");
        return Err(Error::new(Kind::Format, message)
            .at(folder)
            .hint("one of them is left over from another save: remove it"));
    }
    let mut files = index.weight_map.files.clone();
    files.sort_unstable_by(|a, b| natural(a, b));
    let mut missing = Vec::new();
    for file in &files {
        if metadata(&folder.join(file))?.is_none() {
            missing.push(file.clone());
        }
    }
    if !missing.is_empty() {
        let message = format!("{} of {} files are not found: {}", missing.len(), files.len(), list(&missing));
        return Err(Error::new(Kind::NotFound, message)
            .at(&folder.join(name))
            .hint("the checkpoint is incomplete: download or copy it again"));
    }
    Ok(Found { folder: folder.to_owned(), files, index: Some(index), unlisted })
}

/// The names in a folder that bear on the matter, each kind in natural order.
#[derive(Default)]
struct Listing {
    indices: Vec<String>,
    /// Indices of variants.
    variants: Vec<String>,
    tensors: Vec<String>,
    pickles: Vec<String>,
    /// Whether there is an `adapter_config.json`.
    adapter: bool,
}

impl Listing {
    fn read(folder: &Path) -> Result<Listing> {
        let mut listing = Listing::default();
        for name in names(folder)? {
            // No index can list a name that is not text.
            let Ok(name) = name.into_string() else { continue };
            match name.as_str() {
                hidden if hidden.starts_with('.') => {}
                index if index.ends_with(INDEX_SUFFIX) => listing.indices.push(name),
                index if variant(index).is_some() => listing.variants.push(name),
                tensors if tensors.ends_with(SUFFIX) => listing.tensors.push(name),
                weights if is_pickle(weights) => listing.pickles.push(name),
                other => listing.adapter |= other == ADAPTER_CONFIG,
            }
        }
        for names in [&mut listing.indices, &mut listing.variants, &mut listing.tensors, &mut listing.pickles] {
            names.sort_unstable_by(|a, b| natural(a, b));
        }
        Ok(listing)
    }

    /// Whether a file bears the tag of a variant whose index is there: `model.fp16-00001-of-00002.safetensors`.
    fn is_of_variant(&self, file: &str) -> bool {
        let mut tags = self.variants.iter().filter_map(|name| variant(name));
        tags.any(|(_, tag)| file.split(['.', '-']).skip(1).any(|part| part == tag))
    }

    /// Why there is no safetensors file to read.
    fn nothing(&self) -> Error {
        if let Some(name) = self.variants.first() {
            return of_variant(name);
        }
        if self.adapter || self.pickles.iter().any(|name| is_adapter(name)) {
            return adapter();
        }
        match self.pickles.first() {
            Some(name) => pickle(name),
            None => Error::new(Kind::NotFound, format!("there is no `*{SUFFIX}` file and no `*{INDEX_SUFFIX}`"))
                .hint("give the folder that holds the model's weights"),
        }
    }
}

fn is_pickle(name: &str) -> bool {
    PICKLES.iter().any(|suffix| name.ends_with(suffix)) && !NOT_WEIGHTS.contains(&name)
}

fn is_adapter(name: &str) -> bool {
    name.split_once('.').is_some_and(|(stem, _)| stem == ADAPTER)
}

fn pickle(name: &str) -> Error {
    let message = format!("the weights are in pickle form (`{}`), which can run code when it is loaded", shown(name));
    // What transformers saves under these names it also loads; of any other file only its maker knows the class.
    let by = if name.starts_with("pytorch_model") || name.starts_with("model") {
        "`AutoModel.from_pretrained(FOLDER).save_pretrained(NEW)`, of the class that config.json names, or "
    } else {
        ""
    };
    Error::new(Kind::Format, message).hint(format!(
        "convert them where you trust them: {by}\
         `safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW)`, of a nested file its `state_dict`"
    ))
}

/// Only the index of a variant is there.
fn of_variant(name: &str) -> Error {
    let plain = variant(name).map_or_else(|| INDEX.to_owned(), |(stem, _)| format!("{stem}{INDEX_SUFFIX}"));
    let message = format!("`{}` is the index of a variant, and there is no other", shown(name));
    Error::new(Kind::Format, message).hint(format!(
        "copy or link it to `{}` in the same folder: the weight files that it lists keep their names",
        shown(&plain)
    ))
}

fn adapter() -> Error {
    Error::new(Kind::Format, "this is a LoRA adapter, not a model").hint(
        "merge it into its base first: \
         `PeftModel.from_pretrained(BASE, ADAPTER).merge_and_unload().save_pretrained(NEW)`",
    )
}

/// The first few names.
fn list(names: &[String]) -> String {
    let first: Vec<String> = names.iter().take(3).map(|name| format!("`{}`", shown(name))).collect();
    match names.len().saturating_sub(3) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// Runs of digits compare as numbers, so that `model-10` follows `model-9`: unpadded names are common.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a.as_bytes(), b.as_bytes());
    while let (Some(x), Some(y)) = (left.first(), right.first()) {
        let order = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (p, q) = (number(&mut left), number(&mut right));
            p.len().cmp(&q.len()).then_with(|| p.cmp(q))
        } else {
            (left, right) = (&left[1..], &right[1..]);
            x.cmp(y)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

/// Takes the digits at the start of `text`, without leading zeros.
fn number<'t>(text: &mut &'t [u8]) -> &'t [u8] {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
    &digits[zeros..]
}
