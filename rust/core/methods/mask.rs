//! One bit per element: what a random drop keeps, so that it need not be drawn again.

use crate::kernels::trim::keep_marked;
use crate::kernels::{Level, Real};

/// The bits of a tensor's elements, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mask {
    words: Vec<u64>,
    length: usize,
}

impl Mask {
    /// Adds the first `n` bits of `words`; those behind them in the last word are zero.
    pub fn append(&mut self, words: &[u64], n: usize) {
        let shift = self.length % 64;
        self.length += n;
        for word in words {
            match self.words.last_mut() {
                Some(last) if shift > 0 => {
                    *last |= word << shift;
                    self.words.push(word >> (64 - shift));
                }
                _ => self.words.push(*word),
            }
        }
        self.words.truncate(self.length.div_ceil(64));
    }

    /// Sets to zero the elements, from `first` on, whose bit is not set.
    pub fn keep<R: Real>(&self, level: Level, first: u64, x: &mut [R]) {
        keep_marked(level, &self.words[(first / 64) as usize..], (first % 64) as usize, x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appended_in_any_pieces_it_is_the_same() {
        let bit = |i: usize| i * i % 7 < 3;
        for pieces in [vec![1000], vec![1, 999], vec![64, 1, 63, 128, 744], vec![3; 333]] {
            let (mut mask, mut first) = (Mask::default(), 0);
            for n in pieces {
                let mut words = vec![0u64; usize::div_ceil(n, 64)];
                (0..n).filter(|i| bit(first + i)).for_each(|i| words[i / 64] |= 1 << (i % 64));
                mask.append(&words, n);
                first += n;
            }
            for level in Level::available() {
                for from in [0, 1, 63, 64, 100, first - 1] {
                    let mut x = vec![1f32; (first - from).min(300)];
                    mask.keep(level, from as u64, &mut x);
                    assert!(x.iter().enumerate().all(|(i, x)| (*x == 1.0) == bit(from + i)));
                }
            }
        }
    }
}
