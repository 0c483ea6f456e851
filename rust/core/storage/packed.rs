//! Tensors stored as codes with scales, by the format that the plan names for each.
//!
//! A format is one file here: its parameters (serde), [`Codes`], which finds its parts and opens a range of it, and
//! [`Values`], which decodes a tile; and a line in [`Format`]. The value of every element is an f32: the one that the
//! format's own package gives, bit for bit.

use std::ops::Range;

use serde::{Deserialize, Deserializer};

use super::chunk::{Chunk, Scratch, Tiles};
use super::part::Part;
use super::wanted::Wanted;
use super::Storage;
use crate::checkpoint::Checkpoint;
use crate::dtype::{elements, Dtype};
use crate::error::{shown, Error, Kind, Result};
use crate::kernels::dispatch::ControlRegister;
use crate::kernels::{Floats, Level, TILE};

pub(crate) mod grid;
pub(crate) mod parts;
pub(crate) mod scaled;
pub(crate) mod table;

use parts::{Parts, Store, Stored};
use scaled::Scaled;

/// A type of plain numbers that packed ones are computed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Float(pub Dtype);

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        match Dtype::from_name(&name) {
            Some(dtype @ (Dtype::BF16 | Dtype::F16 | Dtype::F32)) => Ok(Float(dtype)),
            _ => {
                let message = format!("type `{}`, expected BF16, F16 or F32", name.escape_debug());
                Err(serde::de::Error::custom(message))
            }
        }
    }
}

macro_rules! formats {
    ($($kind:ident,)*) => {
        /// A format as the plan names it, in snake case.
        #[derive(Clone, Debug, Deserialize)]
        #[serde(tag = "kind", rename_all = "snake_case")]
        #[allow(missing_docs)]
        pub(crate) enum Format {
            $($kind($kind),)*
        }

        impl Format {
            /// A tensor of this format, its parts looked up and checked.
            ///
            /// # Errors
            /// A part that is missing, or has another type or shape.
            pub(crate) fn open<'a>(
                &self,
                store: &dyn Store<'a>,
                name: &str,
                shape: &[u64],
                count: u64,
            ) -> Result<Box<dyn Storage + 'a>> {
                match self {
                    $(Format::$kind(format) => {
                        let codes = format.find(&Parts::new(store, name, shape, &format.strip)?)?;
                        Ok(Box::new(Packed { dtype: format.dtype.0, elements: count, codes }))
                    })*
                }
            }
        }
    };
}

// A line per kind.
formats! {
    Scaled,
}

/// The stored parts of one tensor.
pub(crate) trait Codes: Send + Sync {
    /// A range of it, in memory.
    type Chunk<'s>: Values
    where
        Self: 's;

    /// All of them.
    fn parts(&self) -> Vec<Stored<'_>>;

    /// The part that takes the most bytes, and which of its elements `elements` are; none where they are strewn.
    fn span(&self, elements: Range<u64>) -> Option<(Stored<'_>, Range<u64>)>;

    /// Brings `elements`, at least one, into memory.
    ///
    /// # Errors
    /// Where a file was truncated or cannot be read.
    fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<Self::Chunk<'s>>;
}

/// A range of a tensor, in memory.
pub(crate) trait Values {
    /// Decodes at most [`TILE`] elements from element `at` of this range on; true if all are finite.
    fn tile(&self, level: Level, at: usize, out: &mut [f32]) -> bool;
}

/// A packed tensor.
struct Packed<C> {
    dtype: Dtype,
    elements: u64,
    codes: C,
}

/// A range of it.
struct Decoded<V>(V);

/// A tensor that is packed in its source, if it is.
///
/// # Errors
/// Its parts do not make up the tensor that is wanted.
pub(crate) fn find<'a>(wanted: &Wanted<'_, 'a>) -> Result<Option<Box<dyn Storage + 'a>>> {
    if wanted.stored {
        return Ok(None);
    }
    let Some((format, shape)) = wanted.source.packed.find(wanted.name)? else { return Ok(None) };
    wanted.check_shape(shape)?;
    format.open(&wanted.opened, wanted.name, shape, wanted.elements).map(Some)
}

impl<C: Codes> Storage for Packed<C> {
    fn parts(&self) -> Vec<Part<'_>> {
        self.codes.parts().iter().filter_map(|part| part.part()).collect()
    }

    fn elements(&self) -> u64 {
        self.elements
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn bytes(&self, elements: &Range<u64>) -> u64 {
        let all: u64 = self.codes.parts().iter().map(Stored::bytes).sum();
        let count = elements.end - elements.start;
        (u128::from(all) * u128::from(count) / u128::from(self.elements.max(1))) as u64
    }

    fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<Chunk<'s>> {
        if elements.is_empty() {
            return Ok(Chunk::Plain { dtype: self.dtype, bytes: &[] });
        }
        Ok(Chunk::Tiles(Box::new(Decoded(self.codes.open(elements, scratch)?))))
    }

    fn ahead(&self, elements: Range<u64>) {
        if let Some((Stored::File(part), span)) = self.codes.span(elements) {
            part.ahead(span);
        }
    }

    fn behind(&self, elements: Range<u64>) {
        if let Some((Stored::File(part), span)) = self.codes.span(elements) {
            part.behind(span);
        }
    }
}

impl<V: Values> Tiles for Decoded<V> {
    fn tile(&self, level: Level, at: usize, out: Floats<'_>) -> bool {
        let mut finite = true;
        match out {
            Floats::F32(out) => {
                for (index, out) in out.chunks_mut(TILE).enumerate() {
                    finite &= self.0.tile(level, at + index * TILE, out);
                }
            }
            Floats::F64(out) => {
                let mut narrow = [0f32; TILE];
                for (index, out) in out.chunks_mut(TILE).enumerate() {
                    let narrow = &mut narrow[..out.len()];
                    finite &= self.0.tile(level, at + index * TILE, narrow);
                    out.iter_mut().zip(narrow).for_each(|(wide, value)| *wide = f64::from(*value));
                }
            }
        }
        finite
    }
}

/// Elements `start .. start + count` of a packed tensor, as far as it goes; `format` is JSON, as a plan has it.
///
/// # Errors
/// `Kind::Plan` for what is no format, `Kind::Format` and `Kind::NotFound` for parts that do not make up the tensor.
pub fn decode(
    checkpoint: &Checkpoint,
    format: &[u8],
    name: &str,
    shape: &[u64],
    start: u64,
    count: u64,
) -> Result<Vec<f32>> {
    let format: Format =
        serde_json::from_slice(format).map_err(|error| Error::new(Kind::Plan, format!("unusable format: {error}")))?;
    let all = elements(shape)
        .filter(|all| *all <= u64::MAX / 8)
        .ok_or_else(|| Error::new(Kind::Plan, format!("the shape {shape:?} of `{}` overflows", shown(name))))?;
    let storage = format.open(&checkpoint, name, shape, all)?;
    let range = start.min(all)..start.saturating_add(count).min(all);
    let mut values = vec![0.0; (range.end - range.start) as usize];
    let mut scratch = Scratch::default();
    let _ieee = ControlRegister::ieee();
    storage.open(range, &mut scratch)?.tile(Level::chosen()?, 0, &mut values);
    storage.parts().iter().try_for_each(|part| part.file.unchanged())?;
    Ok(values)
}
