//! What methods share: differences of a tile, and a cache for what a row or group of elements needs as a whole.

use std::cell::RefCell;

use crate::error::Result;
use crate::kernels::combine::{add_difference, add_scaled, difference, scale, scale_difference};
use crate::kernels::factor::Factor;
use crate::kernels::{Level, Real, TILE};
use crate::methods::method::Term;
use crate::tensor::{Tensor, Tile};

/// Where a difference comes from: position of the model and of what is subtracted from it.
pub(crate) type Pair = (usize, Option<usize>);

/// Loan on loan from their thread, which gets them back.
#[derive(Debug)]
pub(crate) struct Loan<R: Real>(Vec<Vec<R>>);

impl<R: Real> std::ops::Deref for Loan<R> {
    type Target = [Vec<R>];
    fn deref(&self) -> &[Vec<R>] {
        &self.0
    }
}

impl<R: Real> std::ops::DerefMut for Loan<R> {
    fn deref_mut(&mut self) -> &mut [Vec<R>] {
        &mut self.0
    }
}

impl<R: Real> Drop for Loan<R> {
    fn drop(&mut self) {
        R::spare(|spare| {
            spare.append(&mut self.0);
            spare.truncate(KEPT);
        });
    }
}

/// The differences of a tile, one buffer each.
pub(crate) fn deltas<R: Real>(tile: &Tile<'_, R>, pairs: impl Iterator<Item = Pair>) -> Loan<R> {
    let one = |(model, reference): Pair| {
        let mut out = buffer(tile.input(model).len());
        match reference {
            Some(reference) => difference(tile.level, tile.input(model), tile.input(reference), &mut out),
            None => out.copy_from_slice(tile.input(model)),
        }
        out
    };
    Loan(pairs.map(one).collect())
}

/// The same without copying what is a vector already; `own` holds the others.
pub(crate) fn views<'a, R: Real>(
    tile: &'a Tile<'_, R>,
    pairs: impl Iterator<Item = Pair> + Clone,
    own: &'a mut Option<Loan<R>>,
) -> Vec<&'a [R]> {
    let differences = deltas(tile, pairs.clone().filter(|(_, reference)| reference.is_some()));
    let mut differences = own.insert(differences).iter();
    let one = |(model, reference): Pair| match reference {
        Some(_) => differences.next().map_or(&[][..], Vec::as_slice),
        None => tile.input(model),
    };
    pairs.map(one).collect()
}

/// A buffer of `n` elements that hold anything.
fn buffer<R: Real>(n: usize) -> Vec<R> {
    let mut out = R::spare(Vec::pop).unwrap_or_default();
    out.resize(n, R::ZERO);
    out
}

impl<R: Real> Loan<R> {
    /// One of `n` elements, written by `fill`.
    pub(crate) fn one(n: usize, fill: impl FnOnce(&mut [R])) -> Self {
        let mut out = buffer(n);
        fill(&mut out);
        Loan(vec![out])
    }
}

/// Σ w·(model − reference) of a tile, in order; a model without a reference is a difference already.
pub(crate) fn weighted_sum<R: Real>(tile: &Tile<'_, R>, terms: &[Term], out: &mut [R]) {
    let level = tile.level;
    if terms.is_empty() {
        out.fill(R::ZERO);
    }
    for (k, term) in terms.iter().enumerate() {
        let (model, weight) = (tile.input(term.model), R::from_f64(term.weight));
        match (term.reference.map(|reference| tile.input(reference)), k) {
            (Some(reference), 0) if term.weight == 1.0 => difference(level, model, reference, out),
            (Some(reference), 0) => scale_difference(level, model, reference, weight, out),
            (Some(reference), _) => add_difference(level, model, reference, weight, out),
            (None, 0) => scale(level, model, Factor::new(term.weight), out),
            (None, _) => add_scaled(level, model, Factor::new(term.weight), out),
        }
    }
}

/// Differences of any range of elements, read from the inputs.
///
/// # Errors
/// Unreadable input.
pub(crate) fn read_deltas<R: Real>(tensor: &Tensor<'_>, range: std::ops::Range<u64>, pairs: Pair) -> Result<Vec<R>> {
    let mut out = read(tensor, tensor.level, range.clone(), pairs.0)?;
    if let Some(reference) = pairs.1 {
        let subtrahend: Vec<R> = read(tensor, tensor.level, range, reference)?;
        let model = out.clone();
        difference(tensor.level, &model, &subtrahend, &mut out);
    }
    Ok(out)
}

fn read<R: Real>(tensor: &Tensor<'_>, level: Level, range: std::ops::Range<u64>, input: usize) -> Result<Vec<R>> {
    let mut scratch = crate::storage::chunk::Scratch::default();
    let mut out = vec![R::ZERO; (range.end - range.start) as usize];
    let chunk = tensor.inputs[input].open(range, &mut scratch)?;
    for (index, tile) in out.chunks_mut(TILE).enumerate() {
        chunk.tile(level, index * TILE, tile);
    }
    Ok(out)
}

/// Rows and their length: the last dimension; a tensor of one dimension is one row.
pub(crate) fn rows(shape: &[u64]) -> (u64, u64) {
    match shape {
        [.., last] if shape.len() >= 2 => (shape[..shape.len() - 1].iter().product(), *last),
        _ => (1, shape.iter().product()),
    }
}

/// Name of a cached value: run, job, term, group.
pub(crate) type Key = (usize, usize, usize, u64);

thread_local! {
    static CACHE: RefCell<Vec<(Key, Vec<f64>)>> = const { RefCell::new(Vec::new()) };
}

/// Most groups, and buffers, that a thread keeps: one per term of the job that it is at.
const KEPT: usize = 8;

/// The value of a group, computed when a thread first meets it; tiles of one group mostly follow each other.
///
/// # Errors
/// Those of `make`.
pub(crate) fn cached<T>(
    key: Key,
    make: impl FnOnce() -> Result<Vec<f64>>,
    then: impl FnOnce(&[f64]) -> T,
) -> Result<T> {
    CACHE.with(|cache| {
        let mut cache = cache.borrow_mut();
        if let Some(index) = cache.iter().position(|(known, _)| *known == key) {
            return Ok(then(&cache[index].1));
        }
        let value = make()?;
        if cache.len() >= KEPT {
            cache.remove(0);
        }
        let result = then(&value);
        cache.push((key, value));
        Ok(result)
    })
}
