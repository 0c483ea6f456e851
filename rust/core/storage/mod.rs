//! How a logical tensor is stored, and how it is read and written whatever that is.
//!
//! A storage is one file here that implements [`Storage`] and one line in [`input`], which finds out how a tensor is
//! stored. Everything above this room asks for elements and for bytes of elements; none of it knows a format.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::kernels::narrow::Rounding;
use crate::kernels::{Floats, Level};

pub(crate) mod assembled;
pub(crate) mod buffer;
pub(crate) mod chunk;
pub(crate) mod dense;
pub(crate) mod encoding;
pub(crate) mod exact_elements;
pub(crate) mod input;
pub(crate) mod lines;
pub(crate) mod lora;
pub(crate) mod opened;
pub mod packed;
pub(crate) mod part;
pub(crate) mod rows;
pub mod source;
pub(crate) mod sources;
pub(crate) mod sparse;
pub(crate) mod target;
pub(crate) mod wanted;

use chunk::{Chunk, Scratch};
use packed::parts::Stored;
use part::Part;

/// One logical tensor in its storage.
pub(crate) trait Storage: Send + Sync {
    /// The stored tensors that it is made of, where it lies in files.
    fn parts(&self) -> Vec<Part<'_>>;

    /// Elements of the logical tensor.
    fn elements(&self) -> u64;

    /// The element type that decides in which type is computed with it.
    fn dtype(&self) -> Dtype;

    /// The type of its elements where each is stored as a number by itself, in order, and there is nothing else.
    fn plain(&self) -> Option<Dtype> {
        None
    }

    /// The stored parts of a packed tensor, in the order of its format: codes, scales, and what more there is; none where
    /// it is anything else, or something lies over it.
    fn packed(&self) -> Vec<Stored<'_>> {
        Vec::new()
    }

    /// A type that holds every element exactly, where there is one: none of what is computed.
    fn exact(&self) -> Option<Dtype> {
        self.plain()
    }

    /// Bytes that `elements` take: of parts that are not divided by elements, their share.
    fn bytes(&self, elements: &Range<u64>) -> u64 {
        let all: u64 = self.parts().iter().map(Part::bytes).sum();
        let count = elements.end - elements.start;
        (u128::from(all) * u128::from(count) / u128::from(self.elements().max(1))) as u64
    }

    /// Brings `elements` into memory.
    ///
    /// # Errors
    /// Where a file was truncated or cannot be read.
    fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<Chunk<'s>>;

    /// Says that `elements` will be wanted soon.
    fn ahead(&self, _elements: Range<u64>) {}

    /// Says that `elements` are done with.
    fn behind(&self, _elements: Range<u64>) {}

    /// Rounds elements and writes them as they are stored; `values` then hold what was stored. True if all of it is
    /// finite.
    ///
    /// # Errors
    /// `Kind::Engine` where nothing is written in this storage.
    fn encode(&self, _level: Level, _values: Floats<'_>, _rounding: Rounding<'_>, _bytes: &mut [u8]) -> Result<bool> {
        Err(Error::new(Kind::Engine, "this storage is only read"))
    }
}
