//! Integers whose rows are the columns of the weight, as GPTQ and AWQ store them: the rows of the weight that are wanted
//! are put together in memory, and decoded from there.

use std::ops::Range;

use super::codes::{Codes, Values};
use super::grid::Grid;
use super::grid::Piece;
use super::integers::{one, words, Groups, Order, Rows};
use super::parts::Stored;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernels::codes::{from_zero_by_column, from_zero_in_runs};
use crate::kernels::widen::widen;
use crate::kernels::{Level, TILE};
use crate::storage::chunk::Scratch;

/// How integers lie in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// Dense: codes along the columns of the weight, zero points along its rows, which get `offset` on top.
    Dense {
        /// Bits of one integer.
        bits: u32,
        /// 1 or 0.
        offset: u32,
    },
    /// Four bits, eight rows of the weight to a word, in the order of [`NIBBLES`].
    Interleaved,
}

/// Which nibble of a word belongs to each of its eight rows: word nibble i is row [0, 2, 4, 6, 1, 3, 5, 7][i].
const NIBBLES: [u64; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// A tensor stored so.
pub(super) struct Transposed<'a> {
    /// Words: [columns in words, rows] where dense, [columns, rows in words] where not.
    pub codes: Stored<'a>,
    /// Words: [groups, rows in words].
    pub zeros: Stored<'a>,
    /// [groups, rows].
    pub scales: Stored<'a>,
    /// The group of each column, where it is not that of its place.
    pub order: Option<Order<'a>>,
    /// How they are packed.
    pub packing: Packing,
    /// Of the weight: its rows and columns, one scale for `wide` columns.
    pub grid: Grid,
    /// Rows of the weight.
    pub rows: u64,
}

impl Transposed<'_> {
    /// Words of one row of zero points.
    fn zero_words(&self) -> u64 {
        match self.packing {
            Packing::Dense { bits, .. } => words(self.rows, bits),
            Packing::Interleaved => self.rows / 8,
        }
    }

    /// Puts together rows of the weight: dense integers, in bytes of whole words.
    fn gather<'o>(&self, rows: Range<u64>, buffer: &mut Vec<u8>, out: &'o mut Vec<u8>) -> Result<Rows<'o>> {
        let columns = self.grid.columns;
        match self.packing {
            Packing::Dense { bits, .. } => {
                let (count, stride) = (words(columns, bits), words(columns, bits) as usize * 4);
                out.resize((rows.end - rows.start) as usize * stride, 0);
                for word in 0..count {
                    let first = word * self.rows;
                    let held = self.codes.read(first + rows.start..first + rows.end, buffer)?;
                    let (held, at) = (held.as_chunks::<4>().0, word as usize * 4);
                    for (row, value) in out.chunks_exact_mut(stride).zip(held) {
                        row[at..at + 4].copy_from_slice(value);
                    }
                }
                Ok(Rows { bits, stride, first: rows.start, bytes: out })
            }
            Packing::Interleaved => {
                let (first, end, stride) = (rows.start / 8, rows.end.div_ceil(8), columns as usize);
                out.resize((end - first) as usize * 8 * stride, 0);
                for column in 0..columns {
                    let line = column * (self.rows / 8);
                    let held = self.codes.read(line + first..line + end, buffer)?;
                    for (eight, word) in out.chunks_exact_mut(8 * stride).zip(held.as_chunks::<4>().0) {
                        let word = u32::from_le_bytes(*word);
                        for (row, nibble) in NIBBLES.iter().enumerate() {
                            eight[row * stride + column as usize] = (word >> (4 * nibble)) as u8 & 15;
                        }
                    }
                }
                Ok(Rows { bits: 8, stride, first: first * 8, bytes: out })
            }
        }
    }
}

impl Codes for Transposed<'_> {
    type Chunk<'s>
        = TransposedChunk<'s>
    where
        Self: 's;

    fn parts(&self) -> Vec<Stored<'_>> {
        let order = self.order.iter().map(Order::stored);
        [self.codes, self.zeros, self.scales].into_iter().chain(order).collect()
    }

    fn span(&self, _elements: Range<u64>) -> Option<(Stored<'_>, Range<u64>)> {
        None
    }

    fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<TransposedChunk<'s>> {
        let ([buffer, zeros, scales, order], under) = scratch.layers();
        let rows = self.grid.row(elements.start)..self.grid.row(elements.end - 1) + 1;
        Ok(TransposedChunk {
            codes: self.gather(rows, buffer, &mut under.parts[0])?,
            zeros: self.zeros.all(zeros)?,
            scales: self.scales.all(scales)?,
            order: self.order.as_ref().map(|stored| stored.read(order)).transpose()?,
            first: elements.start,
            of: self,
        })
    }
}

/// A range of it, in memory.
pub(super) struct TransposedChunk<'s> {
    codes: Rows<'s>,
    zeros: &'s [u8],
    scales: &'s [u8],
    order: Option<Groups<'s>>,
    first: u64,
    of: &'s Transposed<'s>,
}

impl TransposedChunk<'_> {
    /// Scale and zero point of one group of one row.
    fn group(&self, level: Level, group: u64, row: u64) -> (f32, f32) {
        let (of, mut scale) = (self.of, [0f32]);
        let size = of.scales.dtype.size();
        let at = (group * of.rows + row) as usize * size;
        widen(level, of.scales.dtype, &self.scales[at..at + size], &mut scale);
        let line = (group * of.zero_words()) as usize * 4;
        let zeros = &self.zeros[line..line + of.zero_words() as usize * 4];
        let zero = match of.packing {
            Packing::Dense { bits, offset } => (u32::from(one(bits, zeros, row)) + offset) & ((1 << bits) - 1),
            Packing::Interleaved => u32::from(one(4, zeros, row / 8 * 8 + NIBBLES[(row % 8) as usize])),
        };
        (scale[0], zero as f32)
    }

    fn piece(&self, level: Level, piece: &Piece, codes: &[u8], out: &mut [f32]) -> bool {
        let (grid, n) = (&self.of.grid, piece.n);
        let (mut scales, mut zeros) = ([0f32; TILE], [0f32; TILE]);
        let Some(order) = &self.order else {
            let count = self.scales(level, piece, &mut scales, &mut zeros);
            let run = grid.run(piece);
            return from_zero_in_runs(level, codes, &zeros[..count], &scales[..count], run, out);
        };
        let groups = (0..grid.across()).map(|group| self.group(level, group, piece.row));
        let groups: Vec<(f32, f32)> = groups.collect();
        for (index, group) in order.of(piece.column..piece.column + n as u64).enumerate() {
            (scales[index], zeros[index]) = groups[group];
        }
        from_zero_by_column(level, codes, &zeros[..n], &scales[..n], out)
    }
}

impl Values for TransposedChunk<'_> {
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
        match self.of.packing {
            Packing::Dense { bits, .. } => ("gptq", Dtype::I32, bits),
            Packing::Interleaved => ("awq", Dtype::I32, 4),
        }
    }

    fn codes(&self, level: Level, at: usize, out: &mut [u8]) {
        for piece in self.of.grid.pieces(self.first + at as u64, out.len()) {
            self.codes.fields(level, piece.row, piece.column, &mut out[piece.at..piece.at + piece.n]);
        }
    }

    fn scales(&self, level: Level, piece: &Piece, scales: &mut [f32], more: &mut [f32]) -> usize {
        let wide = self.of.grid.wide;
        let groups = piece.column / wide..(piece.column + piece.n as u64 - 1) / wide + 1;
        let count = (groups.end - groups.start) as usize;
        for (index, group) in groups.enumerate() {
            (scales[index], more[index]) = self.group(level, group, piece.row);
        }
        count
    }
}
