//! Elements of a saved vector that its values do not give back, gathered like those values.

use super::gather::gather;
use super::piece::Dim;
use crate::dtype::Dtype;
use crate::kernels::{Floats, Level, TILE};
use crate::storage::chunk::{Chunk, Exact, Tiles};

const SIZE: usize = size_of::<f64>();

/// Numbers in f64, one after the other.
struct Numbers<'a>(&'a [u8]);

/// A range that was gathered, of which some elements are given back exactly.
pub(super) struct Gathered<'a> {
    values: Chunk<'a>,
    donor: Numbers<'a>,
    reference: Numbers<'a>,
}

impl<'a> Gathered<'a> {
    /// Of values of a type, and donor and reference of each in f64.
    pub(super) fn new(dtype: Dtype, values: &'a [u8], donor: &'a [u8], reference: &'a [u8]) -> Self {
        let (donor, reference) = (Numbers(donor), Numbers(reference));
        Gathered { values: Chunk::Plain { dtype, bytes: values }, donor, reference }
    }
}

impl Tiles for Numbers<'_> {
    fn tile(&self, level: Level, at: usize, out: Floats<'_>) -> bool {
        tile(&Chunk::Plain { dtype: Dtype::F64, bytes: self.0 }, level, at, out)
    }
}

impl Tiles for Gathered<'_> {
    fn tile(&self, level: Level, at: usize, out: Floats<'_>) -> bool {
        tile(&self.values, level, at, out)
    }

    fn exact(&self) -> Option<Exact<'_>> {
        Some(Exact { donor: &self.donor, reference: &self.reference })
    }
}

fn tile(chunk: &Chunk<'_>, level: Level, at: usize, out: Floats<'_>) -> bool {
    match out {
        Floats::F32(out) => chunk.tile(level, at, out),
        Floats::F64(out) => chunk.tile(level, at, out),
    }
}

/// Gathers donor and reference of `count` elements of a stored tensor into buffers for `length` elements, which are made
/// if they are empty: the donor is zero and the reference not a number where nothing is given back.
pub(super) fn gathered(
    level: Level,
    found: &Exact<'_>,
    count: usize,
    decoded: &mut Vec<u8>,
    (dims, to): ([Dim; 2], usize),
    [donor, reference]: [&mut Vec<u8>; 2],
    length: usize,
) {
    if donor.is_empty() {
        donor.resize(length * SIZE, 0);
        reference.clear();
        reference.extend(std::iter::repeat_n(f64::NAN.to_le_bytes(), length).flatten());
    }
    for (tiles, out) in [(found.donor, donor), (found.reference, reference)] {
        decoded.clear();
        for at in (0..count).step_by(TILE) {
            let mut values = [0f64; TILE];
            let values = &mut values[..TILE.min(count - at)];
            tiles.tile(level, at, Floats::F64(values));
            decoded.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        gather(SIZE, decoded, dims, to, out);
    }
}
