//! One bit per element: what a random drop keeps, so that it need not be drawn again.

/// The bits of a tensor's elements, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Mask {
    words: Vec<u64>,
    length: usize,
}

impl Mask {
    /// Adds the first `n` bits of `words`; those behind them in the last word are zero.
    pub(super) fn append(&mut self, words: &[u64], n: usize) {
        let shift = self.length % 64;
        self.length += n;
        if shift == 0 {
            self.words.extend_from_slice(words);
            self.words.truncate(self.length.div_ceil(64));
            return;
        }
        for word in words {
            match self.words.last_mut() {
                Some(last) => {
                    *last |= word << shift;
                    self.words.push(word >> (64 - shift));
                }
                None => self.words.push(*word),
            }
        }
        self.words.truncate(self.length.div_ceil(64));
    }

    /// The bits from element `first` on, as many as `words` has room for; zeros behind the end.
    pub(super) fn copy(&self, first: u64, words: &mut [u64]) {
        let (at, shift) = ((first / 64) as usize, first % 64);
        let word = |at: usize| self.words.get(at).copied().unwrap_or(0);
        for (i, out) in words.iter_mut().enumerate() {
            let next = if shift > 0 { word(at + i + 1) << (64 - shift) } else { 0 };
            *out = word(at + i) >> shift | next;
        }
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
            for from in [0, 1, 63, 64, 100, first - 1] {
                let mut words = [u64::MAX; 5];
                mask.copy(from as u64, &mut words);
                let kept = |i: usize| words[i / 64] >> (i % 64) & 1 == 1;
                assert!((0..320).all(|i| kept(i) == (from + i < first && bit(from + i))));
            }
        }
    }
}
