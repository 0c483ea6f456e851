//! How packed tensors are written.

use serde::Deserialize;

use crate::kernels::quantise::rule::Rule;
use crate::storage::packed::format::Format;

/// A format that is written, and what chooses the scales.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Encoding {
    /// The format and its parameters.
    #[serde(flatten)]
    pub format: Format,
    /// How the scale of a group is made.
    pub rule: Rule,
    /// Input 0 is stored in this very format: its scale is the other candidate, and its bytes are what an output equal
    /// to it has.
    pub own: bool,
}

/// What a stored tensor of the output is of a packed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// The codes: whoever writes them computes and measures.
    Codes,
    /// The scales of groups.
    Scales,
    /// The codes for zero of groups.
    Zeros,
    /// What the codes of groups are counted from.
    Biases,
    /// The scale of the scales.
    Global,
    /// Rows and columns.
    Shape,
}
