//! What dropping by rank does to a whole row at once: keys in the order of the magnitudes, coarse bins of them, and
//! draws against two bounds.

/// The range of a row's keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The least that is not zero; `u32::MAX` if all are.
    pub least: u32,
    /// The largest.
    pub most: u32,
    /// Bits that any key has.
    pub any: u32,
}

kernel! {
    /// Bit patterns of |x|, which are in the order of |x|; of f32 only.
    pub fn keys<R>(x: &[R], out: &mut [u32]) -> Range {
        let (mut below, mut most, mut any) = (u32::MAX, 0u32, 0u32);
        for (slot, x) in out.iter_mut().zip(x) {
            let key = x.to_f32().to_bits() & 0x7FFF_FFFF;
            *slot = key;
            // Zero wraps to the largest.
            below = below.min(key.wrapping_sub(1));
            most = most.max(key);
            any |= key;
        }
        Range { least: below.saturating_add(1), most, any }
    }
}

kernel! {
    /// Bin 0 for zero, 1 for keys up to `below`, then one for every 2^`shift` keys.
    pub fn bins(keys: &[u32], below: u32, shift: u32, out: &mut [u16]) {
        for (slot, key) in out.iter_mut().zip(keys) {
            let bin = 1 + (((*key).max(below) - below) >> shift);
            *slot = if *key == 0 { 0 } else { bin as u16 };
        }
    }
}

kernel! {
    /// How many keys are less than `key`, or equal and before place `at`.
    pub fn rank(keys: &[u32], at: usize) -> usize {
        let key = keys[at];
        let (before, after) = keys.split_at(at);
        let less: u32 = before.iter().map(|other| u32::from(*other <= key)).sum();
        let others: u32 = after.iter().map(|other| u32::from(*other < key)).sum();
        (less + others) as usize
    }
}

kernel! {
    /// Bits of the draws below `low`, and of those from there to below `high`.
    pub fn between(draws: &[u32], low: u64, high: u64, certain: &mut [u64], open: &mut [u64]) {
        let last = |limit: u64| (limit.max(1) - 1) as u32;
        let (low, some, high, any) = (last(low), u64::from(low > 0), last(high), u64::from(high > 0));
        for ((draws, certain), open) in draws.chunks(64).zip(certain).zip(open) {
            let (mut first, mut second) = ([0u32; 2], [0u32; 2]);
            for ((draws, first), second) in draws.chunks(32).zip(&mut first).zip(&mut second) {
                for (i, draw) in draws.iter().enumerate() {
                    *first |= u32::from(*draw <= low) << i;
                    *second |= u32::from(*draw <= high) << i;
                }
            }
            let word = |halves: [u32; 2], is: u64| (u64::from(halves[0]) | u64::from(halves[1]) << 32) * is;
            *certain = word(first, some);
            *open = word(second, any) & !*certain;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Level;

    #[test]
    fn what_each_says() {
        let x = [0.0f32, -1.5, 2.0, 0.0, 1.5, f32::MIN_POSITIVE, -0.0];
        let draws: Vec<u32> = (0..131).map(|i: u32| i.wrapping_mul(0x9E37_79B9)).collect();
        for level in Level::available() {
            let mut found = [0; 7];
            let range = keys(level, &x, &mut found);
            assert_eq!(found, x.map(|x| x.abs().to_bits()));
            assert_eq!((range.least, range.most), (f32::MIN_POSITIVE.to_bits(), 2f32.to_bits()));
            assert_eq!(keys(level, &[0f32, -0.0], &mut found[..2]).least, u32::MAX);
            assert_eq!(
                (0..7).map(|i| rank(level, &x.map(|x| x.abs().to_bits()), i)).collect::<Vec<_>>(),
                [0, 4, 6, 1, 5, 3, 2]
            );
            let mut places = [9; 4];
            bins(level, &[0, 3, 10, 27], 10, 3, &mut places);
            assert_eq!(places, [0, 1, 1, 3]);
            for (low, high) in [(0, 0), (0, 1 << 32), (1 << 30, 3 << 30), (1 << 32, 1 << 32), (7, 7)] {
                let (mut certain, mut open) = ([u64::MAX; 3], [u64::MAX; 3]);
                between(level, &draws, low, high, &mut certain, &mut open);
                for i in 0..192 {
                    let draw = draws.get(i).map(|draw| u64::from(*draw));
                    let bit = |words: &[u64]| words[i / 64] >> (i % 64) & 1 == 1;
                    assert_eq!(bit(&certain), draw.is_some_and(|draw| draw < low));
                    assert_eq!(bit(&open), draw.is_some_and(|draw| draw >= low && draw < high));
                }
            }
        }
    }
}
