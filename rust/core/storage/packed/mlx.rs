//! Integers as MLX packs them: each group of columns with a scale and a bias.

use std::ops::Range;

use super::codes::{Codes, Values};
use super::format::Mlx;
use super::grid::{Grid, Piece, Scales};
use super::integers::{words, Rows, SCALES};
use super::parts::{Parts, Stored};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernels::codes::onto_bias_in_runs;
use crate::kernels::{Level, TILE};
use crate::storage::chunk::Scratch;

/// A tensor in this format.
pub(super) struct MlxCodes<'a> {
    codes: Stored<'a>,
    scales: Stored<'a>,
    biases: Stored<'a>,
    grid: Grid,
    bits: u32,
}

/// Its parts, checked.
///
/// # Errors
/// A part that is missing, or has another type or shape.
pub(super) fn find<'a>(format: &Mlx, parts: &Parts<'_, 'a>) -> Result<MlxCodes<'a>> {
    let bits = parts.bits(format.bits)?;
    let Some((columns, rows)) = parts.shape.split_last() else {
        return Err(parts.unfit("which has no columns"));
    };
    let codes = [rows, &[words(*columns, bits)]].concat();
    let codes = parts.exact(&format.parts.codes, &[Dtype::U32], &codes)?;
    let (scales, biases) = (parts.get(&format.parts.scales)?, parts.get(&format.parts.biases)?);
    let grid = Grid::of_scales(parts, &scales, [1, format.group])?;
    Grid::of_scales(parts, &biases, [1, format.group])?;
    Ok(MlxCodes { codes, scales: parts.typed(&scales, &SCALES)?, biases: parts.typed(&biases, &SCALES)?, grid, bits })
}

impl MlxCodes<'_> {
    fn words(&self) -> u64 {
        words(self.grid.columns, self.bits)
    }

    fn rows(&self, elements: &Range<u64>) -> Range<u64> {
        self.grid.row(elements.start)..self.grid.row(elements.end - 1) + 1
    }
}

impl Codes for MlxCodes<'_> {
    type Chunk<'s>
        = MlxChunk<'s>
    where
        Self: 's;

    fn parts(&self) -> Vec<Stored<'_>> {
        vec![self.codes, self.scales, self.biases]
    }

    fn span(&self, elements: Range<u64>) -> Option<(Stored<'_>, Range<u64>)> {
        let Range { start, end } = self.rows(&elements);
        Some((self.codes, start * self.words()..end * self.words()))
    }

    fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<MlxChunk<'s>> {
        let [codes, scales, biases, ..] = &mut scratch.parts;
        let (rows, words) = (self.rows(&elements), self.words());
        let bytes = self.codes.read(rows.start * words..rows.end * words, codes)?;
        Ok(MlxChunk {
            codes: Rows { bits: self.bits, stride: words as usize * 4, first: rows.start, bytes },
            scales: Scales::read(&self.scales, self.grid.scales(&elements), scales)?,
            biases: Scales::read(&self.biases, self.grid.scales(&elements), biases)?,
            first: elements.start,
            grid: self.grid,
        })
    }
}

/// A range of it, in memory.
pub(super) struct MlxChunk<'s> {
    codes: Rows<'s>,
    scales: Scales<'s>,
    biases: Scales<'s>,
    first: u64,
    grid: Grid,
}

impl Values for MlxChunk<'_> {
    fn tile(&self, level: Level, at: usize, out: &mut [f32]) -> bool {
        let (mut codes, mut scales, mut biases) = ([0u8; TILE], [0f32; TILE], [0f32; TILE]);
        let mut finite = true;
        for piece in self.grid.pieces(self.first + at as u64, out.len()) {
            let codes = &mut codes[..piece.n];
            self.codes.fields(level, piece.row, piece.column, codes);
            let count = self.scales(level, &piece, &mut scales, &mut biases);
            let (scales, biases) = (&scales[..count], &biases[..count]);
            let run = self.grid.run(&piece);
            finite &= onto_bias_in_runs(level, codes, biases, scales, run, &mut out[piece.at..piece.at + piece.n]);
        }
        finite
    }

    fn grid(&self) -> Option<(u64, Grid)> {
        Some((self.first, self.grid))
    }

    fn coding(&self) -> (&'static str, Dtype, u32) {
        ("mlx", Dtype::U32, self.codes.bits)
    }

    fn codes(&self, level: Level, at: usize, out: &mut [u8]) {
        for piece in self.grid.pieces(self.first + at as u64, out.len()) {
            self.codes.fields(level, piece.row, piece.column, &mut out[piece.at..piece.at + piece.n]);
        }
    }

    fn scales(&self, level: Level, piece: &Piece, scales: &mut [f32], more: &mut [f32]) -> usize {
        self.biases.widen(level, self.grid.of(piece), more);
        self.scales.widen(level, self.grid.of(piece), scales).len()
    }
}
