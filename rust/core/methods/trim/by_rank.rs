//! Dropping at random with a probability that falls with the rank: the bits of what a row keeps.
//!
//! A histogram of the row says between which ranks an element stands, which mostly settles whether its draw is low
//! enough; only where it does not is the rank itself looked for. Sorting every row, which this replaced, took more than
//! twice as long.

use std::cell::RefCell;

use super::ranks::ranks;
use crate::kernels::rank::{bins, equal_before, keys, limits as bounds, rank, sort_out, Limits};
use crate::kernels::{Level, Real};

/// Shorter rows are sorted.
const SHORT: usize = 256;
/// In longer rows counting what is before an element takes longer than counting along.
const LONG: usize = 1 << 14;
/// Where more elements than this are left open, the row is sorted: each takes a pass over the row, and one element far
/// above the others, which then share a bin, leaves a third of them open.
const OPEN: u32 = 512;
/// Elements after which is written down how many of every bin have passed.
const STEP: usize = 256;
/// Octaves below the largest magnitude that are told apart; what is smaller shares a bin.
const OCTAVES: u32 = 8;
/// Most bits of a bin's number: the counters stay in the first-level cache.
const BITS: (u32, u32) = (8, 12);

/// Loan, reused from row to row.
#[derive(Default)]
struct Row {
    keys: Vec<u32>,
    bins: Vec<u16>,
    /// First rank of every bin.
    starts: Vec<u32>,
    /// How many elements of every bin there are before every [`STEP`].
    passed: Vec<u32>,
    limits: Option<Box<Limits>>,
    open: Vec<u64>,
}

thread_local! {
    static ROW: RefCell<Row> = RefCell::default();
}

/// Sets the bits of `words` where `draws[i]` is below `limits[rank of row[i]]`, and clears the others; ranks are by
/// magnitude, from the smallest, equal ones by index. The limits do not fall.
pub(super) fn keep<R: Real>(level: Level, row: &[R], draws: &[u32], limits: &[u64], words: &mut [u64]) {
    if R::IS_F32 && row.len() >= SHORT {
        ROW.with(|buffers| buffers.borrow_mut().keep(level, row, draws, limits, words));
        return;
    }
    sorted(row, draws, limits, words);
}

fn sorted<R: Real>(row: &[R], draws: &[u32], limits: &[u64], words: &mut [u64]) {
    words.fill(0);
    ranks(row, |i, rank| words[i / 64] |= u64::from(u64::from(draws[i]) < limits[rank]) << (i % 64));
}

impl Row {
    fn keep<R: Real>(&mut self, level: Level, row: &[R], draws: &[u32], limits: &[u64], words: &mut [u64]) {
        let n = row.len();
        self.keys.resize(n, 0);
        self.bins.resize(n, 0);
        let range = keys(level, row, &mut self.keys);
        let bits = (usize::BITS - n.leading_zeros()).clamp(BITS.0, BITS.1);
        let width = |below: u32, shift: u32| 32 - (range.most.saturating_sub(below) >> shift).leading_zeros();
        let common = range.any.trailing_zeros() % 32;
        let is_exact = width(range.least.min(range.most), common) <= bits;
        let (below, shift) = if is_exact {
            (range.least.min(range.most), common)
        } else {
            let below = range.least.max(range.most.saturating_sub(OCTAVES << 23));
            (below, width(below, 0).saturating_sub(bits))
        };
        bins(level, &self.keys, below, shift, &mut self.bins);
        let count = 2 + ((range.most.max(below) - below) >> shift) as usize;
        let counts_along = is_exact && n > LONG;
        self.count(count, is_exact && !counts_along);
        if counts_along {
            self.in_order(draws, limits, words);
            return;
        }
        let table = self.limits.get_or_insert_with(|| Box::new([0; 1 << 13]));
        for (slot, pairs) in table.iter_mut().zip(self.starts.windows(2)) {
            let (first, next) = (pairs[0] as usize, pairs[1] as usize);
            *slot = bounds(limits[first.min(n - 1)], limits[next.max(1) - 1]);
        }
        self.open.resize(words.len(), 0);
        sort_out(level, draws, &self.bins, table, words, &mut self.open);
        if !is_exact && self.open.iter().map(|word| word.count_ones()).sum::<u32>() > OPEN {
            sorted(row, draws, limits, words);
            return;
        }
        for (place, (word, open)) in words.iter_mut().zip(&self.open).enumerate() {
            for i in ones(*open) {
                let at = place * 64 + i;
                let rank = if is_exact {
                    let (bin, start) = (usize::from(self.bins[at]), at / STEP * STEP);
                    let before = self.starts[bin] + self.passed[at / STEP * count + bin];
                    before as usize + equal_before(level, &self.bins[start..], at - start)
                } else {
                    rank(level, &self.keys, at)
                };
                *word |= u64::from(u64::from(draws[at]) < limits[rank]) << i;
            }
        }
    }

    /// Where every bin is one magnitude, so that its elements' ranks are in the order of their indices: one after the
    /// other.
    fn in_order(&mut self, draws: &[u32], limits: &[u64], words: &mut [u64]) {
        for ((word, bins), draws) in words.iter_mut().zip(self.bins.chunks(64)).zip(draws.chunks(64)) {
            *word = 0;
            for (i, (bin, draw)) in bins.iter().zip(draws).enumerate() {
                let rank = &mut self.starts[usize::from(*bin)];
                *word |= u64::from(u64::from(*draw) < limits[*rank as usize]) << i;
                *rank += 1;
            }
        }
    }

    /// First ranks of `count` bins, and behind the last; how many of each there were at every [`STEP`] if `passed`.
    fn count(&mut self, count: usize, passed: bool) {
        self.starts.clear();
        self.starts.resize(count + 1, 0);
        self.passed.clear();
        for bins in self.bins.chunks(STEP) {
            if passed {
                self.passed.extend_from_slice(&self.starts[1..]);
            }
            bins.iter().for_each(|bin| self.starts[usize::from(*bin) + 1] += 1);
        }
        let mut sum = 0;
        for start in &mut self.starts {
            sum += *start;
            *start = sum;
        }
    }
}

/// The places of the ones in a word, from the lowest.
fn ones(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = word.trailing_zeros() as usize;
        let some = word != 0;
        word &= word.wrapping_sub(1);
        some.then_some(place)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_sorting_says() {
        let value = |i: usize| ((i * 7919 % 1009) as f32 - 500.0) * 1e-4;
        let wide = |i: usize| f32::from_bits((i as u32).wrapping_mul(0x9E37_79B9) >> 1 & 0x7F7F_FFFF);
        let lengths = [1usize, 2, 255, 256, 257, 896, 4864, 5000, LONG + 1];
        for n in lengths.into_iter().take(if cfg!(miri) { 3 } else { lengths.len() }) {
            let rows: [Vec<f32>; 7] = [
                (0..n).map(|i| if i == n / 2 { 1e6 } else { value(i).exp() }).collect(),
                vec![0.0; n],
                vec![-2.5; n],
                (0..n).map(value).collect(),
                (0..n).map(|i| if i % 7 == 0 { value(i) } else { 0.0 }).collect(),
                (0..n).map(wide).collect(),
                (0..n).map(|i| value(i).exp() * if i % 2 == 0 { 1.0 } else { -1.0 }).collect(),
            ];
            let draws: Vec<u32> = (0..n as u32).map(|i| i.wrapping_mul(0x85EB_CA6B) ^ i << 13).collect();
            for (low, high) in [(0.35, 0.65), (0.0, 1.0), (0.5, 0.5), (0.0, 0.2), (0.9, 1.0)] {
                let limit = |rank: usize| low + (high - low) * rank as f64 / n.max(2) as f64;
                let limits: Vec<u64> = (0..n).map(|rank| (limit(rank) * 4_294_967_296.0) as u64).collect();
                for row in &rows {
                    let mut want = vec![0u64; n.div_ceil(64)];
                    ranks(row, |i, rank| {
                        want[i / 64] |= u64::from(u64::from(draws[i]) < limits[rank]) << (i % 64);
                    });
                    for level in Level::available() {
                        let mut got = vec![u64::MAX; n.div_ceil(64)];
                        keep(level, row, &draws, &limits, &mut got);
                        assert_eq!(got, want, "{n} {low} {high} {}", level.name());
                    }
                }
            }
        }
    }
}
