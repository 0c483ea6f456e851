//! The stored tensors that a packed one is made of, looked up by name and held against what they have to be.

use std::ops::Range;
use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;
use crate::error::{shown, Error, Kind, Result};
use crate::storage::opened::Opened;
use crate::storage::part::Part;
use crate::storage::source::Buffer;

/// Where stored tensors are.
pub(crate) trait Store<'a> {
    /// One of them with its shape, if there is one of that name.
    ///
    /// # Errors
    /// Where its file cannot be opened.
    fn stored(&self, name: &str) -> Result<Option<(Stored<'a>, &'a [u64])>>;

    /// The folder, for a message.
    fn folder(&self) -> &Path;
}

/// A stored tensor, in a file or in the embedding process.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    place: Place<'a>,
    /// Its element type.
    pub dtype: Dtype,
}

#[derive(Clone, Copy)]
enum Place<'a> {
    File(Part<'a>),
    Memory(&'a [u8]),
}

impl<'a> Store<'a> for &'a Opened<'a> {
    fn stored(&self, name: &str) -> Result<Option<(Stored<'a>, &'a [u64])>> {
        Ok(match self.buffers() {
            Some(buffers) => buffers.get(name).map(|buffer| (Stored::memory(buffer), &*buffer.shape)),
            None => self.find(name).map(|(part, shape)| (Stored::file(part), shape)),
        })
    }

    fn folder(&self) -> &Path {
        Opened::stored(self).map_or(Path::new("the state dict"), |(checkpoint, _)| &checkpoint.folder)
    }
}

impl<'a> Store<'a> for &'a Checkpoint {
    fn stored(&self, name: &str) -> Result<Option<(Stored<'a>, &'a [u64])>> {
        let Some(found) = self.find(name) else { return Ok(None) };
        let (file, elements) = (self.mapped(found.file)?, found.len / found.dtype.size() as u64);
        let part = Part { file, offset: found.offset, elements, dtype: found.dtype };
        Ok(Some((Stored::file(part), found.shape)))
    }

    fn folder(&self) -> &Path {
        &self.folder
    }
}

impl<'a> Stored<'a> {
    fn file(part: Part<'a>) -> Self {
        Stored { place: Place::File(part), dtype: part.dtype }
    }

    fn memory(buffer: &'a Buffer<'a>) -> Self {
        Stored { place: Place::Memory(buffer.bytes), dtype: buffer.dtype }
    }

    /// The same bytes, each an element by itself.
    pub(crate) fn raw(&self) -> Self {
        let dtype = Dtype::U8;
        let place = match self.place {
            Place::File(part) => Place::File(Part { elements: part.bytes(), dtype, ..part }),
            memory @ Place::Memory(_) => memory,
        };
        Stored { place, dtype }
    }

    /// Bytes in all.
    pub(crate) fn bytes(&self) -> u64 {
        match self.place {
            Place::File(part) => part.bytes(),
            Place::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Where it lies in a file, if it does.
    pub(crate) fn part(&self) -> Option<Part<'a>> {
        match self.place {
            Place::File(part) => Some(part),
            Place::Memory(_) => None,
        }
    }

    /// The bytes of `elements`; the buffer is for a file that is not mapped.
    ///
    /// # Errors
    /// Where the file was truncated or cannot be read.
    pub(crate) fn read<'s>(&self, elements: Range<u64>, buffer: &'s mut Vec<u8>) -> Result<&'s [u8]>
    where
        'a: 's,
    {
        match self.place {
            Place::File(part) => part.read(elements, buffer),
            Place::Memory(bytes) => {
                let size = self.dtype.size();
                Ok(&bytes[elements.start as usize * size..elements.end as usize * size])
            }
        }
    }

    /// All bytes.
    ///
    /// # Errors
    /// As [`Stored::read`].
    pub(crate) fn all<'s>(&self, buffer: &'s mut Vec<u8>) -> Result<&'s [u8]>
    where
        'a: 's,
    {
        self.read(0..self.bytes() / self.dtype.size() as u64, buffer)
    }
}

/// The parts of one packed tensor.
pub(crate) struct Parts<'p, 'a> {
    store: &'p dyn Store<'a>,
    /// The logical name.
    name: &'p str,
    /// The logical shape.
    pub shape: &'p [u64],
    /// The same without the ending that the parts do not have.
    stem: &'p str,
}

/// One part that is there.
pub(crate) struct Found<'a> {
    /// What it holds.
    pub stored: Stored<'a>,
    /// Its shape.
    pub shape: &'a [u64],
    /// What it is stored as.
    pub name: String,
}

impl<'p, 'a> Parts<'p, 'a> {
    /// Of the tensor `name`: a part is called that without `strip` at its end, and with an ending of its own.
    ///
    /// # Errors
    /// `Kind::Plan` where the name does not end so.
    pub(crate) fn new(store: &'p dyn Store<'a>, name: &'p str, shape: &'p [u64], strip: &str) -> Result<Self> {
        let stem = name.strip_suffix(strip).ok_or_else(|| {
            let (name, strip) = (shown(name), shown(strip));
            Error::new(Kind::Plan, format!("`{name}` does not end in `{strip}`, as its format says"))
        })?;
        Ok(Parts { store, name, shape, stem })
    }

    /// The part whose name ends so.
    ///
    /// # Errors
    /// `Kind::NotFound`.
    pub(crate) fn get(&self, ending: &str) -> Result<Found<'a>> {
        let name = format!("{}{ending}", self.stem);
        match self.store.stored(&name)? {
            Some((stored, shape)) => Ok(Found { stored, shape, name }),
            None => {
                let message = format!("there is no tensor `{}`, a part of `{}`", shown(&name), shown(self.name));
                Err(Error::new(Kind::NotFound, message).at(self.store.folder()).hint(WHOLE))
            }
        }
    }

    /// The part has one of these types.
    ///
    /// # Errors
    /// `Kind::Format` naming the part and what it should be.
    pub(crate) fn typed(&self, part: &Found<'a>, types: &[Dtype]) -> Result<Stored<'a>> {
        if types.contains(&part.stored.dtype) {
            return Ok(part.stored);
        }
        let types: Vec<&str> = types.iter().map(|dtype| dtype.name()).collect();
        Err(self.wrong(part, &format!("one of the types {}", types.join(", "))))
    }

    /// The part has one of these shapes.
    ///
    /// # Errors
    /// `Kind::Format` naming the part and the first of them.
    pub(crate) fn shaped(&self, part: &Found<'a>, shapes: &[&[u64]]) -> Result<()> {
        if shapes.contains(&part.shape) {
            return Ok(());
        }
        Err(self.wrong(part, &format!("the shape {:?}", shapes.first().unwrap_or(&&[][..]))))
    }

    /// The part has so many bytes, in whatever shape.
    ///
    /// # Errors
    /// `Kind::Format` naming the part and both.
    pub(crate) fn sized(&self, part: &Found<'a>, bytes: u64) -> Result<()> {
        if part.stored.bytes() == bytes {
            return Ok(());
        }
        Err(self.wrong(part, &format!("{bytes} bytes")))
    }

    /// The part whose name ends so, of one of these types, in this shape.
    ///
    /// # Errors
    /// As [`Parts::get`], [`Parts::typed`], [`Parts::shaped`].
    pub(crate) fn exact(&self, ending: &str, types: &[Dtype], shape: &[u64]) -> Result<Stored<'a>> {
        let part = self.get(ending)?;
        self.shaped(&part, &[shape])?;
        self.typed(&part, types)
    }

    /// Integers of so many bits.
    ///
    /// # Errors
    /// `Kind::Plan` where there are none such.
    pub(crate) fn bits(&self, bits: u32) -> Result<u32> {
        if (1..=8).contains(&bits) {
            return Ok(bits);
        }
        Err(self.contradiction(&format!("{bits} bits")))
    }

    /// The error where the format itself cannot be.
    pub(crate) fn contradiction(&self, found: &str) -> Error {
        Error::new(Kind::Plan, format!("the format of `{}` has {found}", shown(self.name)))
    }

    fn wrong(&self, part: &Found<'a>, expected: &str) -> Error {
        let (part, dtype, shape) = (shown(&part.name), part.stored.dtype, part.shape);
        let message = format!(
            "`{part}` is {dtype} {shape:?}, but as a part of `{}`, of shape {:?}, it should have {expected}",
            shown(self.name),
            self.shape
        );
        Error::new(Kind::Format, message).at(self.store.folder()).hint(WHOLE)
    }

    /// The logical shape is not one that the format can store.
    pub(crate) fn unfit(&self, expected: &str) -> Error {
        let message = format!("`{}` has shape {:?}, {expected}", shown(self.name), self.shape);
        Error::new(Kind::Format, message).at(self.store.folder())
    }
}

const WHOLE: &str = "download or save the checkpoint again; its config may also speak of another format";
