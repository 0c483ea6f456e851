//! Where the elements of one piece of an assembled tensor come from: a box of at most four dimensions, with a stride for
//! each in the assembled tensor and in the stored one.

use std::ops::Range;

use crate::error::{shown, Error, Kind, Result};
use crate::storage::source::PieceRow;

/// One dimension: its length, and the elements between two neighbours there and here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dim {
    pub n: u64,
    pub to: u64,
    pub from: u64,
}

/// A box of elements; of its dimensions those that are far apart in the assembled tensor come first.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// Which of the stored tensors; none where the elements are zero.
    pub source: Option<usize>,
    pub dims: Vec<Dim>,
    /// The first element in the assembled tensor.
    pub to: u64,
    /// The first element in the stored one.
    pub from: u64,
}

/// A part of a piece with two dimensions: where it begins there and here, and both dimensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plane {
    pub to: u64,
    pub from: u64,
    pub dims: [Dim; 2],
}

/// A dimension of one element.
const ONE: Dim = Dim { n: 1, to: 0, from: 0 };

impl Piece {
    /// A piece of a plan, held against the sizes of both tensors.
    ///
    /// # Errors
    /// `Kind::Plan` where it goes beyond one of them, or over itself.
    pub(super) fn new(row: &PieceRow, source: Option<usize>, elements: u64, stored: u64) -> Result<Piece> {
        let PieceRow(name, sizes, to, to_strides, from, from_strides) = row;
        let bad = |what: &str| {
            let name = shown(name);
            Error::new(Kind::Plan, format!("unusable plan: a piece of `{name}` {what}"))
        };
        if sizes.len() > 4 || sizes.len() != to_strides.len() || sizes.len() != from_strides.len() {
            return Err(bad("does not have up to four dimensions with two strides each"));
        }
        if sizes.contains(&0) {
            return Err(bad("is empty"));
        }
        let rows = sizes.iter().zip(to_strides).zip(from_strides);
        let mut dims: Vec<Dim> = rows.map(|((n, to), from)| Dim { n: *n, to: *to, from: *from }).collect();
        dims.retain(|dim| dim.n > 1);
        dims.sort_by_key(|dim| std::cmp::Reverse(dim.to));
        let last = |start: u64, stride: fn(&Dim) -> u64| {
            let steps = dims.iter().map(|dim| u128::from(dim.n - 1) * u128::from(stride(dim)));
            steps.fold(u128::from(start), u128::saturating_add)
        };
        if last(*to, |dim| dim.to) >= u128::from(elements) || last(*from, |dim| dim.from) >= u128::from(stored) {
            return Err(bad("goes beyond its tensor"));
        }
        let over = |at: usize| dims[at].to < extent(&dims[at + 1..]);
        if (0..dims.len()).any(over) {
            return Err(bad("goes over itself"));
        }
        Ok(Piece { source, dims: joined(dims), to: *to, from: *from })
    }

    /// Its elements.
    pub(super) fn elements(&self) -> u64 {
        self.dims.iter().map(|dim| dim.n).product()
    }

    /// The stored tensor in which `range` of the assembled one lies, and where, if all of it does, in order.
    pub(super) fn run(&self, range: &Range<u64>) -> Option<(usize, Range<u64>)> {
        let source = self.source?;
        let n = match self.dims.as_slice() {
            [] => 1,
            [Dim { n, to: 1, from: 1 }] => *n,
            _ => return None,
        };
        (self.to <= range.start && range.end <= self.to + n)
            .then(|| (source, range.start - self.to + self.from..range.end - self.to + self.from))
    }

    /// The planes of which the part of this piece within `range` of the assembled tensor consists.
    pub(super) fn planes(&self, range: &Range<u64>, each: &mut impl FnMut(Plane) -> Result<()>) -> Result<()> {
        planes(&self.dims, self.to, self.from, range, each)
    }
}

fn planes(
    dims: &[Dim],
    to: u64,
    from: u64,
    range: &Range<u64>,
    each: &mut impl FnMut(Plane) -> Result<()>,
) -> Result<()> {
    let (outer, inner) = match dims {
        [] => (ONE, ONE),
        [inner] => (ONE, *inner),
        [outer, inner] => (*outer, *inner),
        [outer, rest @ ..] => {
            return within(*outer, to, extent(rest), range)
                .try_for_each(|i| planes(rest, to + i * outer.to, from + i * outer.from, range, each));
        }
    };
    let width = extent(&[inner]);
    let rows = within(outer, to, width, range);
    // All but the first and the last row lie within the range as a whole.
    let whole = |row: u64| to + row * outer.to >= range.start && to + row * outer.to + width <= range.end;
    let first = if rows.is_empty() || whole(rows.start) { rows.start } else { rows.start + 1 };
    let last = if rows.end <= first || whole(rows.end - 1) { rows.end } else { rows.end - 1 };
    let mut part = |rows: Range<u64>, columns: Range<u64>| {
        if rows.is_empty() || columns.is_empty() {
            return Ok(());
        }
        each(Plane {
            to: to + rows.start * outer.to + columns.start * inner.to,
            from: from + rows.start * outer.from + columns.start * inner.from,
            dims: [Dim { n: rows.end - rows.start, ..outer }, Dim { n: columns.end - columns.start, ..inner }],
        })
    };
    for row in [rows.start..first, last..rows.end] {
        if let Some(at) = row.clone().next() {
            part(row, within(inner, to + at * outer.to, 1, range))?;
        }
    }
    part(first..last, 0..inner.n)
}

/// Elements from the first to the last of these dimensions in the assembled tensor, both included.
fn extent(dims: &[Dim]) -> u64 {
    1 + dims.iter().map(|dim| (dim.n - 1) * dim.to).sum::<u64>()
}

/// Which steps of a dimension, each with `width` elements from its place on, have any of them in `range`.
fn within(dim: Dim, to: u64, width: u64, range: &Range<u64>) -> Range<u64> {
    if range.is_empty() || to >= range.end {
        return 0..0;
    }
    let step = dim.to.max(1);
    let first = (range.start + 1).saturating_sub(to + width).div_ceil(step);
    let last = (range.end - 1 - to) / step;
    let end = (last + 1).min(dim.n);
    first.min(end)..end
}

/// The same dimensions with neighbours made one where they follow each other without a gap in both tensors.
fn joined(dims: Vec<Dim>) -> Vec<Dim> {
    let mut joined: Vec<Dim> = Vec::with_capacity(dims.len());
    for dim in dims {
        match joined.last_mut() {
            Some(outer) if outer.to == dim.to * dim.n && outer.from == dim.from * dim.n => {
                *outer = Dim { n: outer.n * dim.n, ..dim };
            }
            _ => joined.push(dim),
        }
    }
    joined
}
