//! A range of a sparse tensor in memory, expanded tile by tile.

use std::cell::Cell;

use super::places::{integer, ones_before, partition, Places};
use crate::dtype::Dtype;
use crate::kernels::widen::widen;
use crate::kernels::{Floats, Level, Real, TILE};
use crate::storage::chunk::Tiles;

/// A range of a sparse tensor whose bytes are in memory.
pub(crate) struct SparseChunk<'a> {
    pub(super) kind: Places,
    pub(super) places: &'a [u8],
    pub(super) index_type: Dtype,
    /// First element of the chunk; for a mask, its first bit lies `skip` bits into `places`.
    pub(super) first: u64,
    pub(super) skip: usize,
    pub(super) values: &'a [u8],
    pub(super) dtype: Dtype,
    /// What stands where no value is stored.
    pub(super) otherwise: f64,
    /// Where the last tile ended: (element in the chunk, values used).
    pub(super) cursor: Cell<(usize, usize)>,
}

impl Tiles for SparseChunk<'_> {
    fn tile(&self, level: Level, at: usize, out: Floats<'_>) -> bool {
        match out {
            Floats::F32(out) => self.expand(level, at, out),
            Floats::F64(out) => self.expand(level, at, out),
        }
    }
}

impl SparseChunk<'_> {
    /// Whether it holds no value.
    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Expands `out.len()` elements from element `at` of this chunk on; true if all values are finite.
    fn expand<R: Real>(&self, level: Level, at: usize, out: &mut [R]) -> bool {
        out.fill(R::from_f64(self.otherwise));
        let (mut places, mut values) = ([0u16; TILE], [R::ZERO; TILE]);
        let (count, finite) = self.stored(level, at, out.len(), &mut places, &mut values);
        for (place, value) in places[..count].iter().zip(&values[..count]) {
            out[usize::from(*place)] = *value;
        }
        finite
    }

    /// The values stored of `n` elements from element `at` of this chunk on, and their places counted from there: how
    /// many, and whether all are finite.
    pub(in crate::storage) fn stored<R: Real>(
        &self,
        level: Level,
        at: usize,
        n: usize,
        places: &mut [u16; TILE],
        values: &mut [R; TILE],
    ) -> (usize, bool) {
        let (element, rank) = self.cursor.get();
        let from = if element == at { rank } else { self.rank(at) };
        let count = match self.kind {
            Places::Mask => self.masked(at, n, places),
            Places::Index => self.indexed(at, n, from, places),
        };
        self.cursor.set((at + n, from + count));
        let size = self.dtype.size();
        // The places are a file's bytes, in which others may write: then they may ask for values that are not there,
        // and what is computed here is thrown away once the file is looked at again.
        let held = self.values.len() / size;
        let from = from.min(held);
        let count = count.min(held - from);
        let stored = &self.values[from * size..(from + count) * size];
        (count, widen(level, self.dtype, stored, &mut values[..count]))
    }

    /// Places within the tile of the bits that are set.
    fn masked(&self, at: usize, n: usize, places: &mut [u16; TILE]) -> usize {
        let mut count = 0;
        let mut element = 0;
        while element < n {
            let bit = self.skip + at + element;
            let (byte, low) = (bit / 8, bit % 8);
            let mut word = [0u8; 8];
            let take = (self.places.len() - byte).min(8);
            word[..take].copy_from_slice(&self.places[byte..byte + take]);
            let width = (64 - low).min(n - element);
            let mut bits = u64::from_le_bytes(word) >> low;
            if width < 64 {
                bits &= (1 << width) - 1;
            }
            while bits != 0 {
                places[count] = (element + bits.trailing_zeros() as usize) as u16;
                count += 1;
                bits &= bits - 1;
            }
            element += width;
        }
        count
    }

    fn indexed(&self, at: usize, n: usize, from: usize, places: &mut [u16; TILE]) -> usize {
        let size = self.index_type.size();
        let start = self.first + at as u64;
        let mut count = 0;
        for raw in self.places.get(from * size..).unwrap_or_default().chunks_exact(size).take(n) {
            let place = (integer(raw) as u64).wrapping_sub(start);
            if place >= n as u64 {
                break;
            }
            places[count] = place as u16;
            count += 1;
        }
        count
    }

    /// Values before element `at` of the chunk.
    fn rank(&self, at: usize) -> usize {
        match self.kind {
            Places::Mask => {
                let skipped = ones_before(self.places, self.skip);
                (ones_before(self.places, self.skip + at) - skipped) as usize
            }
            Places::Index => {
                let size = self.index_type.size();
                let index = |i: usize| integer(&self.places[i * size..(i + 1) * size]) as u64;
                partition(self.places.len() / size, |i| index(i) < self.first + at as u64)
            }
        }
    }
}
