//! Dropping elements of a difference in place, by magnitude or by draws, and what finds the magnitude to cut at.

use super::TILE;

kernel! {
    /// Zero where |x| is not at least the threshold (the first `before` elements) or not above it (the others).
    pub fn keep_largest<R>(threshold: R, before: usize, x: &mut [R]) {
        let (head, tail) = x.split_at_mut(before);
        head.iter_mut().for_each(|x| *x = if x.abs() >= threshold { *x } else { R::ZERO });
        tail.iter_mut().for_each(|x| *x = if x.abs() > threshold { *x } else { R::ZERO });
    }
}

kernel! {
    /// Zero where |x| is at least the threshold (the first `before` elements) or above it (the others).
    pub fn drop_largest<R>(threshold: R, before: usize, x: &mut [R]) {
        let (head, tail) = x.split_at_mut(before);
        head.iter_mut().for_each(|x| *x = if x.abs() >= threshold { R::ZERO } else { *x });
        tail.iter_mut().for_each(|x| *x = if x.abs() > threshold { R::ZERO } else { *x });
    }
}

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
    pub fn mark_below(draws: &[u16], limit: u32, words: &mut [u64]) {
        // Compared in as many bits as a draw has; a limit of zero keeps none.
        let last = (limit.max(1) - 1) as u16;
        let none = if limit == 0 { 0 } else { u64::MAX };
        for (words, draws) in words.chunks_mut(TILE / 64).zip(draws.chunks(TILE)) {
            // By way of bytes, eight of which a multiplication gathers: straight to bits there are no vectors.
            let mut flags = [0u8; TILE];
            flags.iter_mut().zip(draws).for_each(|(flag, draw)| *flag = u8::from(*draw <= last));
            for (word, flags) in words.iter_mut().zip(flags.as_chunks::<64>().0) {
                *word = 0;
                for (i, eight) in flags.as_chunks::<8>().0.iter().enumerate() {
                    *word |= (u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * i);
                }
                *word &= none;
            }
        }
    }
}

/// One bit per element, in halves that fit a vector's lanes.
#[inline(always)]
fn bits<T>(x: &[T; 64], holds: impl Fn(&T) -> bool) -> u64 {
    let mut halves = [0u32; 2];
    for (half, x) in halves.iter_mut().zip(x.chunks_exact(32)) {
        for (i, x) in x.iter().enumerate() {
            *half |= u32::from(holds(x)) << i;
        }
    }
    u64::from(halves[0]) | u64::from(halves[1]) << 32
}

kernel! {
    /// Zero where bit `from + i` is not set.
    pub fn keep_marked<R>(words: &[u64], from: usize, x: &mut [R]) {
        let (mut at, shift) = (from / 64, from % 64);
        for x in x.chunks_mut(64) {
            let next = if shift > 0 { words.get(at + 1).map_or(0, |next| next << (64 - shift)) } else { 0 };
            let word = words[at] >> shift | next;
            at += 1;
            for (half, x) in [word as u32, (word >> 32) as u32].into_iter().zip(x.chunks_mut(32)) {
                for (i, x) in x.iter_mut().enumerate() {
                    *x = if half & 1 << i != 0 { *x } else { R::ZERO };
                }
            }
        }
    }
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
    /// Counts |x| beside the bracket `low ..= high`, and lists those within it that are at neither end.
    pub fn bracket<R>(x: &[R], low: R, high: R, inside: &mut Vec<R>) -> Counts {
        let (mut above, mut at_high, mut at_low) = (0u32, 0u32, 0u32);
        for x in x {
            let x = x.abs();
            above += u32::from(x > high);
            at_high += u32::from(x == high);
            at_low += u32::from(x == low);
        }
        let (whole, rest) = x.as_chunks::<64>();
        for x in whole {
            let mut left = bits(x, |x| (x.abs() > low) & (x.abs() < high));
            while left != 0 {
                inside.push(x[left.trailing_zeros() as usize].abs());
                left &= left - 1;
            }
        }
        inside.extend(rest.iter().map(|x| x.abs()).filter(|x| *x > low && *x < high));
        Counts { above: u64::from(above), at_high: u64::from(at_high), at_low: u64::from(at_low) }
    }
}

kernel! {
    /// How many |x| are `value`.
    pub fn count_magnitude<R>(x: &[R], value: R) -> u64 {
        x.iter().map(|x| u32::from(x.abs() == value)).sum::<u32>().into()
    }
}

kernel! {
    /// How many x are not zero.
    pub fn count_nonzero<R>(x: &[R]) -> u64 {
        x.iter().map(|x| u32::from(*x != R::ZERO)).sum::<u32>().into()
    }
}
