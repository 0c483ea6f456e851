//! Codes that are numbers by themselves, each times the scale of its block: block FP8, FP8 and INT8 by channel or by
//! tensor, MXFP8.

use std::ops::Range;

use super::codes::{Codes, Values};
use super::format::Scaled;
use super::grid::{Grid, Piece, Room, Scales};
use super::parts::{Parts, Stored};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernels::codes::{multiply_all, scaled_runs};
use crate::kernels::dispatch::prefetch;
use crate::kernels::Level;
use crate::storage::chunk::Scratch;

const CODES: [Dtype; 4] = [Dtype::F8E4M3, Dtype::F8E5M2, Dtype::I8, Dtype::U32];
const SCALES: [Dtype; 5] = [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F8E8M0, Dtype::U8];

/// A tensor in this format.
pub(crate) struct ScaledCodes<'a> {
    codes: Stored<'a>,
    scales: Stored<'a>,
    grid: Grid,
    factor: Option<f32>,
}

/// Its parts, checked.
///
/// # Errors
/// A part that is missing, or has another type or shape.
pub(crate) fn find<'a>(format: &Scaled, parts: &Parts<'_, 'a>) -> Result<ScaledCodes<'a>> {
    let (codes, scales) = (parts.get(&format.parts.codes)?, parts.get(&format.parts.scales)?);
    // MLX stores words of four.
    let is_words = codes.stored.dtype == Dtype::U32;
    match parts.shape.split_last() {
        Some((columns, rows)) if is_words && columns % 4 == 0 => {
            parts.shaped(&codes, &[&[rows, &[columns / 4]].concat()])?;
        }
        _ => parts.shaped(&codes, &[parts.shape])?,
    }
    let grid = Grid::of_scales(parts, &scales, format.block)?;
    let (mut codes, scales) = (parts.typed(&codes, &CODES)?, parts.typed(&scales, &SCALES)?);
    if is_words {
        codes = codes.raw();
        codes.dtype = Dtype::F8E4M3;
    }
    Ok(ScaledCodes { codes, scales, grid, factor: format.factor })
}

impl Codes for ScaledCodes<'_> {
    type Chunk<'s>
        = ScaledChunk<'s>
    where
        Self: 's;

    fn parts(&self) -> Vec<Stored<'_>> {
        vec![self.codes, self.scales]
    }

    fn span(&self, elements: Range<u64>) -> Option<(Stored<'_>, Range<u64>)> {
        Some((self.codes, elements))
    }

    fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<ScaledChunk<'s>> {
        let [codes, scales, ..] = &mut scratch.parts;
        Ok(ScaledChunk {
            dtype: self.codes.dtype,
            scales: Scales::read(&self.scales, self.grid.scales(&elements), scales)?,
            first: elements.start,
            codes: self.codes.read(elements, codes)?,
            grid: self.grid,
            factor: self.factor,
        })
    }
}

/// A range of it, in memory.
pub(crate) struct ScaledChunk<'s> {
    dtype: Dtype,
    codes: &'s [u8],
    scales: Scales<'s>,
    first: u64,
    grid: Grid,
    factor: Option<f32>,
}

impl Values for ScaledChunk<'_> {
    fn tile(&self, level: Level, at: usize, out: &mut [f32]) -> bool {
        let n = out.len();
        prefetch(&self.codes[at + n..(at + n + n).min(self.codes.len())]);
        let mut room = Room::new(self.grid.wide);
        let mut finite = true;
        for piece in self.grid.pieces(self.first + at as u64, n) {
            let scales = self.scales.widen(level, self.grid.of(&piece), room.slots());
            let codes = &self.codes[at + piece.at..at + piece.at + piece.n];
            let out = &mut out[piece.at..piece.at + piece.n];
            finite &= scaled_runs(level, self.dtype, codes, scales, self.grid.run(&piece), out);
        }
        match self.factor {
            Some(factor) => multiply_all(level, factor, out),
            None => finite,
        }
    }

    fn grid(&self) -> Option<(u64, Grid)> {
        Some((self.first, self.grid))
    }

    fn coding(&self) -> (&'static str, Dtype, u32) {
        ("scaled", self.dtype, 8)
    }

    fn codes(&self, _level: Level, at: usize, out: &mut [u8]) {
        out.copy_from_slice(&self.codes[at..at + out.len()]);
    }

    fn scales(&self, level: Level, piece: &Piece, scales: &mut [f32], _more: &mut [f32]) -> usize {
        self.scales.widen(level, self.grid.of(piece), scales).len()
    }
}
