//! How a packed tensor is read: its stored parts, and a range of it in memory.

use std::ops::Range;

use super::grid::{Grid, Piece};
use super::parts::Stored;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernels::Level;
use crate::storage::chunk::Scratch;

/// The stored parts of one tensor.
pub(crate) trait Codes: Send + Sync {
    /// A range of it, in memory.
    type Chunk<'s>: Values
    where
        Self: 's;

    /// All of them.
    fn parts(&self) -> Vec<Stored<'_>>;

    /// The part that takes the most bytes, and which of its elements `elements` are; none where they are strewn.
    fn span(&self, elements: Range<u64>) -> Option<(Stored<'_>, Range<u64>)>;

    /// Brings `elements`, at least one, into memory.
    ///
    /// # Errors
    /// Where a file was truncated or cannot be read.
    fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<Self::Chunk<'s>>;
}

/// A range of a tensor, in memory.
pub(crate) trait Values {
    /// Decodes at most [`TILE`](crate::kernels::TILE) elements from element `at` of this range on; true if all are finite.
    fn tile(&self, level: Level, at: usize, out: &mut [f32]) -> bool;

    /// The tensor's element that this range begins with, and what shares a scale; none where columns are strewn.
    fn grid(&self) -> Option<(u64, Grid)>;

    /// Kind of the format, type of the stored codes, bits of a code.
    fn coding(&self) -> (&'static str, Dtype, u32);

    /// The codes of the elements from `at` on, a byte each.
    fn codes(&self, level: Level, at: usize, out: &mut [u8]);

    /// Whether the scales are products with one of all groups: what the groups store is then in the place of zero points.
    fn is_under_global(&self) -> bool {
        false
    }

    /// The scales of a piece's groups, and their zero points or biases where there are any; how many.
    fn scales(&self, level: Level, piece: &Piece, scales: &mut [f32], more: &mut [f32]) -> usize;
}
