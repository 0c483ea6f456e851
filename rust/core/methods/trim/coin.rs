//! A biased coin per element: heads with a probability of 32 bits, for as few bits of a draw as decide. Dropping at
//! random consists mostly of drawing.

use crate::kernels::philox::{fill, fill_bytes, further, Stream};
use crate::kernels::threshold::{mark_below, mark_equal};
use crate::kernels::{Level, TILE};

/// A coin and where its draws come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coin {
    /// The draws.
    pub stream: Stream,
    limit: u64,
}

/// A probability as a bound on 32-bit draws.
pub(super) fn chance(p: f64) -> u64 {
    (p * 4_294_967_296.0) as u64
}

/// Elements whose coins are flipped together, one word of the result.
const TOGETHER: u64 = 64;
/// Most bits of a probability that are drawn one by one, for many elements at once.
const PLANES: u32 = 4;

impl Coin {
    /// Heads with probability `p`, 0 < p < 1.
    pub(super) fn new(stream: Stream, p: f64) -> Self {
        Coin { stream, limit: chance(p) }
    }

    /// Sets the bits of `words` for heads of the elements `first .. first + n`, and clears the others up to there; what
    /// is behind in the last word is anything.
    pub(super) fn flip(&self, level: Level, first: u64, n: usize, words: &mut [u64]) {
        let shift = first % TOGETHER;
        let needed = n.div_ceil(64);
        if shift == 0 {
            self.aligned(level, first, &mut words[..needed]);
            return;
        }
        let mut all = vec![0; needed + 1];
        self.aligned(level, first - shift, &mut all);
        for (word, pair) in words.iter_mut().zip(all.windows(2)) {
            *word = pair[0] >> shift | pair[1] << (TOGETHER - shift);
        }
    }

    /// From an element on that is the first of a word.
    fn aligned(&self, level: Level, first: u64, words: &mut [u64]) {
        // Of 33 bits, as one of the two sides may be certain.
        let planes = 32 - self.limit.trailing_zeros().min(32);
        match planes {
            0 => words.fill(if self.limit == 0 { 0 } else { u64::MAX }),
            1..=PLANES => self.by_planes(level, first, planes, words),
            _ => self.by_bytes(level, first, words),
        }
    }

    /// One bit of all draws of a word after the other, from the last of the probability's on: a draw whose bit is less
    /// than the probability's is heads, one whose bit is more is tails, and where they are equal what was before holds.
    fn by_planes(&self, level: Level, first: u64, planes: u32, words: &mut [u64]) {
        let mut draws = [0; 1024];
        let each = planes as usize * 2;
        for (at, words) in words.chunks_mut(draws.len() / each).enumerate() {
            let word = first / TOGETHER + (at * (draws.len() / each)) as u64;
            let draws = &mut draws[..words.len() * each];
            fill(level, &self.stream, word * each as u64, draws);
            for (word, draws) in words.iter_mut().zip(draws.chunks_exact(each)) {
                *word = 0;
                for (plane, draw) in draws.as_chunks::<2>().0.iter().enumerate() {
                    let draw = u64::from(draw[0]) | u64::from(draw[1]) << 32;
                    let heads = self.limit >> (32 - planes + plane as u32) & 1 == 1;
                    *word = if heads { *word | !draw } else { *word & !draw };
                }
            }
        }
    }

    /// By eight bits of every draw, which decide but once in 256 times.
    fn by_bytes(&self, level: Level, begin: u64, words: &mut [u64]) {
        let (high, low) = ((self.limit >> 24) as u32, (self.limit & 0xFF_FFFF) as u32);
        let mut draws = [0; TILE];
        let mut undecided = Vec::new();
        for (at, words) in words.chunks_mut(TILE / 64).enumerate() {
            let first = (at * TILE) as u64;
            let draws = &mut draws[..words.len() * 64];
            fill_bytes(level, &self.stream, begin + first, draws);
            mark_below(level, draws, high, words);
            if low == 0 {
                continue;
            }
            let mut equal = [0; TILE / 64];
            mark_equal(level, draws, high as u8, &mut equal);
            for (word, mut equal) in (first..).step_by(64).zip(equal) {
                while equal != 0 {
                    undecided.push(begin + word + u64::from(equal.trailing_zeros()));
                    equal &= equal - 1;
                }
            }
        }
        let mut draws = vec![0; undecided.len()];
        further(level, &self.stream, &undecided, &mut draws);
        for (element, draw) in undecided.iter().map(|element| element - begin).zip(draws) {
            words[element as usize / 64] |= u64::from(draw >> 8 < low) << (element % 64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "millions of elements; smaller tensors: tests/golden.rs")]
    fn heads_come_up_as_often_as_they_should_wherever_a_tile_begins() {
        let n = 1usize << 20;
        for p in [0.5, 0.25, 0.75, 0.3125, 0.1, 1.0 / 256.0, 0.001, 0.999, 0.123_456] {
            let coin = Coin::new(Stream::new(3, "drop 0", "t"), p);
            let bits = |level: Level, step: usize| {
                let mut bits = Vec::with_capacity(n);
                for first in (0..n).step_by(step) {
                    let m = step.min(n - first);
                    let mut words = vec![u64::MAX; m.div_ceil(64)];
                    coin.flip(level, first as u64, m, &mut words);
                    bits.extend((0..m).map(|i| words[i / 64] >> (i % 64) & 1));
                }
                bits
            };
            let all = bits(Level::SCALAR, TILE);
            let heads: u64 = all.iter().sum();
            let deviation = (n as f64 * p * (1.0 - p)).sqrt();
            assert!((heads as f64 - n as f64 * p).abs() < 4.0 * deviation, "{p} {heads}");
            // Neighbours near and far have nothing to do with each other.
            for far in [1, 16, 32, 64, 128, 1024] {
                let both = all.iter().zip(&all[far..]).filter(|(a, b)| **a == 1 && **b == 1).count() as f64;
                let (mean, pairs) = (p * p, (n - far) as f64);
                assert!((both - pairs * mean).abs() < 6.0 * (pairs * mean).sqrt(), "{p} {far} {both}");
            }
            for level in Level::available() {
                assert_eq!(bits(level, 1 << 18), all);
                assert_eq!(bits(level, 77), all);
            }
        }
    }
}
