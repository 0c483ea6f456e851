//! A job's tensor as an operation sees it: its facts, its inputs, and passes over all of it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::Mutex;

use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernels::{Level, Real, TILE};
use crate::measure::NonFinite;
use crate::monitor::Monitor;
use crate::storage::chunk::{Chunk, Scratch};
use crate::storage::input::Input;
use crate::threads::{lock, together, Threads};

mod rows;
mod sample;

/// Elements of one chunk of a pass: sums are kept per chunk and added in index order, whatever the thread count.
pub(crate) const CHUNK: u64 = 1 << 18;

/// One tensor of a run.
pub(crate) struct Tensor<'a> {
    /// Unique in this process: what is remembered between tiles is remembered under it.
    pub id: usize,
    /// Index of its job in the plan.
    pub job: usize,
    /// Its name in the output.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [u64],
    /// Elements.
    pub elements: u64,
    /// What the operation reads.
    pub inputs: &'a [Input<'a>],
    /// Seed of the plan.
    pub seed: u64,
    /// CPU level for kernels.
    pub level: Level,
    pub(crate) monitor: &'a Monitor,
    pub(crate) non_finite: &'a NonFinite,
    /// Passes begun; only the first counts values that are not finite.
    pub(crate) passes: AtomicUsize,
}

/// The inputs of one tile as they are stored.
pub(crate) struct StoredTile<'a> {
    /// CPU level for kernels.
    pub level: Level,
    /// Index in the tensor of the tile's first element.
    pub first: u64,
    /// The bytes of each input.
    pub inputs: &'a [&'a [u8]],
}

/// The inputs of one tile, widened.
pub(crate) struct Tile<'a, R> {
    /// CPU level for kernels.
    pub level: Level,
    /// Index in the tensor of the tile's first element.
    pub first: u64,
    /// One slice per input, all of the tile's length.
    pub inputs: &'a [Vec<R>],
}

impl<R: Real> Tile<'_, R> {
    /// Input `index` of this tile.
    pub(crate) fn input(&self, index: usize) -> &[R] {
        &self.inputs[index]
    }
}

/// A new [`Tensor::id`].
pub(crate) fn next_id() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Relaxed)
}

impl Tensor<'_> {
    /// One pass over the inputs: `start` makes a chunk's accumulator, `each` adds a tile to it. Returns the
    /// accumulators in chunk order.
    ///
    /// # Errors
    /// Unreadable input, or the run was cancelled.
    pub(crate) fn fold<R, A, S, E>(&self, threads: Threads<'_>, start: S, each: E) -> Result<Vec<A>>
    where
        R: Real,
        A: Send,
        S: Fn(u64) -> A + Sync,
        E: Fn(&mut A, &Tile<'_, R>) + Sync,
    {
        self.fold_chunks(threads, start, |sum, tile, _, _| each(sum, tile))
    }

    /// [`Tensor::fold`] that also hears of the chunks that a tile is of, and where in those it begins.
    ///
    /// # Errors
    /// As [`Tensor::fold`].
    pub(crate) fn fold_chunks<R, A, S, E>(&self, threads: Threads<'_>, start: S, each: E) -> Result<Vec<A>>
    where
        R: Real,
        A: Send,
        S: Fn(u64) -> A + Sync,
        E: Fn(&mut A, &Tile<'_, R>, &[Chunk<'_>], usize) + Sync,
    {
        let tiles: Mutex<Vec<Vec<Vec<R>>>> = Mutex::new(Vec::new());
        self.chunks(threads, start, |range, counts, opened, sum| {
            let taken = lock(&tiles).pop();
            let mut values = taken.unwrap_or_else(|| vec![Vec::with_capacity(TILE); opened.len()]);
            for first in range.clone().step_by(TILE) {
                let n = (range.end - first).min(TILE as u64) as usize;
                for (index, (input, tile)) in opened.iter().zip(&mut values).enumerate() {
                    tile.resize(n, R::ZERO);
                    if !input.tile(self.level, (first - range.start) as usize, tile) && counts {
                        self.non_finite.input(self.job, index, self.level, tile);
                    }
                }
                let at = (first - range.start) as usize;
                each(sum, &Tile { level: self.level, first, inputs: &values }, opened, at);
            }
            lock(&tiles).push(values);
        })
    }

    /// Every chunk of the tensor, with its inputs opened; `each` hears whether it is the first pass.
    fn chunks<A, S, E>(&self, threads: Threads<'_>, start: S, each: E) -> Result<Vec<A>>
    where
        A: Send,
        S: Fn(u64) -> A + Sync,
        E: Fn(std::ops::Range<u64>, bool, &[Chunk<'_>], &mut A) + Sync,
    {
        let chunks = self.elements.div_ceil(CHUNK);
        let counts = self.passes.fetch_add(1, Relaxed) == 0;
        let next = AtomicU64::new(0);
        let done: Mutex<Vec<(u64, A)>> = Mutex::new(Vec::with_capacity(chunks as usize));
        let failed = Mutex::new(None);
        let one = |chunk: u64, scratch: &mut [Scratch]| -> Result<A> {
            self.monitor.check()?;
            let mut sum = start(chunk);
            let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(self.elements);
            let mut opened = Vec::with_capacity(self.inputs.len());
            for (input, scratch) in self.inputs.iter().zip(scratch) {
                opened.push(input.open(range.clone(), scratch)?);
            }
            each(range, counts, &opened, &mut sum);
            Ok(sum)
        };
        let work = || {
            let mut scratch: Vec<Scratch> = self.inputs.iter().map(|_| Scratch::default()).collect();
            loop {
                let chunk = next.fetch_add(1, Relaxed);
                if chunk >= chunks {
                    return;
                }
                match one(chunk, &mut scratch) {
                    Ok(sum) => lock(&done).push((chunk, sum)),
                    Err(error) => {
                        next.store(chunks, Relaxed);
                        lock(&failed).get_or_insert(error);
                        return;
                    }
                }
            }
        };
        match threads {
            Threads::Pool(pool) if chunks > 1 => together(pool, work),
            _ => work(),
        }
        if let Some(error) = lock(&failed).take() {
            return Err(error);
        }
        let mut done = std::mem::take(&mut *lock(&done));
        done.sort_unstable_by_key(|(chunk, _)| *chunk);
        Ok(done.into_iter().map(|(_, sum)| sum).collect())
    }

    /// [`Tensor::fold`] over the stored bytes of inputs that are all dense and of one type, without widening them; none
    /// where they are not. `each` reads all of them, and says false where something may not be finite.
    ///
    /// # Errors
    /// As [`Tensor::fold`].
    pub(crate) fn fold_stored<R, A, S, E>(
        &self,
        threads: Threads<'_>,
        dtype: Dtype,
        start: S,
        each: E,
    ) -> Result<Option<Vec<A>>>
    where
        R: Real,
        A: Send,
        S: Fn(u64) -> A + Sync,
        E: Fn(&mut A, &StoredTile<'_>) -> bool + Sync,
    {
        if !self.inputs.iter().all(|input| input.is_plain(dtype)) {
            return Ok(None);
        }
        self.chunks(threads, start, |range, counts, opened, sum| {
            let mut stored: Vec<&[u8]> = vec![&[]; opened.len()];
            for first in range.clone().step_by(TILE) {
                let n = (range.end - first).min(TILE as u64) as usize;
                let at = (first - range.start) as usize;
                for (bytes, chunk) in stored.iter_mut().zip(opened) {
                    chunk.ahead(at, n);
                    *bytes = chunk.stored(dtype, at, n).expect("plain inputs are dense");
                }
                let finite = each(sum, &StoredTile { level: self.level, first, inputs: &stored });
                if !finite && counts {
                    let mut tile = vec![R::ZERO; n];
                    for (index, chunk) in opened.iter().enumerate() {
                        if !chunk.tile(self.level, at, &mut tile) {
                            self.non_finite.input(self.job, index, self.level, &tile);
                        }
                    }
                }
            }
        })
        .map(Some)
    }

    /// One pass with an accumulator per thread: for counts, whose sum does not depend on the order. The accumulators may
    /// be large, as they are few.
    ///
    /// # Errors
    /// As [`Tensor::fold`].
    pub(crate) fn tally<R, A, S, E>(&self, threads: Threads<'_>, start: S, each: E) -> Result<Vec<A>>
    where
        R: Real,
        A: Send,
        S: Fn() -> A + Sync,
        E: Fn(&mut A, &Tile<'_, R>) + Sync,
    {
        let spare: Mutex<Vec<A>> = Mutex::new(Vec::new());
        self.fold::<R, (), _, _>(
            threads,
            |_| (),
            |(), tile| {
                let taken = lock(&spare).pop();
                let mut sum = taken.unwrap_or_else(&start);
                each(&mut sum, tile);
                lock(&spare).push(sum);
            },
        )?;
        Ok(spare.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}
