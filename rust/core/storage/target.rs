//! Where a result goes: a tensor of an output file, or one that the embedding process has changed in place.

use std::ops::Range;

use super::chunk::{Chunk, Scratch};
use super::part::Part;
use super::Storage;
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::kernels::narrow::{narrow, Rounding};
use crate::kernels::{Floats, Level};

/// What is written, every element as a number by itself. As an input it is what stands there before: whoever writes it
/// reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// Its element type.
    pub dtype: Dtype,
    /// Elements.
    pub elements: u64,
}

impl Target {
    /// What `bytes`, which stand there before, are as elements.
    pub(crate) fn chunk<'s>(&self, bytes: &'s [u8]) -> Chunk<'s> {
        Chunk::Plain { dtype: self.dtype, bytes }
    }

    /// The elements of which `bytes`, counted from the first, hold at least a part.
    pub(crate) fn elements_in(&self, bytes: Range<u64>) -> Range<u64> {
        let size = self.dtype.size() as u64;
        bytes.start / size..bytes.end.div_ceil(size)
    }

    /// The first element that begins at this byte or behind it.
    pub(crate) fn first_from(&self, byte: u64) -> u64 {
        byte.div_ceil(self.dtype.size() as u64)
    }
}

impl Storage for Target {
    fn parts(&self) -> Vec<Part<'_>> {
        Vec::new()
    }

    fn elements(&self) -> u64 {
        self.elements
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn plain(&self) -> Option<Dtype> {
        Some(self.dtype)
    }

    fn bytes(&self, elements: &Range<u64>) -> u64 {
        (elements.end - elements.start) * self.dtype.size() as u64
    }

    fn open<'s>(&'s self, _elements: Range<u64>, _scratch: &'s mut Scratch) -> Result<Chunk<'s>> {
        Err(Error::new(Kind::Engine, "what is computed in place is not opened"))
    }

    fn encode(&self, level: Level, values: Floats<'_>, rounding: Rounding<'_>, bytes: &mut [u8]) -> Result<bool> {
        Ok(match values {
            Floats::F32(values) => narrow(level, self.dtype, values, rounding, bytes),
            Floats::F64(values) => narrow(level, self.dtype, values, rounding, bytes),
        })
    }
}
