//! Integers as compressed-tensors packs them, with or without zero points, each group of columns with a scale.

use std::ops::Range;

use super::codes::{Codes, Values};
use super::format::PackedInt;
use super::grid::{Grid, Piece, Scales};
use super::integers::{words, Groups, Order, Rows, SCALES};
use super::parts::{Parts, Stored};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernels::codes::{from_zero_by_column, from_zero_in_runs};
use crate::kernels::{Level, TILE};
use crate::storage::chunk::Scratch;

/// A tensor in this format.
pub(super) struct PackedIntCodes<'a> {
    codes: Stored<'a>,
    scales: Stored<'a>,
    zeros: Option<Stored<'a>>,
    order: Option<Order<'a>>,
    grid: Grid,
    bits: u32,
    /// Rows of one matrix.
    rows: u64,
}

/// Its parts, checked.
///
/// # Errors
/// A part that is missing, or has another type or shape.
pub(super) fn find<'a>(format: &PackedInt, parts: &Parts<'_, 'a>) -> Result<PackedIntCodes<'a>> {
    let bits = parts.bits(format.bits)?;
    let [matrices @ .., rows, columns] = parts.shape else {
        return Err(parts.unfit("which has no rows and columns"));
    };
    let codes = [matrices, &[*rows, words(*columns, bits)]].concat();
    let codes = parts.exact(&format.parts.codes, &[Dtype::I32], &codes)?;
    let scales = parts.get(&format.parts.scales)?;
    let grid = Grid::of_scales(parts, &scales, [1, format.group])?;
    let zeros = [matrices, &[words(*rows, bits), grid.across()]].concat();
    let zeros = format.parts.zeros.as_ref().map(|ending| parts.exact(ending, &[Dtype::I32], &zeros)).transpose()?;
    let order = Order::find(parts, format.parts.order.as_deref(), *columns, grid.across())?;
    let scales = parts.typed(&scales, &SCALES)?;
    Ok(PackedIntCodes { codes, scales, zeros, order, grid, bits, rows: (*rows).max(1) })
}

impl PackedIntCodes<'_> {
    /// The rows that hold these elements.
    fn rows(&self, elements: &Range<u64>) -> Range<u64> {
        self.grid.row(elements.start)..self.grid.row(elements.end - 1) + 1
    }

    fn words(&self) -> u64 {
        words(self.grid.columns, self.bits)
    }

    /// The rows of words that hold the zero points of these rows.
    fn zero_words(&self, rows: &Range<u64>) -> Range<u64> {
        let word =
            |row: u64| row / self.rows * words(self.rows, self.bits) + row % self.rows * u64::from(self.bits) / 32;
        // A zero point may go on in the next word.
        let last = rows.end - 1;
        let end = last / self.rows * words(self.rows, self.bits) + words(last % self.rows + 1, self.bits);
        word(rows.start)..end
    }
}

impl Codes for PackedIntCodes<'_> {
    type Chunk<'s>
        = PackedIntChunk<'s>
    where
        Self: 's;

    fn parts(&self) -> Vec<Stored<'_>> {
        let order = self.order.iter().map(Order::stored);
        [self.codes, self.scales].into_iter().chain(self.zeros).chain(order).collect()
    }

    fn span(&self, elements: Range<u64>) -> Option<(Stored<'_>, Range<u64>)> {
        let Range { start, end } = self.rows(&elements);
        Some((self.codes, start * self.words()..end * self.words()))
    }

    fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<PackedIntChunk<'s>> {
        let [codes, scales, zeros, order] = &mut scratch.parts;
        let (rows, words, across) = (self.rows(&elements), self.words(), self.grid.across());
        let bytes = self.codes.read(rows.start * words..rows.end * words, codes)?;
        let held = self.zero_words(&rows);
        let zeros = match &self.zeros {
            Some(stored) => Some((stored.read(held.start * across..held.end * across, zeros)?, held.start)),
            None => None,
        };
        Ok(PackedIntChunk {
            codes: Rows { bits: self.bits, stride: words as usize * 4, first: rows.start, bytes },
            scales: Scales::read(&self.scales, self.grid.scales(&elements), scales)?,
            zeros,
            order: self.order.as_ref().map(|stored| stored.read_unless_unset(order)).transpose()?.flatten(),
            first: elements.start,
            of: self,
        })
    }
}

/// A range of it, in memory.
pub(super) struct PackedIntChunk<'s> {
    codes: Rows<'s>,
    scales: Scales<'s>,
    /// Rows of words, and which one comes first.
    zeros: Option<(&'s [u8], u64)>,
    order: Option<Groups<'s>>,
    first: u64,
    of: &'s PackedIntCodes<'s>,
}

impl PackedIntChunk<'_> {
    /// The zero points of a row's groups.
    fn zeros(&self, row: u64, groups: Range<u64>, out: &mut [f32]) {
        let (bits, across) = (self.of.bits, self.of.grid.across() as usize);
        let Some((bytes, first)) = self.zeros else {
            out.fill((1u32 << (bits - 1)) as f32);
            return;
        };
        let (matrix, row) = (row / self.of.rows, row % self.of.rows);
        let bit = row * u64::from(bits);
        let word = (matrix * words(self.of.rows, bits) + bit / 32 - first) as usize;
        for (slot, group) in out.iter_mut().zip(groups) {
            // The word of the group's column that holds the first bit, and the one below it.
            let mut pair = [0u8; 8];
            for (half, line) in pair.chunks_mut(4).zip([word, word + 1]) {
                let at = (line * across + group as usize) * 4;
                if let Some(held) = bytes.get(at..at + 4) {
                    half.copy_from_slice(held);
                }
            }
            let value = (u64::from_le_bytes(pair) >> (bit % 32)) & ((1 << bits) - 1);
            *slot = value as f32;
        }
    }

    fn piece(&self, level: Level, piece: &Piece, codes: &[u8], out: &mut [f32]) -> bool {
        let grid = &self.of.grid;
        let all = grid.of(piece);
        let Some(order) = &self.order else {
            let (mut scales, mut zeros) = ([0f32; TILE], [0f32; TILE]);
            let count = self.scales(level, piece, &mut scales, &mut zeros);
            return from_zero_in_runs(level, codes, &zeros[..count], &scales[..count], grid.run(piece), out);
        };
        let across = grid.across();
        let start = all.start - piece.column / grid.wide;
        let (mut scales, mut zeros) = (vec![0f32; across as usize], vec![0f32; across as usize]);
        self.scales.widen(level, start..start + across, &mut scales);
        self.zeros(piece.row, 0..across, &mut zeros);
        let (mut by_column, mut zero_by_column) = ([0f32; TILE], [0f32; TILE]);
        let columns = piece.column..piece.column + piece.n as u64;
        for (index, group) in order.of(columns).enumerate() {
            (by_column[index], zero_by_column[index]) = (scales[group], zeros[group]);
        }
        from_zero_by_column(level, codes, &zero_by_column[..piece.n], &by_column[..piece.n], out)
    }
}

impl Values for PackedIntChunk<'_> {
    fn tile(&self, level: Level, at: usize, out: &mut [f32]) -> bool {
        let mut codes = [0u8; TILE];
        let mut finite = true;
        for piece in self.of.grid.pieces(self.first + at as u64, out.len()) {
            let codes = &mut codes[..piece.n];
            self.codes.fields(level, piece.row, piece.column, codes);
            finite &= self.piece(level, &piece, codes, &mut out[piece.at..piece.at + piece.n]);
        }
        finite
    }

    fn grid(&self) -> Option<(u64, Grid)> {
        self.order.is_none().then_some((self.first, self.of.grid))
    }

    fn coding(&self) -> (&'static str, Dtype, u32) {
        ("packed_int", Dtype::I32, self.of.bits)
    }

    fn codes(&self, level: Level, at: usize, out: &mut [u8]) {
        for piece in self.of.grid.pieces(self.first + at as u64, out.len()) {
            self.codes.fields(level, piece.row, piece.column, &mut out[piece.at..piece.at + piece.n]);
        }
    }

    fn scales(&self, level: Level, piece: &Piece, scales: &mut [f32], more: &mut [f32]) -> usize {
        let grid = &self.of.grid;
        let count = self.scales.widen(level, grid.of(piece), scales).len();
        let group = piece.column / grid.wide;
        self.zeros(piece.row, group..group + count as u64, &mut more[..count]);
        count
    }
}
