//! A biased coin per element: heads with a probability of 32 bits, from 16 bits of a draw where they decide, which is
//! all but once in 65 536 times. Half the cost of whole draws, of which dropping at random mostly consists.

use crate::kernels::philox::{fill_halves, Stream};
use crate::kernels::trim::mark_below;
use crate::kernels::{Level, TILE};

/// A coin and where its draws come from.
#[derive(Clone, Copy, Debug)]
pub struct Coin {
    /// The draws.
    pub stream: Stream,
    /// A draw below is heads; one that is equal is decided by another draw.
    high: u32,
    low: u32,
}

/// A probability as a bound on 32-bit draws.
pub fn chance(p: f64) -> u64 {
    (p * 4_294_967_296.0) as u64
}

impl Coin {
    /// Heads with probability `p`.
    pub fn new(stream: Stream, p: f64) -> Self {
        let limit = chance(p);
        Coin { stream, high: (limit >> 16) as u32, low: (limit & 0xFFFF) as u32 }
    }

    /// Sets the bits of `words` for heads of the elements `first .. first + n`, at most a tile, and clears the others.
    pub fn flip(&self, level: Level, first: u64, n: usize, words: &mut [u64]) {
        let mut draws = [0; TILE];
        let draws = &mut draws[..n];
        fill_halves(level, &self.stream, first, draws);
        mark_below(level, draws, self.high, words);
        if self.low > 0 && draws.iter().fold(false, |any, draw| any | (u32::from(*draw) == self.high)) {
            for (i, _) in draws.iter().enumerate().filter(|(_, draw)| u32::from(**draw) == self.high) {
                let heads = u32::from(self.stream.further(first + i as u64)) < self.low;
                words[i / 64] |= u64::from(heads) << (i % 64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_up_as_often_as_they_should_wherever_a_tile_begins() {
        let n = 1usize << 20;
        for p in [0.5, 0.1, 1.0 / 65536.0, 0.999, 0.123_456] {
            let coin = Coin::new(Stream::new(3, "drop 0", "t"), p);
            let bits = |level: Level, step: usize| {
                let mut bits = Vec::with_capacity(n);
                for first in (0..n).step_by(step) {
                    let m = step.min(n - first);
                    let mut words = [u64::MAX; TILE / 64];
                    coin.flip(level, first as u64, m, &mut words);
                    bits.extend((0..m).map(|i| words[i / 64] >> (i % 64) & 1));
                }
                bits
            };
            let all = bits(Level::SCALAR, TILE);
            let heads: u64 = all.iter().sum();
            let deviation = (n as f64 * p * (1.0 - p)).sqrt();
            assert!((heads as f64 - n as f64 * p).abs() < 4.0 * deviation, "{p} {heads}");
            for level in Level::available() {
                assert_eq!(bits(level, TILE), all);
                assert_eq!(bits(level, 77), all);
            }
        }
    }
}
