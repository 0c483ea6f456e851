//! A range of elements whose bytes are in memory, and the buffers for what is not mapped.

use crate::dtype::Dtype;
use crate::kernels::combine::keep_donor;
use crate::kernels::dispatch::prefetch;
use crate::kernels::widen::widen;
use crate::kernels::{Floats, Level, Real, TILE};

/// Buffers for the parts of an input that are not mapped, reused from chunk to chunk.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// One for each part that the storage reads itself.
    pub parts: [Vec<u8>; 4],
    under: Option<Box<Scratch>>,
}

impl Scratch {
    /// The buffers of a storage that lies over another one, and those of that other one.
    pub(crate) fn layers(&mut self) -> (&mut [Vec<u8>; 4], &mut Scratch) {
        (&mut self.parts, self.under.get_or_insert_default())
    }
}

/// A range of elements whose bytes are in memory.
pub(crate) enum Chunk<'a> {
    /// Every element as a number by itself: apart from the others, because most tensors are stored so.
    Plain {
        /// Their type.
        dtype: Dtype,
        /// Their bytes.
        bytes: &'a [u8],
    },
    /// Anything else.
    Tiles(Box<dyn Tiles + 'a>),
}

/// A range of elements that are not plain numbers.
pub(crate) trait Tiles {
    /// Computes the elements from element `at` of this range on; true if all are finite.
    fn tile(&self, level: Level, at: usize, out: Floats<'_>) -> bool;

    /// Elements of a saved vector that its values do not give back, if there are any here.
    fn exact(&self) -> Option<Exact<'_>> {
        None
    }

    /// Codes and scales, where they are stored so.
    fn coded(&self) -> Option<&dyn Coded> {
        None
    }
}

/// What makes codes of two tensors comparable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Coding {
    /// The kind of format.
    pub kind: &'static str,
    /// What the codes are stored as.
    pub codes: Dtype,
    /// Bits of a code.
    pub bits: u32,
    /// Shape of the tensor and of the groups that share a scale.
    pub groups: [u64; 4],
}

/// Elements that stand together and share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// How many.
    pub n: usize,
    /// Whether the first of them is the first of its group.
    pub begins: bool,
    /// The bits of the scale, and of the zero point or bias.
    pub scale: (u32, u32),
    /// The same as the group itself stores them: without the scale of all scales.
    pub stored: (u32, u32),
}

/// A range of elements stored as codes with scales.
pub(crate) trait Coded {
    /// What codes they are.
    fn coding(&self) -> Coding;

    /// The codes of the elements from `at` on, at most a tile of them, a byte each.
    fn codes(&self, level: Level, at: usize, out: &mut [u8]);

    /// The runs of `n` elements from `at` on, at most a tile of them, in order.
    fn runs(&self, level: Level, at: usize, n: usize, each: &mut dyn FnMut(Run));
}

/// Donor and reference of those elements of a saved vector that reference + δ does not give back.
pub(crate) struct Exact<'a> {
    /// The donor; zero elsewhere.
    pub donor: &'a dyn Tiles,
    /// The reference; NaN elsewhere, which is the same as no target.
    pub reference: &'a dyn Tiles,
}

impl Exact<'_> {
    /// Puts the donor into `out` where the target is the reference; `at` is the place of the first element in the
    /// chunk.
    pub(crate) fn keep<R: Real>(&self, level: Level, at: usize, target: &[R], out: &mut [R]) {
        let (mut donor, mut reference) = ([R::ZERO; TILE], [R::ZERO; TILE]);
        let (donor, reference) = (&mut donor[..out.len()], &mut reference[..out.len()]);
        self.donor.tile(level, at, R::floats(donor));
        self.reference.tile(level, at, R::floats(reference));
        keep_donor(level, target, donor, reference, out);
    }
}

impl Chunk<'_> {
    /// Widens `out.len()` elements from element `at` of this chunk on; true if all are finite.
    pub(crate) fn tile<R: Real>(&self, level: Level, at: usize, out: &mut [R]) -> bool {
        match self {
            Chunk::Plain { dtype, bytes } => {
                self.ahead(at, out.len());
                widen(level, *dtype, &bytes[at * dtype.size()..(at + out.len()) * dtype.size()], out)
            }
            Chunk::Tiles(tiles) => tiles.tile(level, at, R::floats(out)),
        }
    }

    /// Asks for the tile behind that of `n` elements from `at` on.
    pub(crate) fn ahead(&self, at: usize, n: usize) {
        if let Chunk::Plain { dtype, bytes } = self {
            let next = (at + n) * dtype.size();
            prefetch(&bytes[next.min(bytes.len())..(next + n * dtype.size()).min(bytes.len())]);
        }
    }

    /// The stored bytes of `n` elements from `at` on, where they are plain numbers of this type.
    pub(crate) fn stored(&self, dtype: Dtype, at: usize, n: usize) -> Option<&[u8]> {
        match self {
            Chunk::Plain { dtype: stored, bytes } if *stored == dtype => {
                Some(&bytes[at * dtype.size()..(at + n) * dtype.size()])
            }
            _ => None,
        }
    }

    /// Codes and scales, where they are stored so.
    pub(crate) fn coded(&self) -> Option<&dyn Coded> {
        match self {
            Chunk::Plain { .. } => None,
            Chunk::Tiles(tiles) => tiles.coded(),
        }
    }

    /// Whether every element is a number by itself.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Chunk::Plain { .. })
    }

    /// Elements of a saved vector that its values do not give back, if there are any.
    pub(crate) fn exact(&self) -> Option<Exact<'_>> {
        match self {
            Chunk::Plain { .. } => None,
            Chunk::Tiles(tiles) => tiles.exact(),
        }
    }
}
