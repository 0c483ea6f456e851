//! A stored tensor, or a run of its elements: the file that holds it and where.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::Result;
use crate::file::mapped::Mapped;

/// A stored run of elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    /// The file that holds it.
    pub file: &'a Mapped,
    /// Where it begins.
    pub offset: u64,
    /// Elements.
    pub elements: u64,
    /// Its element type.
    pub dtype: Dtype,
}

impl<'a> Part<'a> {
    /// Where `elements` lie in the file.
    fn range(&self, elements: Range<u64>) -> Range<u64> {
        let size = self.dtype.size() as u64;
        self.offset + elements.start * size..self.offset + elements.end * size
    }

    /// Bytes in all.
    pub(crate) fn bytes(&self) -> u64 {
        self.elements * self.dtype.size() as u64
    }

    /// The bytes of `elements`; the buffer is for a file that is not mapped.
    ///
    /// # Errors
    /// Where the file was truncated or cannot be read.
    pub(crate) fn read<'s>(&self, elements: Range<u64>, buffer: &'s mut Vec<u8>) -> Result<&'s [u8]>
    where
        'a: 's,
    {
        self.file.read(self.range(elements), buffer)
    }

    /// Says that `elements` will be wanted soon.
    pub(crate) fn ahead(&self, elements: Range<u64>) {
        self.file.advise_ahead(self.range(elements));
    }

    /// Says that `elements` are done with.
    pub(crate) fn behind(&self, elements: Range<u64>) {
        self.file.drop_behind(self.range(elements));
    }
}
