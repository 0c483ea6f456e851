//! Which scale belongs to which element: one for each block of rows and columns of a matrix.

use std::ops::Range;

use super::parts::{Found, Parts, Stored};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernels::widen::widen;
use crate::kernels::{Level, TILE};

/// The blocks of the last two axes of a tensor; the matrices before those have blocks of their own. The last block of a
/// row or column may be short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Of one matrix.
    rows: u64,
    /// Of one matrix.
    pub columns: u64,
    /// Rows of a block.
    tall: u64,
    /// Columns of a block.
    pub wide: u64,
    /// Blocks of a matrix, down.
    down: u64,
    /// Blocks of a matrix, across.
    across: u64,
}

/// Elements of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The row, counted through all matrices.
    pub row: u64,
    /// The column of the first one.
    pub column: u64,
    /// Where it stands in the tile.
    pub at: usize,
    /// How many.
    pub n: usize,
}

impl Grid {
    /// Blocks of `[rows, columns]`, of which 0 stands for all of the axis.
    pub(crate) fn new(shape: &[u64], block: [u64; 2]) -> Grid {
        let side = |from_last: usize| shape.len().checked_sub(from_last).map_or(1, |axis| shape[axis]);
        let (rows, columns) = (side(2), side(1));
        let whole = |block: u64, side: u64| if block == 0 { side.max(1) } else { block };
        let (tall, wide) = (whole(block[0], rows), whole(block[1], columns));
        let (down, across) = (rows.div_ceil(tall), columns.div_ceil(wide));
        Grid { rows: rows.max(1), columns: columns.max(1), tall, wide, down, across }
    }

    /// The same, where these are the scales.
    ///
    /// # Errors
    /// `Kind::Format` where they are not of this grid, naming both.
    pub(crate) fn of_scales<'a>(parts: &Parts<'_, 'a>, scales: &Found<'a>, block: [u64; 2]) -> Result<Grid> {
        let shape = parts.shape;
        // One for everything may have any number of axes.
        if block == [0, 0] && scales.shape.iter().all(|side| *side == 1) {
            return Ok(Grid::new(&[shape.iter().product()], block));
        }
        let grid = Grid::new(shape, block);
        let [whole, short, squeezed, apart] = grid.shapes(shape);
        parts.shaped(scales, &[&whole, &short, &squeezed, &apart])?;
        Ok(grid)
    }

    /// The shapes that the scales of a tensor of `shape` may have: the grid itself, the same without axes of one, and
    /// with an axis of one after each of the last two, for those within a block.
    fn shapes(&self, shape: &[u64]) -> [Vec<u64>; 4] {
        let axes = shape.len().saturating_sub(2);
        let mut whole = shape[..axes].to_vec();
        whole.extend([self.down, self.across]);
        let ends = whole.iter().rposition(|side| *side != 1).map_or(0, |last| last + 1);
        let short = whole[..ends].to_vec();
        let squeezed = whole.iter().copied().filter(|side| *side != 1).collect();
        let mut apart = shape[..axes].to_vec();
        apart.extend([self.down, 1, self.across, 1]);
        [whole, short, squeezed, apart]
    }

    /// The row of an element.
    pub(crate) fn row(&self, element: u64) -> u64 {
        element / self.columns
    }

    /// Where the scales of a row begin among all scales.
    fn first(&self, row: u64) -> u64 {
        (row / self.rows * self.down + row % self.rows / self.tall) * self.across
    }

    /// The scales of these elements, and perhaps some more.
    pub(crate) fn scales(&self, elements: &Range<u64>) -> Range<u64> {
        self.first(self.row(elements.start))..self.first(self.row(elements.end - 1)) + self.across
    }

    /// The rows of `n` elements from `first` on, each as far as it goes.
    pub(crate) fn pieces(&self, first: u64, n: usize) -> impl Iterator<Item = Piece> {
        let (columns, mut at) = (self.columns, 0);
        std::iter::from_fn(move || {
            let element = first + at as u64;
            let (row, column) = (element / columns, element % columns);
            let piece = Piece { row, column, at, n: ((columns - column).min((n - at) as u64)) as usize };
            at += piece.n;
            (piece.n > 0).then_some(piece)
        })
    }

    /// The scales of a piece among all scales.
    pub(crate) fn of(&self, piece: &Piece) -> Range<u64> {
        let (first, wide) = (self.first(piece.row), self.wide);
        first + piece.column / wide..first + (piece.column + piece.n as u64 - 1) / wide + 1
    }

    /// Whether the blocks of a row begin there.
    pub(crate) fn begins(&self, row: u64) -> bool {
        (row % self.rows).is_multiple_of(self.tall)
    }

    /// Rows and columns of a matrix and of a block.
    pub(crate) fn sides(&self) -> [u64; 4] {
        [self.rows, self.columns, self.tall, self.wide]
    }

    /// Blocks of one row.
    pub(crate) fn across(&self) -> u64 {
        self.across
    }

    /// How many elements of a piece's first block come before it, and the elements of a block.
    pub(crate) fn run(&self, piece: &Piece) -> (usize, usize) {
        ((piece.column % self.wide) as usize, self.wide as usize)
    }
}

/// Room for the scales of a piece, of a tile at most: for a few without clearing all of it for every tile.
pub(crate) struct Room {
    few: [f32; FEW],
    all: Option<Box<[f32; TILE]>>,
}

/// Blocks of 32 columns, or of more, of which a tile has parts.
const FEW: usize = TILE / 32 + 2;

impl Room {
    /// For scales of `wide` columns each.
    pub(crate) fn new(wide: u64) -> Room {
        Room { few: [0.0; FEW], all: (wide < 32).then(|| Box::new([0.0; TILE])) }
    }

    /// All of it.
    pub(crate) fn slots(&mut self) -> &mut [f32] {
        match &mut self.all {
            Some(all) => &mut all[..],
            None => &mut self.few,
        }
    }
}

/// Scales of some elements, in memory.
pub(crate) struct Scales<'s> {
    dtype: Dtype,
    bytes: &'s [u8],
    first: u64,
}

impl<'s> Scales<'s> {
    /// Brings those of `range` into memory.
    ///
    /// # Errors
    /// Where the file was truncated or cannot be read.
    pub(crate) fn read<'a: 's>(stored: &Stored<'a>, range: Range<u64>, buffer: &'s mut Vec<u8>) -> Result<Self> {
        // A byte by itself is an exponent.
        let dtype = if stored.dtype == Dtype::U8 { Dtype::F8E8M0 } else { stored.dtype };
        Ok(Scales { dtype, first: range.start, bytes: stored.read(range, buffer)? })
    }

    /// Those of `range`, as far as `out` goes.
    pub(crate) fn widen<'o>(&self, level: Level, range: Range<u64>, out: &'o mut [f32]) -> &'o mut [f32] {
        let out = &mut out[..(range.end - range.start) as usize];
        let size = self.dtype.size();
        let at = (range.start - self.first) as usize * size;
        widen(level, self.dtype, &self.bytes[at..at + out.len() * size], out);
        out
    }
}
