//! Every way in which a header can fail to describe its file.

use crate::dtype::Dtype;
use crate::error::{shown, Error, Kind};

/// One way to lie. Names are as they stand in the file; messages escape them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Lie {
    #[error("the file has {file_len} bytes, too few for the 8 of a header length")]
    NoPrefix { file_len: u64 },
    #[error("the length of the header is given as {length} bytes, the format's limit is 100000000")]
    LengthOverLimit { length: u64 },
    #[error("the length of the header is given as {length} bytes, the file has {file_len}")]
    LengthBeyondFile { length: u64, file_len: u64 },
    #[error("the header starts with {}, not with `{{`", first(.found))]
    NoBrace { found: Option<u8> },
    #[error("the header is not UTF-8 at byte {at}")]
    NotUtf8 { at: usize },
    #[error("the header is not the JSON expected: {} at line {line} column {column}", shown(.detail))]
    Json { detail: String, line: usize, column: usize },
    #[error("tensor `{}` is not described as expected: {} at line {line} column {column}", shown(.name), shown(.detail))]
    Entry { name: String, detail: String, line: usize, column: usize },
    #[error("the header has the key `{}` twice", shown(.key))]
    DuplicateKey { key: String },
    #[error("tensor `{}` has the key `{field}` twice", shown(.name))]
    DuplicateField { name: String, field: &'static str },
    #[error("the metadata have the key `{}` twice", shown(.key))]
    DuplicateMetadata { key: String },
    #[error("tensor `{}` has no `{field}`", shown(.name))]
    MissingField { name: String, field: &'static str },
    #[error("tensor `{}` has the key `{}`, which the format does not know", shown(.name), shown(.key))]
    UnknownField { name: String, key: String },
    #[error("tensor `{}` has dtype `{}`, which the format does not know", shown(.name), shown(.dtype))]
    UnknownDtype { name: String, dtype: String },
    #[error("tensor `{}` has dtype `{dtype}`, whose elements are smaller than a byte; it is not supported", shown(.name))]
    PackedDtype { name: String, dtype: String },
    #[error("tensor `{}` is {dtype} {}, an odd number of elements, of which two share a byte", shown(.name), sides(.shape))]
    Half { name: String, dtype: Dtype, shape: Vec<u64> },
    #[error("tensor `{}` begins at byte {begin} and ends before it, at {end}", shown(.name))]
    Reversed { name: String, begin: u64, end: u64 },
    #[error("tensor `{}` of shape {} and dtype {dtype} has more bytes than 64 bits can count", shown(.name), sides(.shape))]
    Overflow { name: String, dtype: Dtype, shape: Vec<u64> },
    #[error("tensor `{}` of shape {} and dtype {dtype} has {expected} bytes, its offsets span {found}", shown(.name), sides(.shape))]
    Size { name: String, dtype: Dtype, shape: Vec<u64>, expected: u64, found: u64 },
    #[error("tensor `{}` begins at byte {begin} of the data, inside `{}`, which ends at {end}", shown(.name), shown(.previous))]
    Overlap { name: String, begin: u64, previous: String, end: u64 },
    #[error("tensor `{}` begins at byte {begin} of the data, {} bytes after the one before it ends", shown(.name), .begin - .end)]
    Hole { name: String, begin: u64, end: u64 },
    #[error("the first tensor, `{}`, begins at byte {begin} of the data, not at 0", shown(.name))]
    Start { name: String, begin: u64 },
    #[error("the tensors end at byte {end} of the data, the file at {data_len}: it is truncated")]
    Truncated { end: u64, data_len: u64 },
    #[error("the tensors end at byte {end} of the data, the file at {data_len}: bytes are left over")]
    Trailing { end: u64, data_len: u64 },
}

impl From<Lie> for Error {
    fn from(lie: Lie) -> Self {
        let error = Error::new(Kind::Format, lie.to_string());
        match lie {
            Lie::NoPrefix { .. } | Lie::LengthBeyondFile { .. } | Lie::Truncated { .. } => {
                error.hint("the file is incomplete: download or copy it again")
            }
            Lie::NoBrace { .. } | Lie::LengthOverLimit { .. } => {
                error.hint("this is not a safetensors file, or it is damaged (a git-lfs pointer, for instance)")
            }
            _ => error.hint("the file is damaged: download, copy or save it again"),
        }
    }
}

/// The first byte of something that should have been an object.
fn first(found: &Option<u8>) -> String {
    match found {
        None => "nothing".into(),
        Some(byte) if byte.is_ascii_graphic() => format!("`{}`", char::from(*byte)),
        Some(byte) => format!("byte 0x{byte:02x}"),
    }
}

/// A shape, cut short where a hostile one goes on.
fn sides(shape: &[u64]) -> String {
    let shown: Vec<String> = shape.iter().take(8).map(u64::to_string).collect();
    format!("[{}{}]", shown.join(", "), if shape.len() > 8 { ", …" } else { "" })
}
