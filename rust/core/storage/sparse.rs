//! Tensors of which only the elements that are not zero are stored: a bit mask or a sorted list of flat indices says
//! where they go.
//!
//! What is stored is checked as a whole before a run begins, and that pass leaves a directory behind: how many values
//! come before every [`STEP`]-th element. From it any range can be read alone.

use std::cell::Cell;
use std::ops::Range;

use super::chunk::{Chunk, Scratch};
use super::part::Part;
use super::source::SourceKind;
use super::wanted::Wanted;
use super::Storage;
use crate::dtype::Dtype;
use crate::error::{shown, Error, Kind, Result};
use crate::file::regular;

pub(super) mod chunk;
pub(super) mod places;

use chunk::SparseChunk;
use places::{integer, ones, ones_before, partition, Places};

/// Elements between two entries of the directory.
const STEP: u64 = 1 << 16;
/// Elements that a tensor may have whose size no stored byte bears out: a hundred times those of the largest there are.
const MOST: u64 = 1 << 40;
/// Bytes looked at together while checking.
const PIECE: u64 = 1 << 20;

/// A tensor with few values.
pub(crate) struct Sparse<'a> {
    /// The values that are not zero, in element order.
    values: Part<'a>,
    places: Part<'a>,
    elements: u64,
    kind: Places,
    /// Elements between two entries of the directory: of indices so many that it has no more entries than there are
    /// values, whatever the shape claims.
    step: u64,
    /// Values before element `i · step`.
    ranks: Vec<u64>,
}

impl<'a> Sparse<'a> {
    /// What is stored for a tensor that is wanted, called `name`: checked, or as its headers have it where nothing else
    /// may be looked at.
    ///
    /// # Errors
    /// As [`Sparse::check`].
    pub(crate) fn find(
        wanted: &Wanted<'_, 'a>,
        name: &str,
        kind: Places,
        places: Part<'a>,
        values: Part<'a>,
    ) -> Result<Sparse<'a>> {
        let elements = wanted.elements;
        match wanted.only_headers {
            true => Ok(Sparse { values, places, elements, kind, step: STEP, ranks: Vec::new() }),
            false => Sparse::check(name, elements, kind, places, values),
        }
    }

    /// Checks what is stored for a tensor of `elements` and builds the directory.
    ///
    /// # Errors
    /// `Kind::Format` naming `name` and what is wrong: a mask of another length or population, indices that are not
    /// sorted, occur twice or lie outside.
    fn check(name: &str, elements: u64, kind: Places, places: Part<'a>, values: Part<'a>) -> Result<Sparse<'a>> {
        let wrong = |what: String| {
            let error = Error::new(Kind::Format, format!("`{}`: {what}", shown(name)));
            error.hint("the vector is damaged: `taskvec verify` names the files that have changed; extract it again")
        };
        if !values.dtype.is_float() {
            return Err(wrong(format!("values are {}, not of a floating-point type", values.dtype)));
        }
        if elements > MOST {
            return Err(wrong(format!("a tensor of {elements} elements, of which {MOST} are the most that are read")));
        }
        let step = match kind {
            Places::Mask => STEP,
            Places::Index => STEP.max(elements.div_ceil(places.elements + 1)),
        };
        let mut sparse = Sparse { values, places, elements, kind, step, ranks: Vec::new() };
        let found = match kind {
            Places::Mask => {
                if places.dtype != Dtype::U8 || places.elements != elements.div_ceil(8) {
                    let (found, dtype) = (places.elements, places.dtype);
                    return Err(wrong(format!(
                        "a mask of {found} {dtype}, expected {} U8 for {elements} elements",
                        elements.div_ceil(8)
                    )));
                }
                sparse.count_mask(elements).and_then(|(count, beyond)| match beyond {
                    true => Err(wrong(format!("the mask has bits beyond the last of {elements} elements"))),
                    false => Ok(count),
                })?
            }
            Places::Index => {
                if !matches!(places.dtype, Dtype::I32 | Dtype::I64) {
                    return Err(wrong(format!("indices are {}, expected I32 or I64", places.dtype)));
                }
                sparse.count_index(elements, &wrong)?
            }
        };
        if found != values.elements {
            let what = if kind == Places::Mask { "bits in the mask" } else { "indices" };
            return Err(wrong(format!("{found} {what}, but {} values", values.elements)));
        }
        Ok(sparse)
    }

    fn count_mask(&mut self, elements: u64) -> Result<(u64, bool)> {
        let mut scratch = Vec::new();
        let (mut count, mut last) = (0u64, 0u8);
        let mut at = 0;
        while at < self.places.elements {
            let range = at..(at + PIECE).min(self.places.elements);
            let bytes = self.places.read(range.clone(), &mut scratch)?;
            for step in bytes.chunks((STEP / 8) as usize) {
                self.ranks.push(count);
                count += ones(step);
                last = step.last().copied().unwrap_or(0);
            }
            self.places.behind(range.clone());
            at = range.end;
        }
        self.ranks.push(count);
        let used = elements % 8;
        Ok((count, used > 0 && last >> used != 0))
    }

    fn count_index(&mut self, elements: u64, wrong: &dyn Fn(String) -> Error) -> Result<u64> {
        let mut scratch = Vec::new();
        let (mut at, mut previous) = (0u64, None::<u64>);
        let size = self.places.dtype.size() as u64;
        while at < self.places.elements {
            let range = at..(at + PIECE / size).min(self.places.elements);
            let bytes = self.places.read(range.clone(), &mut scratch)?;
            for (i, raw) in bytes.chunks_exact(size as usize).enumerate() {
                let signed = integer(raw);
                let index = u64::try_from(signed).ok().filter(|index| *index < elements);
                let index = index.ok_or_else(|| wrong(format!("index {signed} of {elements} elements")))?;
                if previous.is_some_and(|previous| previous >= index) {
                    return Err(wrong(format!("index {index} does not come after the one before it")));
                }
                while self.ranks.len() as u64 * self.step <= index {
                    self.ranks.push(at + i as u64);
                }
                previous = Some(index);
            }
            at = range.end;
        }
        while (self.ranks.len() as u64).saturating_mul(self.step) < elements {
            self.ranks.push(self.places.elements);
        }
        // The entry that ends the last step, whole or not.
        self.ranks.push(self.places.elements);
        Ok(self.places.elements)
    }

    /// Brings `elements` into memory, `otherwise` where no value is stored; the buffers are for files that are not
    /// mapped.
    ///
    /// # Errors
    /// Where the file was truncated or cannot be read.
    pub(crate) fn range<'s>(
        &'s self,
        elements: Range<u64>,
        otherwise: f64,
        places: &'s mut Vec<u8>,
        values: &'s mut Vec<u8>,
    ) -> Result<SparseChunk<'s>> {
        // The entry at or before the range, and the one at or behind it, bound the values that can be in it.
        let low = (elements.start / self.step) as usize;
        let high = (elements.end.div_ceil(self.step) as usize).min(self.ranks.len() - 1);
        let (mut from, mut to) = (self.ranks[low], self.ranks[high]);
        let (mut skip, stored);
        match self.kind {
            Places::Mask => {
                let start = low as u64 * self.step / 8;
                let bytes = self.places.read(start..elements.end.div_ceil(8), places)?;
                skip = (elements.start - low as u64 * self.step) as usize;
                from += ones_before(bytes, skip);
                to = to.min(from + ones_before(&bytes[skip / 8..], bytes.len() * 8 - skip / 8 * 8));
                stored = &bytes[skip / 8..];
                skip %= 8;
            }
            Places::Index => {
                let bytes = self.places.read(from..to, places)?;
                let size = self.places.dtype.size();
                let count = bytes.len() / size;
                let index = |i: usize| integer(&bytes[i * size..(i + 1) * size]) as u64;
                let first = partition(count, |i| index(i) < elements.start);
                let last = partition(count, |i| index(i) < elements.end).max(first);
                (from, to) = (from + first as u64, from + last as u64);
                stored = &bytes[first * size..last * size];
                skip = 0;
            }
        }
        if from > to {
            return Err(self.changed());
        }
        let values = self.values.read(from..to, values)?;
        Ok(SparseChunk {
            kind: self.kind,
            places: stored,
            index_type: self.places.dtype,
            first: elements.start,
            skip,
            values,
            dtype: self.values.dtype,
            otherwise,
            cursor: Cell::new((0, 0)),
        })
    }
}

impl Sparse<'_> {
    /// The error where what was checked is there no more: its bytes are those of the file, which others may write to.
    fn changed(&self) -> Error {
        let looked = self.places.file.unchanged().and_then(|()| self.values.file.unchanged());
        looked.err().unwrap_or_else(|| regular::written_to(self.places.file.path()))
    }
}

/// A tensor of a saved vector of which only the elements that are not zero are stored, if it is one.
///
/// # Errors
/// As [`Sparse::check`].
pub(crate) fn find<'a>(wanted: &Wanted<'_, 'a>) -> Result<Option<Box<dyn Storage + 'a>>> {
    if wanted.source.kind != SourceKind::Vector {
        return Ok(None);
    }
    let places = wanted.part("mask").map(|mask| (Places::Mask, mask));
    let places = places.or_else(|| wanted.part("indices").map(|indices| (Places::Index, indices)));
    let (Some((kind, places)), Some(values)) = (places, wanted.part("values")) else { return Ok(None) };
    Ok(Some(Box::new(Sparse::find(wanted, wanted.name, kind, places, values)?)))
}

impl Storage for Sparse<'_> {
    fn parts(&self) -> Vec<Part<'_>> {
        vec![self.places, self.values]
    }

    fn elements(&self) -> u64 {
        self.elements
    }

    fn dtype(&self) -> Dtype {
        self.values.dtype
    }

    fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<Chunk<'s>> {
        let [places, values, ..] = &mut scratch.parts;
        Ok(Chunk::Tiles(Box::new(self.range(elements, 0.0, places, values)?)))
    }
}
