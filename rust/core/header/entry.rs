//! One tensor of a header, and what is fixed in the format.

use crate::dtype::Dtype;

/// Bytes of the length that precedes the JSON.
pub(crate) const PREFIX: usize = 8;

/// The key that names no tensor.
pub(super) const METADATA: &str = "__metadata__";

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Opaque: never a path, and shown only through [`crate::error::shown`].
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Empty for a scalar; a side may be zero.
    pub shape: Vec<u64>,
    /// First byte, counted from [`Header::data_start`].
    pub begin: u64,
    /// One past the last byte, counted from [`Header::data_start`].
    pub end: u64,
}
