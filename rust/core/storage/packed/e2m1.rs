//! Four-bit floats, two to a byte, each times the scale of its group of columns: MXFP4 and NVFP4 in their spellings.

use std::ops::Range;

use super::codes::{Codes, Values};
use super::format::{E2m1, Global};
use super::grid::{Grid, Piece, Room, Scales};
use super::parts::{Parts, Stored};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernels::codes::{e2m1, fields, multiply_runs};
use crate::kernels::dispatch::prefetch;
use crate::kernels::{Level, TILE};
use crate::storage::chunk::Scratch;

/// Two codes to a byte; MLX stores words of eight, and what has a type of its own has a shape of elements.
const CODES: [Dtype; 4] = [Dtype::U8, Dtype::I8, Dtype::F4, Dtype::U32];
const SCALES: [Dtype; 3] = [Dtype::U8, Dtype::F8E8M0, Dtype::F8E4M3];

/// A tensor in this format.
pub(super) struct E2m1Codes<'a> {
    codes: Stored<'a>,
    scales: Stored<'a>,
    grid: Grid,
    global: Option<(Stored<'a>, Grid, Global)>,
}

/// Its parts, checked.
///
/// # Errors
/// A part that is missing, or has another type or shape.
pub(super) fn find<'a>(format: &E2m1, parts: &Parts<'_, 'a>) -> Result<E2m1Codes<'a>> {
    let Some((columns, rows)) = parts.shape.split_last().filter(|(columns, _)| *columns % 2 == 0) else {
        return Err(parts.unfit("which two codes to a byte cannot store"));
    };
    let codes = parts.get(&format.parts.codes)?;
    let group = format.group.max(1);
    let each = match codes.stored.dtype {
        Dtype::F4 => 1,
        Dtype::U32 => 8,
        _ => 2,
    };
    let stored = [rows, &[columns / each]].concat();
    let in_groups = [rows, &[columns / group, group / each]].concat();
    let is_whole = group.is_multiple_of(each) && columns.is_multiple_of(group);
    let shapes: &[&[u64]] = if is_whole { &[&stored, &in_groups] } else { &[&stored] };
    if columns.is_multiple_of(each) {
        parts.shaped(&codes, shapes)?;
    } else {
        return Err(parts.unfit("which whole words of codes cannot store"));
    }
    let scales = parts.get(&format.parts.scales)?;
    let grid = Grid::of_scales(parts, &scales, [1, group])?;
    let global = match (&format.parts.global, format.global) {
        (Some(ending), Some(rule)) => {
            let global = parts.get(ending)?;
            let grid = Grid::of_scales(parts, &global, [0, 0])?;
            Some((parts.typed(&global, &[Dtype::F32])?, grid, rule))
        }
        (None, None) => None,
        _ => return Err(parts.contradiction("a scale of the scales, and what is done with it")),
    };
    let codes = parts.typed(&codes, &CODES)?.raw();
    let mut scales = parts.typed(&scales, &SCALES)?;
    scales.dtype = scales_as(format, scales.dtype);
    Ok(E2m1Codes { codes, scales, grid, global })
}

/// What the scales are: those of groups of 16 are eight-bit floats, by whatever name.
pub(crate) fn scales_as(format: &E2m1, stored: Dtype) -> Dtype {
    if format.group == 16 && stored == Dtype::U8 {
        Dtype::F8E4M3
    } else {
        stored
    }
}

impl Codes for E2m1Codes<'_> {
    type Chunk<'s>
        = E2m1Chunk<'s>
    where
        Self: 's;

    fn parts(&self) -> Vec<Stored<'_>> {
        let global = self.global.iter().map(|(stored, _, _)| *stored);
        [self.codes, self.scales].into_iter().chain(global).collect()
    }

    fn span(&self, elements: Range<u64>) -> Option<(Stored<'_>, Range<u64>)> {
        Some((self.codes, elements.start / 2..elements.end.div_ceil(2)))
    }

    fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<E2m1Chunk<'s>> {
        let [codes, scales, global, ..] = &mut scratch.parts;
        let global = match &self.global {
            Some((stored, grid, rule)) => Some((Scales::read(stored, grid.scales(&elements), global)?, *grid, *rule)),
            None => None,
        };
        Ok(E2m1Chunk {
            codes: self.codes.read(elements.start / 2..elements.end.div_ceil(2), codes)?,
            scales: Scales::read(&self.scales, self.grid.scales(&elements), scales)?,
            first: elements.start,
            grid: self.grid,
            global,
        })
    }
}

/// A range of it, in memory.
pub(super) struct E2m1Chunk<'s> {
    /// From the byte on that holds the first element.
    codes: &'s [u8],
    scales: Scales<'s>,
    first: u64,
    grid: Grid,
    global: Option<(Scales<'s>, Grid, Global)>,
}

impl E2m1Chunk<'_> {
    /// The scales of a piece's groups, with the scale of the scales.
    fn whole<'o>(&self, level: Level, piece: &Piece, out: &'o mut [f32]) -> &'o mut [f32] {
        let scales = self.scales.widen(level, self.grid.of(piece), out);
        if let Some((global, grid, rule)) = &self.global {
            let element = piece.row * self.grid.columns;
            let (mut one, range) = ([0f32], grid.scales(&(element..element + 1)));
            global.widen(level, range.start..range.start + 1, &mut one);
            match rule {
                Global::Multiply => scales.iter_mut().for_each(|scale| *scale *= one[0]),
                Global::Divide => scales.iter_mut().for_each(|scale| *scale /= one[0]),
            }
        }
        scales
    }
}

impl Values for E2m1Chunk<'_> {
    fn tile(&self, level: Level, at: usize, out: &mut [f32]) -> bool {
        let (n, mut codes, mut room) = (out.len(), [0u8; TILE], Room::new(self.grid.wide));
        let held = |element: usize| element.div_ceil(2).min(self.codes.len());
        prefetch(&self.codes[held(at + n)..held(at + n + n)]);
        self.codes(level, at, &mut codes[..n]);
        e2m1(level, &codes[..n], out);
        let mut finite = true;
        for piece in self.grid.pieces(self.first + at as u64, n) {
            let scales = self.whole(level, &piece, room.slots());
            finite &= multiply_runs(level, scales, self.grid.run(&piece), &mut out[piece.at..piece.at + piece.n]);
        }
        finite
    }

    fn grid(&self) -> Option<(u64, Grid)> {
        Some((self.first, self.grid))
    }

    fn coding(&self) -> (&'static str, Dtype, u32) {
        ("e2m1", Dtype::U8, 4)
    }

    fn codes(&self, level: Level, at: usize, out: &mut [u8]) {
        fields(level, 4, self.codes, (self.first % 2) as usize + at, out);
    }

    fn is_under_global(&self) -> bool {
        self.global.is_some()
    }

    fn scales(&self, level: Level, piece: &Piece, scales: &mut [f32], more: &mut [f32]) -> usize {
        if self.global.is_some() {
            self.scales.widen(level, self.grid.of(piece), more);
        }
        self.whole(level, piece, scales).len()
    }
}
