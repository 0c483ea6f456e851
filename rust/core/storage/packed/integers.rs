//! Rows of integers of a few bits, dense from the lowest bit on, and the groups that their columns belong to.

use std::ops::Range;
use std::path::Path;

use super::parts::{Parts, Stored};
use crate::dtype::Dtype;
use crate::error::{shown, Error, Kind, Result};
use crate::kernels::codes::fields;
use crate::kernels::Level;

/// The types that scales of integers may have.
pub(super) const SCALES: [Dtype; 3] = [Dtype::F32, Dtype::BF16, Dtype::F16];

/// Words of 32 bits that `count` integers take.
pub(super) fn words(count: u64, bits: u32) -> u64 {
    (u128::from(count) * u128::from(bits)).div_ceil(32) as u64
}

/// Integer `index` of a run of them.
pub(super) fn one(bits: u32, bytes: &[u8], index: u64) -> u8 {
    let mut out = [0];
    fields(Level::SCALAR, bits, bytes, index as usize, &mut out);
    out[0]
}

/// Rows in memory, each in bytes of its own.
#[derive(Clone, Copy)]
pub(super) struct Rows<'s> {
    /// Bits of one integer.
    pub bits: u32,
    /// Bytes of one row.
    pub stride: usize,
    /// The row that comes first.
    pub first: u64,
    /// All rows.
    pub bytes: &'s [u8],
}

impl Rows<'_> {
    /// Integers of a row, from `column` on.
    pub(super) fn fields(&self, level: Level, row: u64, column: u64, out: &mut [u8]) {
        let at = (row - self.first) as usize * self.stride;
        fields(level, self.bits, &self.bytes[at..at + self.stride], column as usize, out);
    }
}

/// The group of each column, where it is stored.
pub(super) struct Order<'a> {
    stored: Stored<'a>,
    groups: u64,
    /// Of the tensor that it is stored as.
    name: Box<str>,
}

impl<'a> Order<'a> {
    /// Of `columns` columns in `groups` groups.
    ///
    /// # Errors
    /// It is missing, or has another type or shape.
    pub(super) fn find(parts: &Parts<'_, 'a>, ending: Option<&str>, columns: u64, groups: u64) -> Result<Option<Self>> {
        let Some(ending) = ending else { return Ok(None) };
        let stored = parts.exact(ending, &[Dtype::I32], &[columns])?;
        Ok(Some(Order { stored, groups, name: parts.get(ending)?.name.into() }))
    }

    /// Where it is stored.
    pub(super) fn stored(&self) -> Stored<'a> {
        self.stored
    }

    /// The same; none where compressed-tensors has set it to -1, its word for columns that are in order.
    ///
    /// # Errors
    /// As [`Order::read`].
    pub(super) fn read_unless_unset<'s>(&self, buffer: &'s mut Vec<u8>) -> Result<Option<Groups<'s>>>
    where
        'a: 's,
    {
        let bytes = self.stored.all(buffer)?;
        let (words, _) = bytes.as_chunks::<4>();
        if words.contains(&(-1i32).to_le_bytes()) {
            return Ok(None);
        }
        self.checked(words).map(Some)
    }

    /// Brings it into memory.
    ///
    /// # Errors
    /// `Kind::Format` where a column is in a group that there is not.
    pub(super) fn read<'s>(&self, buffer: &'s mut Vec<u8>) -> Result<Groups<'s>>
    where
        'a: 's,
    {
        let bytes = self.stored.all(buffer)?;
        let (words, _) = bytes.as_chunks::<4>();
        self.checked(words)
    }

    fn checked<'s>(&self, words: &'s [[u8; 4]]) -> Result<Groups<'s>> {
        let groups = words.iter().map(|word| i32::from_le_bytes(*word));
        match groups.enumerate().find(|(_, group)| !(0..self.groups).contains(&(i64::from(*group) as u64))) {
            None => Ok(Groups { words, last: (self.groups - 1) as usize }),
            Some((column, group)) => {
                let path = self.stored.part().map_or(Path::new("the state dict"), |part| part.file.path());
                let (name, groups) = (shown(&self.name), self.groups);
                let message = format!("`{name}` has column {column} in group {group}, there are {groups}");
                Err(Error::new(Kind::Format, message).at(path))
            }
        }
    }
}

/// The group of each column, in memory.
pub(super) struct Groups<'s> {
    words: &'s [[u8; 4]],
    /// The last group: a file may change after it was looked at.
    last: usize,
}

impl Groups<'_> {
    /// Those of some columns.
    pub(super) fn of(&self, columns: Range<u64>) -> impl Iterator<Item = usize> + '_ {
        let words = &self.words[columns.start as usize..columns.end as usize];
        words.iter().map(|word| (u32::from_le_bytes(*word) as usize).min(self.last))
    }
}
