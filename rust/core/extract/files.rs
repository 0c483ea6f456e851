//! The files of a vector: which tensors each holds, and where.

use crate::dtype::Dtype;
use crate::error::{shown, Error, Kind, Result};
use crate::header;
use crate::plan::layout::ALIGN;
use crate::storage::exact_elements::rounded_key;

/// What a file has of one tensor of the vector.
pub(super) struct Stored {
    pub(super) name: String,
    /// Stored tensors, in their order; none of a tensor without differences.
    pub(super) rows: Vec<(String, Dtype, Vec<u64>)>,
    /// Of all of them.
    pub(super) bytes: u64,
    pub(super) origin: Dtype,
    /// Whether values of exact elements are rounded.
    pub(super) rounded: bool,
}

/// One file of the vector.
pub(super) struct File {
    pub(super) name: String,
    pub(super) header: Vec<u8>,
    pub(super) size: u64,
    /// The tensors in it, by number, and the offset of each.
    pub(super) members: Vec<(usize, u64)>,
}

/// Stored tensors in files of at most `limit` bytes of data, in the order of the tensors.
pub(super) fn lay_out(all: &[Stored], limit: u64) -> Result<Vec<File>> {
    let mut groups: Vec<Vec<usize>> = vec![Vec::new()];
    let mut size = 0;
    for (index, stored) in all.iter().enumerate().filter(|(_, stored)| !stored.rows.is_empty()) {
        let more = stored.bytes;
        if size > 0 && size + more > limit.max(1) {
            groups.push(Vec::new());
            size = 0;
        }
        size += more;
        if let Some(group) = groups.last_mut() {
            group.push(index);
        }
    }
    let count = groups.len();
    let mut files = Vec::with_capacity(count);
    let mut names = std::collections::HashSet::new();
    for (number, group) in groups.into_iter().enumerate() {
        let name = match count {
            1 => "vector.safetensors".to_owned(),
            _ => format!("vector-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let mut rows: Vec<(String, Dtype, Vec<u64>)> = Vec::new();
        let mut metadata: Vec<(String, String)> = vec![("format".into(), "pt".into())];
        for &index in &group {
            let Stored { name, origin, rounded, .. } = &all[index];
            rows.extend(all[index].rows.iter().cloned());
            if *origin != Dtype::BF16 {
                metadata.push((format!("taskvec.origin.{name}"), origin.name().to_owned()));
            }
            if *rounded {
                metadata.push((rounded_key(name), "exact".to_owned()));
            }
        }
        if let Some((twice, _, _)) = rows.iter().find(|(name, _, _)| !names.insert(name.clone())) {
            let message = format!("two tensors of the vector would be stored as `{}`", shown(twice));
            return Err(Error::new(Kind::Plan, message).hint("leave one of them out with `--exclude`"));
        }
        let metadata: Vec<(&str, &str)> = metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let borrowed = rows.iter().map(|(name, dtype, shape)| (name.as_str(), *dtype, shape.as_slice()));
        let header = header::encode(borrowed, &metadata, ALIGN);
        let mut at = header.len() as u64;
        let mut members = Vec::with_capacity(group.len());
        for index in group {
            members.push((index, at));
            at += all[index].bytes;
        }
        files.push(File { name, header, size: at, members });
    }
    Ok(files)
}
