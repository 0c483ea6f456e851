//! The header of a safetensors file: eight bytes of length, a JSON object, then the tensors' bytes end to end.
//!
//! Whoever wrote the file may have lied. Nothing is allocated on a claim that the file's length does not bear out, all
//! arithmetic is checked, and there is one [`Lie`] for every way in which a header can fail. No input or output happens
//! here.

use std::collections::{BTreeMap, HashSet};

use crate::dtype::{elements, Dtype};
use crate::error::Result;

mod entry;
mod error;
mod json;

pub use entry::TensorEntry;
pub(crate) use entry::PREFIX;
pub use error::Lie;

/// Most bytes that the JSON may have; the limit that every reader of the format shares.
pub const LIMIT: u64 = 100_000_000;

/// What a header says, once it has been found to be true to the file's length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Offset in the file of the first tensor's first byte. Any number: data may lie at odd addresses.
    pub data_start: u64,
    /// By offset; tensors without bytes come before the one that shares their offset, by name.
    pub tensors: Vec<TensorEntry>,
    /// The free-form strings under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// Bytes of JSON that the file's first eight bytes announce.
///
/// # Errors
/// More than [`LIMIT`], or more than a file of `file_len` bytes can hold (where that is known).
pub fn length(prefix: &[u8; PREFIX], file_len: Option<u64>) -> Result<u64> {
    let length = u64::from_le_bytes(*prefix);
    if length > LIMIT {
        return Err(Lie::LengthOverLimit { length }.into());
    }
    match file_len {
        Some(file_len) if length + PREFIX as u64 > file_len => Err(Lie::LengthBeyondFile { length, file_len }.into()),
        _ => Ok(length),
    }
}

/// Reads the JSON of the header of a file of `file_len` bytes.
///
/// # Errors
/// `Kind::Format` without the path, which the caller attaches.
pub fn parse(json: &[u8], file_len: u64) -> Result<Header> {
    Ok(checked(json, file_len)?)
}

/// [`parse`] with the lie itself as the error.
///
/// # Errors
/// The first lie found.
pub(crate) fn checked(json: &[u8], file_len: u64) -> std::result::Result<Header, Lie> {
    let length = json.len() as u64;
    if length > LIMIT {
        return Err(Lie::LengthOverLimit { length });
    }
    let data_start = length + PREFIX as u64;
    let Some(data_len) = file_len.checked_sub(data_start) else {
        return Err(Lie::LengthBeyondFile { length, file_len });
    };
    if json.first() != Some(&b'{') {
        return Err(Lie::NoBrace { found: json.first().copied() });
    }
    let text = std::str::from_utf8(json).map_err(|error| Lie::NotUtf8 { at: error.valid_up_to() })?;
    let (mut tensors, metadata) = json::read(text)?;
    unique(&tensors)?;
    tensors.iter().try_for_each(sized)?;
    tensors.sort_unstable_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
    contiguous(&tensors, data_len)?;
    Ok(Header { data_start, tensors, metadata })
}

/// No name twice.
fn unique(tensors: &[TensorEntry]) -> std::result::Result<(), Lie> {
    let mut seen = HashSet::with_capacity(tensors.len());
    match tensors.iter().find(|tensor| !seen.insert(tensor.name.as_str())) {
        Some(twice) => Err(Lie::DuplicateKey { key: twice.name.clone() }),
        None => Ok(()),
    }
}

/// As many bytes as shape and type ask for.
fn sized(tensor: &TensorEntry) -> std::result::Result<(), Lie> {
    let TensorEntry { name, dtype, shape, begin, end } = tensor;
    let Some(found) = end.checked_sub(*begin) else {
        return Err(Lie::Reversed { name: name.clone(), begin: *begin, end: *end });
    };
    if *dtype == Dtype::F4 && elements(shape).is_some_and(|count| count % 2 == 1) {
        return Err(Lie::Half { name: name.clone(), dtype: *dtype, shape: shape.clone() });
    }
    let Some(expected) = dtype.bytes(shape) else {
        return Err(Lie::Overflow { name: name.clone(), dtype: *dtype, shape: shape.clone() });
    };
    if found != expected {
        return Err(Lie::Size { name: name.clone(), dtype: *dtype, shape: shape.clone(), expected, found });
    }
    Ok(())
}

/// Sorted tensors cover the data from its first byte to its last, each byte once.
fn contiguous(tensors: &[TensorEntry], data_len: u64) -> std::result::Result<(), Lie> {
    let mut covered = 0;
    let mut previous = None;
    for tensor in tensors {
        let name = tensor.name.clone();
        match (tensor.begin.cmp(&covered), previous) {
            (std::cmp::Ordering::Less, Some(previous)) => {
                return Err(Lie::Overlap {
                    name,
                    begin: tensor.begin,
                    previous: String::clone(previous),
                    end: covered,
                });
            }
            (std::cmp::Ordering::Greater, None) => return Err(Lie::Start { name, begin: tensor.begin }),
            (std::cmp::Ordering::Greater, Some(_)) => {
                return Err(Lie::Hole { name, begin: tensor.begin, end: covered });
            }
            _ => {}
        }
        covered = tensor.end;
        previous = Some(&tensor.name);
    }
    match covered.cmp(&data_len) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(Lie::Truncated { end: covered, data_len }),
        std::cmp::Ordering::Less => Err(Lie::Trailing { end: covered, data_len }),
    }
}

/// The length and the JSON of a file that stores `tensors` end to end in this order, padded with spaces so that the
/// data starts at a multiple of `align`.
///
/// # Panics
/// Where `align` is zero or the tensors' bytes overflow: the caller has planned their layout already.
pub fn encode<'a>(
    tensors: impl Iterator<Item = (&'a str, Dtype, &'a [u64])>,
    metadata: &[(&str, &str)],
    align: usize,
) -> Vec<u8> {
    json::write(tensors, metadata, align)
}
