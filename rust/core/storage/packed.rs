//! Tensors stored as codes with scales, by the format that the plan names for each.
//!
//! A format is its parameters in [`format`], a file here that finds its parts ([`codes::Codes`]) and decodes a tile of
//! them ([`codes::Values`]), and a line in [`open`]. The value of every element is an f32: the one that the format's own
//! package gives, bit for bit.

use std::ops::Range;

use super::chunk::{Chunk, Coded, Coding, Run, Scratch, Tiles};
use super::part::Part;
use super::wanted::Wanted;
use super::Storage;
use crate::checkpoint::Checkpoint;
use crate::dtype::{elements, Dtype};
use crate::error::{shown, Error, Kind, Result};
use crate::file::heap::filled;
use crate::kernels::dispatch::ControlRegister;
use crate::kernels::{Floats, Level, TILE};

mod awq;
mod bnb4;
mod codes;
pub(crate) mod e2m1;
pub(crate) mod format;
mod gptq;
pub(crate) mod grid;
mod integers;
mod mlx;
mod packed_int;
pub(crate) mod parts;
mod scaled;
pub(crate) mod table;
mod transposed;

use codes::{Codes, Values};
use format::Format;
use grid::Room;
use parts::{Parts, Store, Stored};

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
    open(format, &wanted.opened, wanted.name, (shape, wanted.elements)).map(Some)
}

/// A tensor of this format, its parts looked up and checked.
///
/// # Errors
/// A part that is missing, or has another type or shape.
fn open<'a>(
    format: &Format,
    store: &dyn Store<'a>,
    name: &str,
    (shape, count): (&[u64], u64),
) -> Result<Box<dyn Storage + 'a>> {
    macro_rules! by {
        ($($kind:ident: $find:path,)*) => {
            match format {
                $(Format::$kind(format) => {
                    let codes = $find(format, &Parts::new(store, name, shape, &format.strip)?)?;
                    Ok(Box::new(Packed { dtype: format.dtype.0, elements: count, codes }))
                })*
            }
        };
    }
    by! {
        Scaled: scaled::find,
        E2m1: e2m1::find,
        PackedInt: packed_int::find,
        Gptq: gptq::find,
        Awq: awq::find,
        Bnb4: bnb4::find,
        Mlx: mlx::find,
    }
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

    fn packed(&self) -> Vec<Stored<'_>> {
        self.codes.parts()
    }

    fn exact(&self) -> Option<Dtype> {
        Some(Dtype::F32)
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
        if let Some((part, span)) = self.span(elements) {
            part.ahead(span);
        }
    }

    fn behind(&self, elements: Range<u64>) {
        if let Some((part, span)) = self.span(elements) {
            part.behind(span);
        }
    }
}

impl<C: Codes> Packed<C> {
    fn span(&self, elements: Range<u64>) -> Option<(Part<'_>, Range<u64>)> {
        let (codes, span) = self.codes.span(elements)?;
        Some((codes.part()?, span))
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

    fn coded(&self) -> Option<&dyn Coded> {
        self.0.grid().map(|_| self as &dyn Coded)
    }
}

impl<V: Values> Coded for Decoded<V> {
    fn coding(&self) -> Coding {
        let (kind, codes, bits) = self.0.coding();
        Coding { kind, codes, bits, groups: self.0.grid().map_or([0; 4], |(_, grid)| grid.sides()) }
    }

    fn codes(&self, level: Level, at: usize, out: &mut [u8]) {
        self.0.codes(level, at, out);
    }

    fn runs(&self, level: Level, at: usize, n: usize, each: &mut dyn FnMut(Run)) {
        let Some((first, grid)) = self.0.grid() else { return };
        let (mut scales, mut more) = (Room::new(grid.wide), Room::new(grid.wide));
        let (scales, more) = (scales.slots(), more.slots());
        let under = self.0.is_under_global();
        for piece in grid.pieces(first + at as u64, n) {
            let count = self.0.scales(level, &piece, scales, more);
            let (mut skip, wide) = grid.run(&piece);
            let mut left = piece.n;
            for (scale, more) in scales.iter().zip(&*more).take(count) {
                let n = (wide - skip).min(left);
                let begins = skip == 0 && grid.begins(piece.row);
                let scale = (scale.to_bits(), more.to_bits());
                let stored = if under { (scale.1, 0) } else { scale };
                each(Run { n, begins, scale, stored });
                (skip, left) = (0, left - n);
            }
        }
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
    let unusable = |error| Error::new(Kind::Plan, format!("unusable format: {error}"));
    let format: Format = serde_json::from_slice(format).map_err(unusable)?;
    let all = elements(shape)
        .ok_or_else(|| Error::new(Kind::Plan, format!("the shape {shape:?} of `{}` overflows", shown(name))))?;
    let storage = open(&format, &checkpoint, name, (shape, all))?;
    let range = start.min(all)..start.saturating_add(count).min(all);
    let mut values = filled(range.end - range.start, 0.0)?;
    let mut scratch = Scratch::default();
    let _ieee = ControlRegister::ieee();
    storage.open(range, &mut scratch)?.tile(Level::chosen()?, 0, &mut values);
    storage.parts().iter().try_for_each(|part| part.file.unchanged())?;
    Ok(values)
}
