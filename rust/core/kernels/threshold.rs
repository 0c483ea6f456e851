//! Dropping elements of a difference in place, by magnitude or by draws, and what finds the magnitude to cut at.

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

/// How many magnitudes of a tile lie where in relation to a bracket.
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
    /// Counts |x| in relation to the bracket between two ends, and lists those within it that are at neither end.
    pub fn bracket<R>(x: &[R], ends: (R, R), inside: &mut Vec<R>) -> Counts {
        let (low, high) = ends;
        let (mut above, mut at_high, mut at_low) = (0u32, 0u32, 0u32);
        // A one that the compiler does not know: then it counts with one instruction instead of two.
        let one = std::hint::black_box(1u32);
        for x in x {
            let x = x.abs();
            above += if x > high { one } else { 0 };
            at_high += if x == high { one } else { 0 };
            at_low += if x == low { one } else { 0 };
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
    /// How many x are not zero.
    pub(crate) fn count_nonzero<R>(x: &[R]) -> u64 {
        x.iter().map(|x| u32::from(*x != R::ZERO)).sum::<u32>().into()
    }
}
