//! Tensors that the embedding process holds.

use std::ops::Range;

use super::chunk::{Chunk, Scratch};
use super::part::Part;
use super::source::Buffer;
use super::wanted::Wanted;
use super::Storage;
use crate::dtype::Dtype;
use crate::error::{shown, Error, Kind, Result};

impl<'a> Buffer<'a> {
    /// The tensor, where the source is in memory.
    ///
    /// # Errors
    /// It is not there, or has another shape.
    pub(crate) fn find(wanted: &Wanted<'_, 'a>) -> Result<Option<&'a Self>> {
        let Some(buffers) = wanted.opened.buffers() else { return Ok(None) };
        let buffer = buffers.get(wanted.name).ok_or_else(|| {
            Error::new(Kind::NotFound, format!("there is no tensor `{}` in the state dict", shown(wanted.name)))
        })?;
        wanted.check_shape(&buffer.shape)?;
        Ok(Some(buffer))
    }
}

impl Storage for Buffer<'_> {
    fn parts(&self) -> Vec<Part<'_>> {
        Vec::new()
    }

    fn elements(&self) -> u64 {
        (self.bytes.len() / self.dtype.size()) as u64
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

    fn open<'s>(&'s self, elements: Range<u64>, _scratch: &'s mut Scratch) -> Result<Chunk<'s>> {
        let size = self.dtype.size();
        let bytes = &self.bytes[elements.start as usize * size..elements.end as usize * size];
        Ok(Chunk::Plain { dtype: self.dtype, bytes })
    }
}
