//! Passes over the rows of a tensor, and over panels of its columns.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::Mutex;

use super::{Tensor, Tile, CHUNK};
use crate::error::Result;
use crate::file::heap::filled;
use crate::kernels::{Real, TILE};
use crate::storage::chunk::Scratch;
use crate::threads::{each as each_of, lock, Threads};

impl Tensor<'_> {
    /// Every row by itself: `each` gets its index and the inputs' values. Returns what it made, in row order.
    ///
    /// # Errors
    /// Unreadable input, or the run was cancelled.
    pub(crate) fn rows<R, A, E>(&self, threads: Threads<'_>, length: u64, each: E) -> Result<Vec<A>>
    where
        R: Real,
        A: Send,
        E: Fn(u64, &[Vec<R>]) -> A + Sync,
    {
        let count = self.elements.checked_div(length).unwrap_or(0);
        let counts = self.passes.fetch_add(1, Relaxed) == 0;
        // Rows are taken in batches of about a chunk.
        let batch = (CHUNK / length.max(1)).max(1);
        let made: Mutex<Vec<(u64, Vec<A>)>> = Mutex::new(Vec::new());
        let one = |index: usize| -> Result<()> {
            let rows = index as u64 * batch..((index as u64 + 1) * batch).min(count);
            let mut scratch: Vec<Scratch> = self.inputs.iter().map(|_| Scratch::default()).collect();
            let mut opened = Vec::with_capacity(self.inputs.len());
            for (input, scratch) in self.inputs.iter().zip(&mut scratch) {
                opened.push(input.open(rows.start * length..rows.end * length, scratch)?);
            }
            let mut values: Vec<Vec<R>> = self.inputs.iter().map(|_| filled(length, R::ZERO)).collect::<Result<_>>()?;
            let mut results = Vec::with_capacity((rows.end - rows.start) as usize);
            for row in 0..rows.end - rows.start {
                for (index, (chunk, values)) in opened.iter().zip(&mut values).enumerate() {
                    for (tile, out) in values.chunks_mut(TILE).enumerate() {
                        let at = (row * length) as usize + tile * TILE;
                        if !chunk.tile(self.level, at, out) && counts {
                            self.non_finite.input(self.job, index, self.level, out);
                        }
                    }
                }
                results.push(each(rows.start + row, &values));
            }
            lock(&made).push((index as u64, results));
            Ok(())
        };
        let batches = count.div_ceil(batch) as usize;
        match threads {
            Threads::Pool(pool) if batches > 1 => each_of(pool, self.monitor, batches, one)?,
            _ => (0..batches).try_for_each(|index| self.monitor.check().and_then(|()| one(index)))?,
        }
        let mut made = made.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        made.sort_unstable_by_key(|(index, _)| *index);
        Ok(made.into_iter().flat_map(|(_, results)| results).collect())
    }

    /// Every panel of `width` columns by itself, of which a row has `count`: `each` gets its part of one row after the
    /// other. Returns what `finish` makes of the accumulators, in the order of the panels.
    ///
    /// # Errors
    /// Unreadable input, the run was cancelled, or an error of `finish`.
    pub(crate) fn panels<R, A, T>(
        &self,
        threads: Threads<'_>,
        (count, width): (u64, u64),
        each: impl Fn(&mut A, &Tile<'_, R>) + Sync,
        finish: impl Fn(A) -> Result<T> + Sync,
    ) -> Result<Vec<T>>
    where
        R: Real,
        A: Default,
        T: Send,
    {
        let counts = self.passes.fetch_add(1, Relaxed) == 0;
        let made: Mutex<Vec<(usize, T)>> = Mutex::new(Vec::new());
        let one = |panel: usize| -> Result<()> {
            let columns = panel as u64 * width..((panel as u64 + 1) * width).min(count);
            let mut scratch: Vec<Scratch> = self.inputs.iter().map(|_| Scratch::default()).collect();
            let mut tiles = vec![vec![R::ZERO; (columns.end - columns.start) as usize]; self.inputs.len()];
            let mut sum = A::default();
            for row in (0..self.elements).step_by(count as usize) {
                self.monitor.check()?;
                for (index, (input, tile)) in self.inputs.iter().zip(&mut tiles).enumerate() {
                    let chunk = input.open(row + columns.start..row + columns.end, &mut scratch[index])?;
                    if !chunk.tile(self.level, 0, tile) && counts {
                        self.non_finite.input(self.job, index, self.level, tile);
                    }
                }
                each(&mut sum, &Tile { level: self.level, first: row + columns.start, inputs: &tiles });
            }
            let done = finish(sum)?;
            lock(&made).push((panel, done));
            Ok(())
        };
        let panels = count.div_ceil(width) as usize;
        match threads {
            Threads::Pool(pool) if panels > 1 => each_of(pool, self.monitor, panels, one)?,
            _ => (0..panels).try_for_each(one)?,
        }
        let mut made = made.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        made.sort_unstable_by_key(|(panel, _)| *panel);
        Ok(made.into_iter().map(|(_, done)| done).collect())
    }
}
