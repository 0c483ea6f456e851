//! Small checkpoint folders for the tests of reading.

use std::fs;
use std::path::Path;

use taskvec_core::dtype::Dtype;
use taskvec_core::header;

pub(crate) const ONE: &str = "model-00001-of-00002.safetensors";
pub(crate) const TWO: &str = "model-00002-of-00002.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// A safetensors file of one-byte tensors, each holding its position.
pub(crate) fn shard(names: &[&str]) -> Vec<u8> {
    let rows = names.iter().map(|name| (*name, Dtype::U8, &[1u64][..]));
    let mut bytes = header::encode(rows, &[("format", "pt")], 8);
    bytes.extend(0..names.len() as u8);
    bytes
}

pub(crate) fn put(folder: &Path, name: &str, contents: impl AsRef<[u8]>) {
    fs::write(folder.join(name), contents).unwrap();
}

/// An index of `rows` (tensor, file).
pub(crate) fn index(rows: &[(&str, &str)]) -> String {
    let rows: Vec<String> = rows.iter().map(|(tensor, file)| format!("{tensor:?}:{file:?}")).collect();
    format!(r#"{{"metadata":{{"total_size":2}},"weight_map":{{{}}}}}"#, rows.join(","))
}

/// Two shards, `a` in one and `b` in the other, and their index.
pub(crate) fn sharded(folder: &Path) {
    put(folder, ONE, shard(&["a"]));
    put(folder, TWO, shard(&["b"]));
    put(folder, INDEX, index(&[("a", ONE), ("b", TWO)]));
}
