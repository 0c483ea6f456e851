//! The four-bit types of bitsandbytes: codes into a table, times the largest magnitude of their block. Blocks run over
//! the flat tensor; magnitudes may be codes themselves.

use std::ops::Range;

use super::codes::{Codes, Values};
use super::format::Bnb4;
use super::grid::{Grid, Piece, Scales};
use super::parts::{Parts, Stored};
use crate::dtype::{elements, Dtype};
use crate::error::Result;
use crate::kernels::codes::{looked_up, multiply_runs, nibbles};
use crate::kernels::{Level, TILE};
use crate::storage::chunk::Scratch;

/// A tensor in this format.
pub(super) struct Bnb4Codes<'a> {
    codes: Stored<'a>,
    absmax: Stored<'a>,
    table: Stored<'a>,
    grid: Grid,
    nested: Option<Nested<'a>>,
}

/// How magnitudes are stored where they are codes.
struct Nested<'a> {
    absmax: Stored<'a>,
    table: Stored<'a>,
    block: u64,
    offset: f32,
}

/// Its parts, checked.
///
/// # Errors
/// A part that is missing, or has another type or shape.
pub(super) fn find<'a>(format: &Bnb4, parts: &Parts<'_, 'a>) -> Result<Bnb4Codes<'a>> {
    let names = &format.parts;
    let count = elements(parts.shape).unwrap_or(u64::MAX);
    let block = format.block.max(1);
    let blocks = count.div_ceil(block);
    let codes = parts.get(&names.codes)?;
    // Whatever type they are kept as.
    parts.sized(&codes, count.div_ceil(2))?;
    let absmax = |types| parts.exact(&names.absmax, types, &[blocks]);
    let floats = [Dtype::F32];
    let nested = (&names.nested_absmax, &names.nested_table, format.nested_block, format.nested_offset);
    let (absmax, nested) = match nested {
        (None, None, None, None) => (absmax(&floats)?, None),
        (Some(nested), Some(table), Some(block), Some(offset)) if block > 0 => {
            let nested = parts.exact(nested, &floats, &[blocks.div_ceil(block)])?;
            let table = parts.exact(table, &floats, &[256])?;
            (absmax(&[Dtype::U8])?, Some(Nested { absmax: nested, table, block, offset }))
        }
        _ => return Err(parts.contradiction("a part of what nested magnitudes need")),
    };
    let table = parts.exact(&names.table, &floats, &[16])?;
    let grid = Grid::new(&[count], [1, block]);
    Ok(Bnb4Codes { codes: codes.stored.raw(), absmax, table, grid, nested })
}

impl Codes for Bnb4Codes<'_> {
    type Chunk<'s>
        = Bnb4Chunk<'s>
    where
        Self: 's;

    fn parts(&self) -> Vec<Stored<'_>> {
        let nested = self.nested.iter().flat_map(|nested| [nested.absmax, nested.table]);
        [self.codes, self.absmax, self.table].into_iter().chain(nested).collect()
    }

    fn span(&self, elements: Range<u64>) -> Option<(Stored<'_>, Range<u64>)> {
        Some((self.codes, elements.start / 2..elements.end.div_ceil(2)))
    }

    fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<Bnb4Chunk<'s>> {
        let ([codes, magnitudes, table, nested_table], under) = scratch.layers();
        let blocks = self.grid.scales(&elements);
        let magnitudes = match &self.nested {
            None => Magnitudes::Plain(Scales::read(&self.absmax, blocks, magnitudes)?),
            Some(nested) => Magnitudes::Nested {
                first: blocks.start,
                codes: self.absmax.read(blocks, magnitudes)?,
                absmax: nested.absmax.all(&mut under.parts[0])?,
                table: nested.table.all(nested_table)?,
                block: nested.block,
                offset: nested.offset,
            },
        };
        let mut values = [0f32; 16];
        values.iter_mut().zip(self.table.all(table)?.as_chunks::<4>().0).for_each(|(x, b)| *x = f32::from_le_bytes(*b));
        Ok(Bnb4Chunk {
            codes: self.codes.read(elements.start / 2..elements.end.div_ceil(2), codes)?,
            magnitudes,
            table: values,
            first: elements.start,
            grid: self.grid,
        })
    }
}

/// A range of it, in memory.
pub(super) struct Bnb4Chunk<'s> {
    /// From the byte on that holds the first element.
    codes: &'s [u8],
    magnitudes: Magnitudes<'s>,
    table: [f32; 16],
    first: u64,
    grid: Grid,
}

/// The largest magnitudes of blocks.
enum Magnitudes<'s> {
    Plain(Scales<'s>),
    Nested {
        /// Of the blocks from `first` on.
        codes: &'s [u8],
        first: u64,
        absmax: &'s [u8],
        table: &'s [u8],
        block: u64,
        offset: f32,
    },
}

impl Magnitudes<'_> {
    fn of<'o>(&self, level: Level, blocks: Range<u64>, out: &'o mut [f32]) -> &'o mut [f32] {
        match self {
            Magnitudes::Plain(scales) => scales.widen(level, blocks, out),
            Magnitudes::Nested { codes, first, absmax, table, block, offset } => {
                let float = |bytes: &[u8], at: usize| f32::from_le_bytes(bytes.as_chunks::<4>().0[at]);
                let out = &mut out[..(blocks.end - blocks.start) as usize];
                for (slot, index) in out.iter_mut().zip(blocks) {
                    let code = usize::from(codes[(index - first) as usize]);
                    *slot = float(table, code) * float(absmax, (index / block) as usize) + offset;
                }
                out
            }
        }
    }
}

impl Values for Bnb4Chunk<'_> {
    fn tile(&self, level: Level, at: usize, out: &mut [f32]) -> bool {
        let (n, mut codes, mut magnitudes) = (out.len(), [0u8; TILE], [0f32; TILE]);
        self.codes(level, at, &mut codes[..n]);
        looked_up(level, &codes[..n], &self.table, out);
        let mut finite = true;
        for piece in self.grid.pieces(self.first + at as u64, n) {
            let magnitudes = self.magnitudes.of(level, self.grid.of(&piece), &mut magnitudes);
            let out = &mut out[piece.at..piece.at + piece.n];
            finite &= multiply_runs(level, magnitudes, self.grid.run(&piece), out);
        }
        finite
    }

    fn grid(&self) -> Option<(u64, Grid)> {
        Some((self.first, self.grid))
    }

    fn coding(&self) -> (&'static str, Dtype, u32) {
        ("bnb4", Dtype::U8, 4)
    }

    fn codes(&self, level: Level, at: usize, out: &mut [u8]) {
        nibbles(level, self.codes, (self.first % 2) as usize + at, true, out);
    }

    fn scales(&self, level: Level, piece: &Piece, scales: &mut [f32], _more: &mut [f32]) -> usize {
        self.magnitudes.of(level, self.grid.of(piece), scales).len()
    }
}
