//! Columns that are not neighbours of the others of their group: they are brought together to be encoded, and put back.

use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::storage::packed::parts::Stored;

/// Which column has which place where the columns of each group are neighbours.
pub(super) struct Columns {
    from: Vec<u32>,
}

impl Columns {
    /// By the stored group of each column, of groups of `wide` columns.
    ///
    /// # Errors
    /// `Kind::Format` where a group has another number of columns; a file that was truncated or cannot be read.
    pub(super) fn of(stored: &Stored<'_>, wide: u64, buffer: &mut Vec<u8>) -> Result<Columns> {
        let (words, _) = stored.all(buffer)?.as_chunks::<4>();
        let groups = words.len().div_ceil(wide as usize);
        let mut next: Vec<usize> = (0..groups).map(|group| group * wide as usize).collect();
        let mut from = vec![0; words.len()];
        for (column, word) in words.iter().enumerate() {
            let group = u32::from_le_bytes(*word) as usize;
            let end = ((group + 1).saturating_mul(wide as usize)).min(words.len());
            match next.get_mut(group).filter(|place| **place < end) {
                Some(place) => {
                    from[*place] = column as u32;
                    *place += 1;
                }
                None => return Err(uneven(stored, group, end.saturating_sub(group * wide as usize))),
            }
        }
        Ok(Columns { from })
    }

    /// The column that has a place.
    pub(super) fn at(&self, place: u64) -> u64 {
        u64::from(self.from[place as usize])
    }

    /// Brings the columns of groups together, in each row.
    pub(super) fn gather<T: Copy>(&self, rows: &mut [T], room: &mut Vec<T>) {
        for row in rows.chunks_exact_mut(self.from.len()) {
            room.clear();
            room.extend(self.from.iter().map(|column| row[*column as usize]));
            row.copy_from_slice(room);
        }
    }

    /// Puts the columns of a row back.
    pub(super) fn scatter<T: Copy>(&self, row: &mut [T], room: &mut Vec<T>) {
        room.clear();
        room.extend_from_slice(row);
        self.from.iter().zip(&*room).for_each(|(column, value)| row[*column as usize] = *value);
    }
}

fn uneven(stored: &Stored<'_>, group: usize, wide: usize) -> Error {
    let path = stored.part().map_or(Path::new("the state dict"), |part| part.file.path());
    let message = format!("group {group} has more columns than {wide}: such groups are read, and not written");
    Error::new(Kind::Format, message).at(path).hint("write plain weights (`--out-dtype bfloat16`)")
}
