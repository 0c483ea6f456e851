//! Which elements of a tensor make one vector, and the inner products of each such group.

use std::ops::Range;

use crate::error::Result;
use crate::kernels::stats::add_pairs;
use crate::kernels::{Real, TILE};
use crate::methods::difference::{deltas, read_deltas, views, Pair};
use crate::tensor::{Tensor, Tile};
use crate::threads::Threads;

/// What is one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Along {
    /// The tensor.
    Whole,
    /// Each range along the last dimension.
    Rows,
    /// Each column of the rows.
    Columns,
}

/// Rows of at most so many elements are looked at with each tile, which reads little more than itself for that: what was
/// found of all of them is not kept.
const SHORT_ROW: u64 = TILE as u64;

/// Columns of at most so many elements are looked at with each tile, which reads all of them for that: to keep what was
/// found of all of them would take more than the tensor itself.
const SHORT_COLUMN: u64 = 16;

/// The groups of one tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Groups {
    pub along: Along,
    /// Groups.
    pub count: u64,
    /// Elements of each.
    pub length: u64,
}

/// Inner products of `n` vectors, each with itself included.
pub(super) fn pairs_of(n: usize) -> usize {
    n * (n + 1) / 2
}

impl Groups {
    /// The groups of a tensor of this shape; of fewer than two dimensions it is one.
    pub(super) fn of(shape: &[u64], along: Along) -> Self {
        let elements: u64 = shape.iter().product();
        match (along, shape) {
            (Along::Rows, [.., last]) if shape.len() >= 2 => {
                Groups { along, count: elements.checked_div(*last).unwrap_or(0), length: *last }
            }
            (Along::Columns, [.., last]) if shape.len() >= 2 => {
                Groups { along, count: *last, length: elements.checked_div(*last).unwrap_or(0) }
            }
            _ => Groups { along: Along::Whole, count: 1, length: elements },
        }
    }

    /// Whether tiles find the coefficients of their groups themselves.
    pub(super) fn are_short(&self) -> bool {
        match self.along {
            Along::Whole => false,
            Along::Rows => self.length <= SHORT_ROW,
            Along::Columns => self.length <= SHORT_COLUMN,
        }
    }

    /// The group of an element.
    pub(super) fn index(&self, element: u64) -> u64 {
        match self.along {
            Along::Whole => 0,
            Along::Rows => element / self.length,
            Along::Columns => element % self.count,
        }
    }

    /// Ranges of a tile of `n` elements from `first` on, in each of which groups follow each other.
    pub(super) fn runs(&self, first: u64, n: usize) -> Vec<Range<usize>> {
        let (mut runs, mut at) = (Vec::new(), 0);
        while at < n {
            let left = match self.along {
                Along::Columns => self.count - (first + at as u64) % self.count,
                _ => u64::MAX,
            };
            let end = (at as u64).saturating_add(left).min(n as u64) as usize;
            runs.push(at..end);
            at = end;
        }
        runs
    }

    /// The first group of a run of the tile that begins with element `first`, and the inner products of all of its groups.
    ///
    /// # Errors
    /// Unreadable input.
    pub(super) fn sums<R: Real>(
        &self,
        tensor: &Tensor<'_>,
        first: u64,
        run: &Range<usize>,
        pairs: &[Pair],
    ) -> Result<(u64, Vec<f64>)> {
        let (from, last) = (self.index(first + run.start as u64), self.index(first + run.end as u64 - 1));
        let groups = from..last + 1;
        let mut sums = vec![0.0; pairs_of(pairs.len()) * (last + 1 - from) as usize];
        if self.along == Along::Rows {
            let all = read::<R>(tensor, groups.start * self.length..groups.end * self.length, pairs)?;
            let length = self.length as usize;
            for (row, sums) in sums.chunks_mut(pairs_of(pairs.len())).enumerate() {
                let row: Vec<&[R]> = all.iter().map(|delta| &delta[row * length..(row + 1) * length]).collect();
                add_pairs(tensor.level, &row, sums);
            }
        } else {
            for row in 0..self.length {
                let at = row * self.count;
                add_each(&read::<R>(tensor, at + groups.start..at + groups.end, pairs)?, &mut sums);
            }
        }
        Ok((from, sums))
    }
}

fn read<R: Real>(tensor: &Tensor<'_>, range: Range<u64>, pairs: &[Pair]) -> Result<Vec<Vec<R>>> {
    pairs.iter().map(|pair| read_deltas(tensor, range.clone(), *pair)).collect()
}

/// Adds the products of one element of each group, group after group.
fn add_each<R: Real>(deltas: &[Vec<R>], sums: &mut [f64]) {
    let n = deltas.len();
    for (e, sums) in sums.chunks_mut(pairs_of(n)).enumerate() {
        let pairs = (0..n).flat_map(|i| (i..n).map(move |j| (i, j)));
        for (sum, (i, j)) in sums.iter_mut().zip(pairs) {
            *sum += deltas[i][e].to_f64() * deltas[j][e].to_f64();
        }
    }
}

/// The inner products of whole tensors.
///
/// # Errors
/// Unreadable input, or the run was cancelled.
pub(super) fn whole<R: Real>(tensor: &Tensor<'_>, threads: Threads<'_>, pairs: &[Pair]) -> Result<Vec<f64>> {
    let size = pairs_of(pairs.len());
    let chunks = tensor.fold::<R, Vec<f64>, _, _>(
        threads,
        |_| vec![0.0; size],
        |sums, tile| add_pairs(tile.level, &views(tile, pairs.iter().copied(), &mut None), sums),
    )?;
    Ok((0..size).map(|k| chunks.iter().map(|sums| sums[k]).sum()).collect())
}

/// The inner products of each row.
///
/// # Errors
/// Unreadable input, or the run was cancelled.
pub(super) fn rows<R: Real>(
    tensor: &Tensor<'_>,
    threads: Threads<'_>,
    length: u64,
    pairs: &[Pair],
) -> Result<Vec<f64>> {
    let each = |_, inputs: &[Vec<R>]| {
        let tile = Tile { level: tensor.level, first: 0, inputs };
        let mut sums = vec![0.0; pairs_of(pairs.len())];
        add_pairs(tensor.level, &views(&tile, pairs.iter().copied(), &mut None), &mut sums);
        sums
    };
    Ok(tensor.rows::<R, _, _>(threads, length, each)?.concat())
}

/// What `finish` makes of the inner products of the columns, some hundred at a time, in their order.
///
/// # Errors
/// Unreadable input, the run was cancelled, or an error of `finish`.
pub(super) fn columns<R: Real, T: Send>(
    tensor: &Tensor<'_>,
    threads: Threads<'_>,
    count: u64,
    pairs: &[Pair],
    finish: impl Fn(Vec<f64>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let each = |sums: &mut Vec<f64>, tile: &Tile<'_, R>| {
        sums.resize(pairs_of(pairs.len()) * tile.inputs.first().map_or(0, Vec::len), 0.0);
        add_each(&deltas(tile, pairs.iter().copied()), sums);
    };
    tensor.panels::<R, _, _>(threads, (count, TILE as u64), each, finish)
}
