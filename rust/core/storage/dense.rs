//! Every element as a number by itself, in one stored tensor: what safetensors checkpoints mostly hold.

use std::ops::Range;

use super::chunk::{Chunk, Scratch};
use super::part::Part;
use super::wanted::Wanted;
use super::Storage;
use crate::dtype::Dtype;
use crate::error::Result;

/// A tensor stored as it is.
pub(crate) struct Dense<'a>(pub Part<'a>);

impl<'a> Dense<'a> {
    /// The tensor under its own name.
    ///
    /// # Errors
    /// It is not there, or has another shape.
    pub(crate) fn find(wanted: &Wanted<'_, 'a>) -> Result<Self> {
        let (part, shape) = wanted.tensor()?;
        wanted.check_shape(shape)?;
        Ok(Dense(part))
    }
}

impl Storage for Dense<'_> {
    fn parts(&self) -> Vec<Part<'_>> {
        vec![self.0]
    }

    fn elements(&self) -> u64 {
        self.0.elements
    }

    fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    fn plain(&self) -> Option<Dtype> {
        Some(self.0.dtype)
    }

    fn bytes(&self, elements: &Range<u64>) -> u64 {
        (elements.end - elements.start) * self.0.dtype.size() as u64
    }

    fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<Chunk<'s>> {
        Ok(Chunk::Plain { dtype: self.0.dtype, bytes: self.0.read(elements, &mut scratch.parts[0])? })
    }

    fn ahead(&self, elements: Range<u64>) {
        self.0.ahead(elements);
    }

    fn behind(&self, elements: Range<u64>) {
        self.0.behind(elements);
    }
}
