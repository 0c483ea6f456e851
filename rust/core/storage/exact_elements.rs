//! The elements of a saved vector whose donor reference + δ does not give back: the donor is a negative zero, or so far
//! from the reference that their difference was rounded.
//!
//! A run with α = 1 gives the donor wherever the target is the reference. For the bytes of a vector's run to be the same,
//! donor and reference of these elements are stored beside the differences: `T.exact.indices` (flat and sorted),
//! `T.exact.donor`, `T.exact.reference`. Few tensors have any.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernels::combine::keep_donor;
use crate::kernels::{Level, Real, TILE};
use crate::storage::sparse::{Places, Sparse, SparseChunk, Stored};

/// What the names of the stored tensors end in: indices, donor, reference.
pub const PARTS: [&str; 3] = ["exact.indices", "exact.donor", "exact.reference"];

/// Donor and reference of some elements of a tensor.
pub struct Exact<'a> {
    donor: Sparse<'a>,
    reference: Sparse<'a>,
}

/// The same in a range that is in memory.
pub struct ExactChunk<'a> {
    donor: SparseChunk<'a>,
    reference: SparseChunk<'a>,
}

impl<'a> Exact<'a> {
    /// Checks what is stored for a tensor of `elements`: [`PARTS`] in their order.
    ///
    /// # Errors
    /// As [`Sparse::check`].
    pub fn check(name: &str, elements: u64, parts: [Stored<'a>; 3]) -> Result<Exact<'a>> {
        let [indices, donor, reference] = parts;
        let with =
            |part: &str, values| Sparse::check(&format!("{name}.{part}"), elements, Places::Index, indices, values);
        Ok(Exact { donor: with(PARTS[1], donor)?, reference: with(PARTS[2], reference)? })
    }

    /// Bytes stored.
    pub fn bytes(&self) -> u64 {
        self.donor.bytes() + self.reference.bytes() - self.donor.places_bytes()
    }

    /// Brings `elements` into memory.
    ///
    /// # Errors
    /// As [`Sparse::open`].
    pub fn open<'s>(&'s self, elements: &Range<u64>, scratch: &'s mut [Vec<u8>; 4]) -> Result<ExactChunk<'s>> {
        let [places, donor, again, reference] = scratch;
        Ok(ExactChunk {
            donor: self.donor.open(elements.clone(), places, donor)?,
            reference: self.reference.open(elements.clone(), again, reference)?,
        })
    }
}

impl ExactChunk<'_> {
    /// Whether the range holds none of them.
    pub fn is_empty(&self) -> bool {
        self.donor.is_empty()
    }

    /// Puts the donor into `out` where the target is the reference; `at` is the place of the first element in the
    /// chunk.
    pub fn keep<R: Real>(&self, level: Level, at: usize, target: &[R], out: &mut [R]) {
        let (mut donor, mut reference) = ([R::ZERO; TILE], [R::ZERO; TILE]);
        let (donor, reference) = (&mut donor[..out.len()], &mut reference[..out.len()]);
        self.donor.tile(level, at, R::ZERO, donor);
        // NaN is the same as no target.
        self.reference.tile(level, at, R::from_f64(f64::NAN), reference);
        keep_donor(level, target, donor, reference, out);
    }
}

/// What is stored of a tensor with `count` such elements: name, type and shape, in the order of [`PARTS`].
pub fn rows(name: &str, types: [Dtype; 3], count: u64) -> Vec<(String, Dtype, Vec<u64>)> {
    if count == 0 {
        return Vec::new();
    }
    PARTS.iter().zip(types).map(|(part, dtype)| (format!("{name}.{part}"), dtype, vec![count])).collect()
}
