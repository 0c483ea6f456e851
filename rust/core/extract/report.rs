//! What an extraction says of itself. Typed rows written as text: as a tree of JSON values, a hundred thousand tensors
//! take ten times the memory.

use serde::{Serialize, Serializer};

use super::files::File;
use super::item::Item;
use crate::measure::{number, NoiseFigures};
use crate::output::folder::OutputFolder;

#[derive(Serialize)]
pub(super) struct Report<'a> {
    pub seconds: f64,
    pub bytes_read: u64,
    pub bytes_written: u64,
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
}

/// Stored tensors and their files.
pub(super) struct WeightMap<'a> {
    pub items: &'a [Item<'a>],
    pub files: &'a [File],
}

impl Serialize for WeightMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.files.iter().flat_map(|file| {
            let rows = file.places.iter().flat_map(|place| self.items[place.item].rows());
            rows.map(|(stored, _, _)| (stored, file.name.as_str()))
        }))
    }
}

pub(super) fn shards(files: &[File], folder: &OutputFolder) -> Vec<Shard> {
    let records = files.iter().filter_map(|file| folder.record(&file.name));
    let shard = |name: &str, size, digest: &str| Shard { name: name.to_owned(), size, digest: digest.to_owned() };
    records.map(|record| shard(&record.shard, record.size, &record.digest)).collect()
}

pub(super) fn noise<'a>(items: &'a [Item<'_>]) -> Vec<NoiseFigures<'a>> {
    items.iter().filter_map(|item| Some(item.noise.as_ref()?.figures(Some(item.name)))).collect()
}

pub(super) fn tensors<'a>(items: &'a [Item<'_>], files: &'a [File]) -> Vec<Row<'a>> {
    let mut file_of = vec![None; items.len()];
    for file in files {
        file.places.iter().for_each(|place| file_of[place.item] = Some(file.name.as_str()));
    }
    let row = |(item, file): (&'a Item<'_>, Option<&'a str>)| Row {
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
    };
    items.iter().zip(file_of).map(row).collect()
}
