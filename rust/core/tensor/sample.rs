//! Tiles of a tensor without the rest of it.

use std::sync::Mutex;

use super::{Tensor, Tile, CHUNK};
use crate::error::Result;
use crate::kernels::{Real, TILE};
use crate::storage::chunk::Scratch;
use crate::threads::{each as each_of, lock, Threads};

impl Tensor<'_> {
    /// Tiles of `piece` elements from all over the tensor, about `count` elements in all, from at most `places` chunks;
    /// what `each` made of each chunk, in order.
    ///
    /// # Errors
    /// Unreadable input, or the run was cancelled.
    pub(crate) fn sample<R, A, E>(
        &self,
        threads: Threads<'_>,
        count: u64,
        places: u64,
        piece: u64,
        each: E,
    ) -> Result<Vec<A>>
    where
        R: Real,
        A: Send + Default,
        E: Fn(&mut A, &Tile<'_, R>) + Sync,
    {
        let chunks = self.elements.div_ceil(CHUNK);
        let places = places.min(chunks);
        let made: Mutex<Vec<(usize, A)>> = Mutex::new(Vec::with_capacity(places as usize));
        let one = |place: usize| -> Result<()> {
            let first = place as u64 * chunks / places * CHUNK;
            let range = first..(first + CHUNK).min(self.elements);
            let stride = ((range.end - range.start) * places * piece / count.max(1)).max(piece);
            let mut sum = A::default();
            self.pieces(range, stride, piece, &mut |tile: &Tile<'_, R>| each(&mut sum, tile))?;
            lock(&made).push((place, sum));
            Ok(())
        };
        match threads {
            Threads::Pool(pool) if places > 1 => each_of(pool, self.monitor, places as usize, one)?,
            _ => (0..places as usize).try_for_each(one)?,
        }
        let mut made = made.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        made.sort_unstable_by_key(|(place, _)| *place);
        Ok(made.into_iter().map(|(_, sum)| sum).collect())
    }

    /// The tile that begins with element `first`.
    ///
    /// # Errors
    /// Unreadable input.
    pub(crate) fn one_tile<R: Real>(&self, first: u64, each: &mut dyn FnMut(&Tile<'_, R>)) -> Result<()> {
        let range = first..(first + TILE as u64).min(self.elements);
        self.pieces(range, TILE as u64, TILE as u64, each)
    }

    /// A tile of `piece` elements every `stride`.
    fn pieces<R: Real>(
        &self,
        range: std::ops::Range<u64>,
        stride: u64,
        piece: u64,
        each: &mut dyn FnMut(&Tile<'_, R>),
    ) -> Result<()> {
        let mut scratch: Vec<Scratch> = self.inputs.iter().map(|_| Scratch::default()).collect();
        let mut opened = Vec::with_capacity(self.inputs.len());
        for (input, scratch) in self.inputs.iter().zip(&mut scratch) {
            opened.push(input.open(range.clone(), scratch)?);
        }
        let mut tiles: Vec<Vec<R>> = vec![Vec::new(); self.inputs.len()];
        for first in range.clone().step_by(stride as usize) {
            for (chunk, tile) in opened.iter().zip(&mut tiles) {
                tile.resize((range.end - first).min(piece) as usize, R::ZERO);
                chunk.tile(self.level, (first - range.start) as usize, tile);
            }
            each(&Tile { level: self.level, first, inputs: &tiles });
        }
        Ok(())
    }
}
