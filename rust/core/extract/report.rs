//! What an extraction says of itself. Typed rows written as text: as a tree of JSON values, a hundred thousand tensors
//! take ten times the memory.

use serde::{Serialize, Serializer};

use super::files::{File, Stored};
use super::item::Item;
use crate::dtype::Dtype;
use crate::measure::{number, NoiseFigures};
use crate::output::folder::OutputFolder;
use crate::run::contents::Content;

#[derive(Serialize)]
pub(super) struct Report<'a> {
    pub seconds: f64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub contents: Vec<Content>,
    pub threads: usize,
    pub cpu_level: &'a str,
    pub resumed_shards: usize,
    /// Whether it was made in the state folder of the output that it is to replace.
    pub replaces: bool,
    pub shards: Vec<Shard>,
    pub weight_map: WeightMap<'a>,
    pub tensors: Vec<Row<'a>>,
    /// What the differences are like, where a source is packed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub noise: Vec<NoiseFigures<'a>>,
}

#[derive(Serialize)]
pub(super) struct Shard {
    name: String,
    size: u64,
    digest: String,
}

/// One tensor of the vector.
#[derive(Serialize)]
pub(super) struct Row<'a> {
    name: &'a str,
    shape: &'a [u64],
    origin: &'a str,
    encoding: &'a str,
    dtype: &'a str,
    bytes: u64,
    file: Option<&'a str>,
    elements: u64,
    changed: u64,
    norm: Option<f64>,
    largest: Option<f64>,
    /// Elements that are stored by themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    exact: Option<u64>,
    /// Whether their values are rounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    rounded: Option<bool>,
    /// The stored tensors of a piece, for those who join it.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<Vec<(&'a str, &'static str, &'a [u64])>>,
    /// Of a piece, what the differences are like where a source is packed.
    #[serde(skip_serializing_if = "Option::is_none")]
    noise: Option<NoiseFigures<'a>>,
}

/// Stored tensors and their files.
pub(super) struct WeightMap<'a> {
    pub stored: &'a [Stored],
    pub files: &'a [File],
}

impl Serialize for WeightMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.files.iter().flat_map(|file| {
            let rows = file.members.iter().flat_map(|(item, _)| &self.stored[*item].rows);
            rows.map(|(name, _, _)| (name, file.name.as_str()))
        }))
    }
}

pub(super) fn shards(files: &[File], folder: &OutputFolder) -> Vec<Shard> {
    let records = files.iter().filter_map(|file| folder.record(&file.name));
    let shard = |name: &str, size, digest: &str| Shard { name: name.to_owned(), size, digest: digest.to_owned() };
    records.map(|record| shard(&record.shard, record.size, &record.digest)).collect()
}

pub(super) fn noise<'a>(items: &'a [Item<'_>]) -> Vec<NoiseFigures<'a>> {
    items.iter().filter_map(noise_of).collect()
}

fn noise_of<'a>(item: &'a Item<'_>) -> Option<NoiseFigures<'a>> {
    Some(item.noise.as_ref()?.figures(Some(item.name)))
}

/// The file of each of `count` tensors; none of those without differences.
pub(super) fn file_of(files: &[File], count: usize) -> Vec<Option<&str>> {
    let mut found = vec![None; count];
    for file in files {
        file.members.iter().for_each(|(item, _)| found[*item] = Some(file.name.as_str()));
    }
    found
}

/// `piece` as in [`super::ExtractPlan`].
pub(super) fn tensors<'a>(items: &'a [Item<'_>], stored: &'a [Stored], files: &'a [File], piece: bool) -> Vec<Row<'a>> {
    let rows = |stored: &'a Stored| {
        let row = |(name, dtype, shape): &'a (String, Dtype, Vec<u64>)| (&**name, dtype.name(), &**shape);
        stored.rows.iter().map(row).collect()
    };
    let row = |((item, stored), file): ((&'a Item<'_>, &'a Stored), Option<&'a str>)| Row {
        name: item.name,
        shape: item.shape,
        origin: item.origin.name(),
        encoding: item.encoding.form.name(),
        dtype: item.encoding.dtype.name(),
        bytes: item.bytes(),
        file,
        elements: item.elements,
        changed: item.total.changed,
        norm: number(item.total.square.sqrt()),
        largest: number(item.total.largest),
        exact: Some(item.apart()).filter(|apart| *apart > 0),
        rounded: item.is_rounded().then_some(true),
        stored: piece.then(|| rows(stored)),
        noise: if piece { noise_of(item) } else { None },
    };
    items.iter().zip(stored).zip(file_of(files, items.len())).map(row).collect()
}
