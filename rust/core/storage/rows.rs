//! An embedding or a head in the order of another vocabulary: every row is a row of a stored matrix, of this model or of
//! another one that has the token, or the mean of several, or zero.
//!
//! Rows are read where they lie, when they are wanted. A mean is taken in the compute type, in the order that the plan
//! gives: the same bytes for any chunks and threads.

use std::ops::Range;

use super::assembled::{gathered_as, widened};
use super::chunk::{Chunk, Scratch};
use super::part::Part;
use super::source::{RowMean, RowRun, RowTable, Rows};
use super::wanted::Wanted;
use super::Storage;
use crate::dtype::{elements, Dtype};
use crate::error::{shown, Error, Kind, Result};
use crate::kernels::Level;

/// A matrix whose rows are those of others.
struct Permuted<'a> {
    tables: Vec<Box<dyn Storage + 'a>>,
    /// In the order of their rows here, none over another.
    runs: Vec<RowRun>,
    /// Likewise, and none in a run.
    means: Vec<RowMean>,
    columns: u64,
    elements: u64,
    /// The type that the elements have while they are gathered.
    gathered: Dtype,
}

/// What the plan says of a matrix whose rows are in another order.
pub(crate) fn wanted<'w>(wanted: &Wanted<'w, '_>) -> Option<&'w Rows> {
    wanted.source.rows.get(wanted.name).filter(|_| !wanted.stored)
}

/// The matrix, of tables that `open` finds in their sources.
///
/// # Errors
/// A table is missing, or the rows do not make up the matrix.
pub(crate) fn permute<'w, 'a>(
    wanted: &Wanted<'w, 'a>,
    Rows(shape, tables, runs, means): &'w Rows,
    open: &dyn Fn(&Wanted<'_, 'a>) -> Result<Box<dyn Storage + 'a>>,
) -> Result<Box<dyn Storage + 'a>> {
    wanted.check_shape(shape)?;
    let columns = shape.iter().skip(1).product::<u64>().max(1);
    let (mut runs, mut means) = (runs.clone(), means.clone());
    runs.sort_by_key(|run| run.0);
    means.sort_by_key(|mean| mean.0);
    check(wanted.name, shape, tables, &runs, &means)?;
    let tables = tables.iter().map(|table| opened(wanted, table, open)).collect::<Result<Vec<_>>>()?;
    let gathered = match gathered_as(&tables) {
        // the mean of narrow numbers has more bits than they have
        narrow if !means.is_empty() && narrow != Dtype::F64 => Dtype::F32,
        gathered => gathered,
    };
    Ok(Box::new(Permuted { tables, runs, means, columns, elements: wanted.elements, gathered }))
}

fn opened<'a>(
    wanted: &Wanted<'_, 'a>,
    RowTable(source, name, shape): &RowTable,
    open: &dyn Fn(&Wanted<'_, 'a>) -> Result<Box<dyn Storage + 'a>>,
) -> Result<Box<dyn Storage + 'a>> {
    let (Some(of), Some(opened)) = (wanted.sources.get(*source), wanted.all.get(*source)) else {
        let name = shown(wanted.name);
        return Err(Error::new(Kind::Plan, format!("unusable plan: rows of `{name}` are of source {source}")));
    };
    let elements = elements(shape).unwrap_or(0);
    let table = open(&Wanted { name, shape, elements, source: of, opened, ..*wanted })?;
    match table.dtype().is_float() {
        true => Ok(table),
        false => {
            let (name, dtype) = (shown(name), table.dtype());
            Err(Error::new(Kind::Plan, format!("unusable plan: rows of `{name}`, which is {dtype}")))
        }
    }
}

/// Every row is given once at most, and is one of its table.
fn check(name: &str, shape: &[u64], tables: &[RowTable], runs: &[RowRun], means: &[RowMean]) -> Result<()> {
    let bad = |what: &str| Error::new(Kind::Plan, format!("unusable plan: rows of `{}` {what}", shown(name)));
    let Some((&rows, inner)) = shape.split_first() else { return Err(bad("that is a number")) };
    if tables.iter().any(|RowTable(_, _, shape)| shape.get(1..) != Some(inner)) {
        return Err(bad("are of tables of other columns"));
    }
    let height = |table: usize| tables.get(table).map_or(0, |RowTable(_, _, shape)| shape[0]);
    let within = |first: u64, count: u64, all: u64| first.checked_add(count).is_some_and(|end| end <= all);
    let mut given: Vec<(u64, u64)> = Vec::with_capacity(runs.len() + means.len());
    for &RowRun(to, count, table, from) in runs {
        if count == 0 || !within(to, count, rows) || !within(from, count, height(table)) {
            return Err(bad("go beyond it, or beyond their table"));
        }
        given.push((to, count));
    }
    for RowMean(to, of) in means {
        if *to >= rows || of.is_empty() || of.iter().any(|&(table, row)| row >= height(table)) {
            return Err(bad("go beyond it, or beyond their table"));
        }
        given.push((*to, 1));
    }
    given.sort_unstable();
    match given.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        true => Err(bad("are given twice")),
        false => Ok(()),
    }
}

impl Permuted<'_> {
    /// The runs that have rows before `end` and from `start` on.
    fn runs(&self, rows: &Range<u64>) -> &[RowRun] {
        let first = self.runs.partition_point(|run| run.0 + run.1 <= rows.start);
        let last = self.runs.partition_point(|run| run.0 < rows.end);
        &self.runs[first..last.max(first)]
    }

    fn means(&self, rows: &Range<u64>) -> &[RowMean] {
        let first = self.means.partition_point(|mean| mean.0 < rows.start);
        let last = self.means.partition_point(|mean| mean.0 < rows.end);
        &self.means[first..last]
    }

    /// The rows that elements are of.
    fn rows(&self, elements: &Range<u64>) -> Range<u64> {
        elements.start / self.columns..elements.end.div_ceil(self.columns)
    }

    /// The table and the range there in which all of `elements` lie.
    fn run(&self, elements: &Range<u64>) -> Option<(&dyn Storage, Range<u64>)> {
        let &[RowRun(to, count, table, from)] = self.runs(&self.rows(elements)) else { return None };
        let (first, end) = (to * self.columns, (to + count) * self.columns);
        (first <= elements.start && elements.end <= end).then(|| {
            let start = elements.start - first + from * self.columns;
            (&*self.tables[table], start..start + (elements.end - elements.start))
        })
    }

    /// The part of `count` rows from `to` on that lies in `elements`, of equally many from row `from` on: the range
    /// there, and where in `elements` it begins.
    fn part(&self, elements: &Range<u64>, to: u64, count: u64, from: u64) -> (Range<u64>, usize) {
        let start = elements.start.max(to * self.columns);
        let end = elements.end.min((to + count) * self.columns);
        let there = start - to * self.columns + from * self.columns;
        (there..there + (end - start), (start - elements.start) as usize)
    }

    /// Elements of a table as the gathered type has them.
    fn read(
        &self,
        level: Level,
        table: usize,
        range: Range<u64>,
        (under, decoded): (&mut Scratch, &mut Vec<u8>),
        take: impl FnOnce(&[u8]),
    ) -> Result<()> {
        let count = (range.end - range.start) as usize;
        let chunk = self.tables[table].open(range, under)?;
        match chunk.stored(self.gathered, 0, count) {
            Some(bytes) => take(bytes),
            None => {
                widened(level, &chunk, count, self.gathered, decoded);
                take(decoded);
            }
        }
        Ok(())
    }
}

/// Adds numbers of a type to others of it.
fn add(dtype: Dtype, sum: &mut [u8], bytes: &[u8]) {
    match dtype {
        Dtype::F64 => each::<8>(sum, bytes, |a, b| (f64::from_le_bytes(a) + f64::from_le_bytes(b)).to_le_bytes()),
        _ => each::<4>(sum, bytes, |a, b| (f32::from_le_bytes(a) + f32::from_le_bytes(b)).to_le_bytes()),
    }
}

/// Divides numbers of a type.
fn divide(dtype: Dtype, sum: &mut [u8], by: usize) {
    match dtype {
        Dtype::F64 => sum.as_chunks_mut().0.iter_mut().for_each(|slot| {
            *slot = (f64::from_le_bytes(*slot) / by as f64).to_le_bytes();
        }),
        _ => sum.as_chunks_mut().0.iter_mut().for_each(|slot| {
            *slot = (f32::from_le_bytes(*slot) / by as f32).to_le_bytes();
        }),
    }
}

fn each<const N: usize>(sum: &mut [u8], bytes: &[u8], with: fn([u8; N], [u8; N]) -> [u8; N]) {
    for (slot, value) in sum.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
        *slot = with(*slot, *value);
    }
}

impl Storage for Permuted<'_> {
    fn parts(&self) -> Vec<Part<'_>> {
        self.tables.iter().flat_map(|table| table.parts()).collect()
    }

    fn elements(&self) -> u64 {
        self.elements
    }

    fn dtype(&self) -> Dtype {
        // Of several types the one that needs the widest compute type.
        let types = self.tables.iter().map(|table| table.dtype());
        types.max_by_key(|dtype| (!dtype.is_narrow(), dtype.size())).unwrap_or(self.gathered)
    }

    fn plain(&self) -> Option<Dtype> {
        let is_plain = self.tables.iter().all(|table| table.plain() == Some(self.gathered));
        (is_plain && self.means.is_empty()).then_some(self.gathered)
    }

    fn bytes(&self, elements: &Range<u64>) -> u64 {
        let of = |table: usize, from: u64, count: u64| {
            self.tables[table].bytes(&(from * self.columns..(from + count) * self.columns))
        };
        let runs: u64 = self.runs.iter().map(|&RowRun(_, count, table, from)| of(table, from, count)).sum();
        let means = self.means.iter().flat_map(|mean| &mean.1);
        let used = runs + means.map(|&(table, row)| of(table, row, 1)).sum::<u64>();
        let count = elements.end - elements.start;
        (u128::from(used) * u128::from(count) / u128::from(self.elements.max(1))) as u64
    }

    fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<Chunk<'s>> {
        let ([out, decoded, ..], under) = scratch.layers();
        if let Some((table, range)) = self.run(&elements) {
            return table.open(range, under);
        }
        let (level, size, rows) = (Level::chosen()?, self.gathered.size(), self.rows(&elements));
        out.clear();
        out.resize((elements.end - elements.start) as usize * size, 0);
        for &RowRun(to, count, table, from) in self.runs(&rows) {
            let (range, at) = self.part(&elements, to, count, from);
            let slots = &mut out[at * size..][..(range.end - range.start) as usize * size];
            self.read(level, table, range, (&mut *under, &mut *decoded), |bytes| slots.copy_from_slice(bytes))?;
        }
        for RowMean(to, of) in self.means(&rows) {
            let (range, at) = self.part(&elements, *to, 1, 0);
            let slots = &mut out[at * size..][..(range.end - range.start) as usize * size];
            for &(table, row) in of {
                let first = row * self.columns;
                let range = range.start + first..range.end + first;
                self.read(level, table, range, (&mut *under, &mut *decoded), |bytes| add(self.gathered, slots, bytes))?;
            }
            divide(self.gathered, slots, of.len());
        }
        Ok(Chunk::Plain { dtype: self.gathered, bytes: out })
    }

    fn ahead(&self, elements: Range<u64>) {
        if let Some((table, range)) = self.run(&elements) {
            table.ahead(range);
        }
    }

    fn behind(&self, elements: Range<u64>) {
        if let Some((table, range)) = self.run(&elements) {
            table.behind(range);
        }
    }
}
