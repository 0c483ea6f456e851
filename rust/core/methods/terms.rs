//! What methods share: differences of a tile, and a cache for what a row or group of elements needs as a whole.

use std::cell::RefCell;

use crate::error::Result;
use crate::kernels::combine::subtract;
use crate::kernels::{Level, Real, TILE};
use crate::op::Tile;
use crate::tensor::Tensor;

/// Where a difference comes from: position of the model and of what is subtracted from it.
pub type Ends = (usize, Option<usize>);

/// The differences of a tile, one buffer each.
pub fn deltas<R: Real>(tile: &Tile<'_, R>, ends: impl Iterator<Item = Ends>) -> Vec<Vec<R>> {
    ends.map(|(model, reference)| match reference {
        Some(reference) => {
            let mut out = vec![R::ZERO; tile.input(model).len()];
            subtract(tile.level, tile.input(model), tile.input(reference), &mut out);
            out
        }
        None => tile.input(model).to_vec(),
    })
    .collect()
}

/// Differences of any range of elements, read anew.
///
/// # Errors
/// Unreadable input.
pub fn read_deltas<R: Real>(tensor: &Tensor<'_>, range: std::ops::Range<u64>, ends: Ends) -> Result<Vec<R>> {
    let mut out = read(tensor, tensor.level, range.clone(), ends.0)?;
    if let Some(reference) = ends.1 {
        let subtrahend: Vec<R> = read(tensor, tensor.level, range, reference)?;
        let model = out.clone();
        subtract(tensor.level, &model, &subtrahend, &mut out);
    }
    Ok(out)
}

fn read<R: Real>(tensor: &Tensor<'_>, level: Level, range: std::ops::Range<u64>, input: usize) -> Result<Vec<R>> {
    let mut scratch = crate::input::Scratch::default();
    let mut out = vec![R::ZERO; (range.end - range.start) as usize];
    let chunk = tensor.inputs[input].open(range, &mut scratch)?;
    for (index, tile) in out.chunks_mut(TILE).enumerate() {
        chunk.tile(level, index * TILE, tile);
    }
    Ok(out)
}

/// Rows and their length: the last dimension; a tensor of one dimension is one row.
pub fn rows(shape: &[u64]) -> (u64, u64) {
    match shape {
        [.., last] if shape.len() >= 2 => (shape[..shape.len() - 1].iter().product(), *last),
        _ => (1, shape.iter().product()),
    }
}

/// Name of a cached value: run, job, term, group.
pub type Key = (usize, usize, usize, u64);

thread_local! {
    static CACHE: RefCell<Vec<(Key, Vec<f64>)>> = const { RefCell::new(Vec::new()) };
}

/// Most groups that a thread keeps: one per term of the job that it is at.
const KEPT: usize = 8;

/// The value of a group, computed when a thread first meets it; tiles of one group mostly follow each other.
///
/// # Errors
/// Those of `make`.
pub fn cached<T>(key: Key, make: impl FnOnce() -> Result<Vec<f64>>, then: impl FnOnce(&[f64]) -> T) -> Result<T> {
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
