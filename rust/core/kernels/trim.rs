//! Dropping elements of a difference in place, by magnitude or by draws, and what finds the magnitude to cut at.

use super::{Real, LANES};

kernel! {
    /// Zero where the score is not at least the threshold (the first `before` elements) or not above it (the others).
    pub fn keep_by_score<R>(threshold: R, before: usize, scores: &[R], x: &mut [R]) {
        let (head, tail) = x.split_at_mut(before);
        for (x, score) in head.iter_mut().zip(scores) {
            *x = if *score >= threshold { *x } else { R::ZERO };
        }
        for (x, score) in tail.iter_mut().zip(&scores[before..]) {
            *x = if *score > threshold { *x } else { R::ZERO };
        }
    }
}

kernel! {
    /// Sets bit i of `words` where draw i is below `limit`, and clears the others.
    pub fn mark_below(draws: &[u8], limit: u32, words: &mut [u64]) {
        // Compared in as many bits as a draw has; a limit of zero keeps none.
        let last = (limit.max(1) - 1) as u8;
        let none = if limit == 0 { 0 } else { u64::MAX };
        mark(draws, |draw| draw <= last, words);
        words.iter_mut().for_each(|word| *word &= none);
    }
}

kernel! {
    /// Sets bit i of `words` where draw i is `value`, and clears the others.
    pub fn mark_equal(draws: &[u8], value: u8, words: &mut [u64]) {
        mark(draws, |draw| draw == value, words);
    }
}

#[inline(always)]
#[allow(clippy::needless_range_loop)] // both arrays side by side: what makes vectors of it
fn mark(draws: &[u8], holds: impl Fn(u8) -> bool, words: &mut [u64]) {
    let (whole, rest) = draws.as_chunks::<64>();
    for (word, draws) in words.iter_mut().zip(whole) {
        let mut flags = [0u8; 64];
        for i in 0..64 {
            flags[i] = u8::from(holds(draws[i]));
        }
        *word = gather(&flags);
    }
    if !rest.is_empty() {
        let mut flags = [0u8; 64];
        for i in 0..rest.len() {
            flags[i] = u8::from(holds(rest[i]));
        }
        words[whole.len()] = gather(&flags);
    }
}

/// A bit for every flag. Eight of them at a time, by a multiplication: straight to bits there are no vectors.
#[inline(always)]
fn gather(flags: &[u8; 64]) -> u64 {
    let mut word = 0;
    for (i, eight) in flags.as_chunks::<8>().0.iter().enumerate() {
        word |= (u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * i);
    }
    word
}

/// Where the magnitudes of a tile lie beside a bracket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Above it.
    pub above: u64,
    /// At its upper end.
    pub at_high: u64,
    /// At its lower end.
    pub at_low: u64,
}

kernel! {
    /// Counts |x − y| beside the bracket between two ends, and lists those within it that are at neither end; without
    /// `y`, |x|.
    pub fn bracket<R>(x: &[R], y: Option<&[R]>, ends: (R, R), inside: &mut Vec<R>) -> Counts {
        let (low, high) = ends;
        let zeros = [R::ZERO; 64];
        let (whole, rest) = x.as_chunks::<64>();
        let (subtrahends, subtrahends_rest) = y.unwrap_or(&[]).as_chunks::<64>();
        let mut counts = [[0u32; LANES]; 3];
        for (at, x) in whole.iter().enumerate() {
            beside(x, subtrahends.get(at).unwrap_or(&zeros), (low, high), &mut counts, inside);
        }
        let mut sums = [0u64; 3];
        for (sum, counts) in sums.iter_mut().zip(&counts) {
            *sum = counts.iter().map(|count| u64::from(*count)).sum();
        }
        for (i, x) in rest.iter().enumerate() {
            let x = subtrahends_rest.get(i).map_or(*x, |y| *x - *y).abs();
            sums[0] += u64::from(x > high);
            sums[1] += u64::from(x == high);
            sums[2] += u64::from(x == low);
            if x > low && x < high {
                inside.push(x);
            }
        }
        Counts { above: sums[0], at_high: sums[1], at_low: sums[2] }
    }
}

#[inline(always)]
#[allow(clippy::needless_range_loop)] // lanes side by side in all arrays: what makes vectors of it
fn beside<R: Real>(x: &[R; 64], y: &[R; 64], (low, high): (R, R), counts: &mut [[u32; LANES]; 3], inside: &mut Vec<R>) {
    let (mut sizes, mut flags) = ([R::ZERO; 64], [0u8; 64]);
    for lane in 0..LANES {
        for i in 0..64 / LANES {
            let size = (x[i * LANES + lane] - y[i * LANES + lane]).abs();
            counts[0][lane] += u32::from(size > high);
            counts[1][lane] += u32::from(size == high);
            counts[2][lane] += u32::from(size == low);
            sizes[i * LANES + lane] = size;
            flags[i * LANES + lane] = u8::from((size > low) & (size < high));
        }
    }
    let mut left = gather(&flags);
    while left != 0 {
        inside.push(sizes[left.trailing_zeros() as usize]);
        left &= left - 1;
    }
}

kernel! {
    /// How many x are not zero.
    pub fn count_nonzero<R>(x: &[R]) -> u64 {
        x.iter().map(|x| u32::from(*x != R::ZERO)).sum::<u32>().into()
    }
}
