//! The elements of a saved vector that its values do not give back: the donor is a negative zero, or so far from the
//! reference that their difference was rounded, or the difference is beyond the type of the values.
//!
//! Donor and reference of these elements are stored too: `T.exact.indices` (flat and sorted), `T.exact.donor`,
//! `T.exact.reference`. A run with α = 1 gives the donor wherever the target is the reference. Where a difference is
//! beyond the type, the header says so ([`rounded_key`]): then the differences of these elements are those of their
//! donor and reference, and their values are only near.

use std::ops::Range;

use super::chunk::{Chunk, Exact, Scratch, Tiles};
use super::encoding::index_bytes;
use super::part::Part;
use super::source::SourceKind;
use super::sparse::chunk::SparseChunk;
use super::sparse::places::Places;
use super::sparse::Sparse;
use super::wanted::Wanted;
use super::Storage;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernels::narrow::{narrow, Rounding};
use crate::kernels::{Floats, Level, Real, TILE};

/// What the names of the stored tensors end in: indices, donor, reference.
pub(crate) const PARTS: [&str; 3] = ["exact.indices", "exact.donor", "exact.reference"];

/// The key in the header of a file of the vector that says that values of the exact elements of a tensor are rounded.
pub(crate) fn rounded_key(name: &str) -> String {
    format!("taskvec.rounded.{name}")
}

/// Donor and reference of some elements of a tensor.
pub(crate) struct Elements<'a> {
    donor: Sparse<'a>,
    reference: Sparse<'a>,
    /// Whether their differences have to be told from these.
    rounded: bool,
}

/// Differences with those elements.
struct Over<'a> {
    differences: Box<dyn Storage + 'a>,
    elements: Elements<'a>,
}

struct OverChunk<'a> {
    differences: Chunk<'a>,
    donor: SparseChunk<'a>,
    reference: SparseChunk<'a>,
    rounded: bool,
}

/// What is stored of such elements of a saved vector's tensor, if anything is: [`PARTS`].
///
/// # Errors
/// As [`Sparse::check`].
pub(crate) fn find<'a>(wanted: &Wanted<'_, 'a>) -> Result<Option<Elements<'a>>> {
    if wanted.source.kind != SourceKind::Vector {
        return Ok(None);
    }
    let [Some(indices), Some(donor), Some(reference)] = PARTS.map(|part| wanted.part(part)) else { return Ok(None) };
    let with = |part: &str, values| {
        let name = format!("{}.{part}", wanted.name);
        Sparse::find(wanted, &name, Places::Index, indices, values)
    };
    let rounded = wanted.metadata(&rounded_key(wanted.name)).is_some();
    Ok(Some(Elements { donor: with(PARTS[1], donor)?, reference: with(PARTS[2], reference)?, rounded }))
}

impl<'a> Elements<'a> {
    /// Differences of which these elements are not given back.
    pub(crate) fn over(self, differences: Box<dyn Storage + 'a>) -> Box<dyn Storage + 'a> {
        Box::new(Over { differences, elements: self })
    }
}

impl Storage for Over<'_> {
    fn parts(&self) -> Vec<Part<'_>> {
        let mut parts = self.differences.parts();
        parts.extend(self.elements.donor.parts());
        parts.extend(self.elements.reference.parts().pop());
        parts
    }

    fn elements(&self) -> u64 {
        self.differences.elements()
    }

    fn dtype(&self) -> Dtype {
        self.differences.dtype()
    }

    fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<Chunk<'s>> {
        let ([places, donor, again, reference], under) = scratch.layers();
        let differences = self.differences.open(elements.clone(), under)?;
        let donor = self.elements.donor.range(elements.clone(), 0.0, places, donor)?;
        if donor.is_empty() {
            return Ok(differences);
        }
        // NaN is the same as no target.
        let reference = self.elements.reference.range(elements, f64::NAN, again, reference)?;
        Ok(Chunk::Tiles(Box::new(OverChunk { differences, donor, reference, rounded: self.elements.rounded })))
    }

    fn ahead(&self, elements: Range<u64>) {
        self.differences.ahead(elements);
    }

    fn behind(&self, elements: Range<u64>) {
        self.differences.behind(elements);
    }
}

impl OverChunk<'_> {
    fn compute<R: Real>(&self, level: Level, at: usize, out: &mut [R]) -> bool {
        let finite = self.differences.tile(level, at, out);
        if !self.rounded {
            return finite;
        }
        // In f64, as when it was extracted.
        let (mut places, mut donor, mut reference) = ([0u16; TILE], [0f64; TILE], [0f64; TILE]);
        let (count, _) = self.donor.stored(level, at, out.len(), &mut places, &mut donor);
        self.reference.stored(level, at, out.len(), &mut places, &mut reference);
        let mut told = true;
        for ((place, donor), reference) in places.iter().zip(donor).zip(reference).take(count) {
            let difference = R::from_f64(donor - reference);
            out[usize::from(*place)] = difference;
            told &= difference.is_finite();
        }
        finite && told
    }
}

impl Tiles for OverChunk<'_> {
    fn tile(&self, level: Level, at: usize, out: Floats<'_>) -> bool {
        match out {
            Floats::F32(out) => self.compute(level, at, out),
            Floats::F64(out) => self.compute(level, at, out),
        }
    }

    fn exact(&self) -> Option<Exact<'_>> {
        Some(Exact { donor: &self.donor, reference: &self.reference })
    }
}

/// How such elements are written: the types of [`PARTS`].
#[derive(Clone, Copy)]
pub(crate) struct Written {
    /// In their order.
    pub types: [Dtype; 3],
}

impl Written {
    /// The stored tensors of a tensor with `count` such elements: name, type and shape.
    pub(crate) fn rows(&self, name: &str, count: u64) -> Vec<(String, Dtype, Vec<u64>)> {
        if count == 0 {
            return Vec::new();
        }
        PARTS.iter().zip(self.types).map(|(part, dtype)| (format!("{name}.{part}"), dtype, vec![count])).collect()
    }

    /// Bytes of `count` of them.
    pub(crate) fn bytes(&self, count: u64) -> u64 {
        self.types.iter().map(|dtype| count * dtype.size() as u64).sum()
    }

    /// Where each part of `count` of them begins, from `at` on.
    pub(crate) fn offsets(&self, at: u64, count: u64) -> [u64; 3] {
        let mut next = at;
        self.types.map(|dtype| {
            let offset = next;
            next += count * dtype.size() as u64;
            offset
        })
    }

    /// Index, donor and reference of some elements as stored, each with where it goes: the parts begin at `offsets`,
    /// `before` elements come before these.
    pub(crate) fn encode(
        &self,
        level: Level,
        rows: &[(u64, f64, f64)],
        offsets: [u64; 3],
        before: u64,
    ) -> [(Vec<u8>, u64); 3] {
        let [index, donor, reference] = self.types;
        let narrowed = |dtype: Dtype, values: &mut dyn Iterator<Item = f64>| {
            let mut values: Vec<f64> = values.collect();
            let mut bytes = vec![0; values.len() * dtype.size()];
            narrow(level, dtype, &mut values, Rounding::Nearest, &mut bytes);
            bytes
        };
        let at = |part: usize| offsets[part] + before * self.types[part].size() as u64;
        [
            (index_bytes(index, rows.iter().map(|row| row.0)), at(0)),
            (narrowed(donor, &mut rows.iter().map(|row| row.1)), at(1)),
            (narrowed(reference, &mut rows.iter().map(|row| row.2)), at(2)),
        ]
    }
}
