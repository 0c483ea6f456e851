//! Ranks of a row's elements by magnitude, from the smallest; equal magnitudes by index.
//!
//! Zeros come first as they are met: most of an RL difference. The others are sorted by the part of the bit pattern in
//! which they differ, a dozen bits in a row of bf16 differences, with its index below it in one integer.

use std::cell::RefCell;

use crate::kernels::Real;

/// Bits sorted by in one pass: the counters stay in the first-level cache.
const DIGIT: u32 = 11;
/// Fewer than this are compared.
const FEW: usize = 256;

/// Loan, reused from row to row.
#[derive(Default)]
struct Ranker {
    keys: Vec<u64>,
    sorted: Vec<u64>,
    counters: Vec<u32>,
}

thread_local! {
    static RANKER: RefCell<Ranker> = RefCell::default();
}

/// Calls `each` with every element's index and its rank, in no particular order.
pub(super) fn ranks<R: Real>(row: &[R], each: impl FnMut(usize, usize)) {
    RANKER.with(|ranker| ranker.borrow_mut().ranks(row, each));
}

impl Ranker {
    fn ranks<R: Real>(&mut self, row: &[R], mut each: impl FnMut(usize, usize)) {
        let (mut any, mut least, mut most) = (0u64, u64::MAX, 0u64);
        for x in row {
            let bits = x.magnitude_bits();
            any |= bits;
            least = least.min(if bits == 0 { u64::MAX } else { bits });
            most = most.max(bits);
        }
        let (below, shift) = (least.min(most), any.trailing_zeros() % 64);
        let width = 64 - ((most - below) >> shift).leading_zeros();
        let mut zeros = 0;
        if width > 32 {
            let mut order: Vec<(u64, usize)> = row.iter().map(|x| x.magnitude_bits()).zip(0..).collect();
            order.sort_unstable();
            order.iter().enumerate().for_each(|(rank, (_, index))| each(*index, rank));
            return;
        }
        self.keys.clear();
        for (index, x) in row.iter().enumerate() {
            let bits = x.magnitude_bits();
            if bits == 0 {
                each(index, zeros);
                zeros += 1;
            } else {
                self.keys.push(((bits - below) >> shift) << 32 | index as u64);
            }
        }
        if self.keys.len() < FEW {
            self.keys.sort_unstable();
        } else {
            self.radix(width);
        }
        self.keys.iter().enumerate().for_each(|(rank, key)| each(*key as u32 as usize, zeros + rank));
    }

    /// Sorts by the `width` bits above the index, which is in order already.
    fn radix(&mut self, width: u32) {
        let passes = width.div_ceil(DIGIT);
        let digit = width.div_ceil(passes.max(1));
        let mask = (1usize << digit) - 1;
        self.sorted.resize(self.keys.len(), 0);
        for pass in 0..passes {
            let place = |key: u64| (key >> (32 + pass * digit)) as usize & mask;
            self.counters.clear();
            self.counters.resize(mask + 1, 0);
            self.keys.iter().for_each(|key| self.counters[place(*key)] += 1);
            let mut start = 0;
            for counter in &mut self.counters {
                (start, *counter) = (start + *counter, start);
            }
            for key in &self.keys {
                let counter = &mut self.counters[place(*key)];
                self.sorted[*counter as usize] = *key;
                *counter += 1;
            }
            std::mem::swap(&mut self.keys, &mut self.sorted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same_as_sorted<R: Real>(row: &[R]) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by_key(|i| (row[*i].magnitude_bits(), *i));
        let mut want = vec![0; row.len()];
        order.iter().enumerate().for_each(|(rank, i)| want[*i] = rank);
        let mut got = vec![usize::MAX; row.len()];
        ranks(row, |i, rank| got[i] = rank);
        assert_eq!(got, want);
    }

    #[test]
    fn ranks_are_those_of_a_stable_sort() {
        let value = |i: usize| ((i * 7919 % 1009) as f32 - 500.0) * 1e-4;
        let lengths = [0, 1, 2, 3, 255, 256, 257, 896, 5000];
        for n in lengths.into_iter().take(if cfg!(miri) { 6 } else { lengths.len() }) {
            same_as_sorted(&vec![0f32; n]);
            same_as_sorted(&vec![-2.5f32; n]);
            same_as_sorted(&(0..n).map(value).collect::<Vec<f32>>());
            same_as_sorted(&(0..n).map(|i| if i % 3 == 0 { value(i) } else { 0.0 }).collect::<Vec<f32>>());
            same_as_sorted(&(0..n).map(|i| f64::from(value(i)).exp()).collect::<Vec<f64>>());
            same_as_sorted(
                &(0..n).map(|i| f32::from_bits((i as u32).wrapping_mul(0x9E37_79B9) >> 1)).collect::<Vec<f32>>(),
            );
        }
    }
}
