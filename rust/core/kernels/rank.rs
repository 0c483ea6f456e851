//! What dropping by rank does to a whole row at once: keys in the order of the magnitudes, coarse bins of them, and
//! draws against two limits for each bin.

/// The range of a row's keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Range {
    /// The least that is not zero; `u32::MAX` if all are.
    pub least: u32,
    /// The largest.
    pub most: u32,
    /// Bits that any key has.
    pub any: u32,
}

kernel! {
    /// Bit patterns of |x|, which are in the order of |x|; of f32 only.
    pub(crate) fn keys<R>(x: &[R], out: &mut [u32]) -> Range {
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
    pub(crate) fn bins(keys: &[u32], below: u32, shift: u32, out: &mut [u16]) {
        for (slot, key) in out.iter_mut().zip(keys) {
            let bin = 1 + (((*key).max(below) - below) >> shift);
            *slot = if *key == 0 { 0 } else { bin as u16 };
        }
    }
}

kernel! {
    /// How many keys are less than `key`, or equal and before place `at`.
    pub(crate) fn rank(keys: &[u32], at: usize) -> usize {
        let key = keys[at];
        let (before, after) = keys.split_at(at);
        let less: u32 = before.iter().map(|other| u32::from(*other <= key)).sum();
        let others: u32 = after.iter().map(|other| u32::from(*other < key)).sum();
        (less + others) as usize
    }
}

kernel! {
    /// How many bins before place `at` are the one there.
    pub(crate) fn equal_before(bins: &[u16], at: usize) -> usize {
        let bin = bins[at];
        bins[..at].iter().map(|other| u32::from(*other == bin)).sum::<u32>() as usize
    }
}

/// Two limits of a draw for every bin, of both the upper 16 bits.
pub(crate) type Limits = [u32; 1 << 13];

/// Limits that a draw of [`sort_out`] is held against: below `first` it is certainly in, from `last` on certainly out.
pub(crate) fn limits(first: u64, last: u64) -> u32 {
    let upper = |limit: u64| (limit >> 16).min(0xFFFF) as u32;
    upper(first) | upper(last.max(1) - 1) << 16
}

kernel! {
    /// Bits of the draws that are certainly below what belongs to their bin, and of those that may be.
    pub(crate) fn sort_out(draws: &[u32], bins: &[u16], limits: &Limits, certain: &mut [u64], perhaps: &mut [u64]) {
        let (draws, draws_rest) = draws.as_chunks::<64>();
        let (bins, bins_rest) = bins.as_chunks::<64>();
        for (((draws, bins), certain), perhaps) in draws.iter().zip(bins).zip(&mut *certain).zip(&mut *perhaps) {
            word(draws, bins, limits, (certain, perhaps));
        }
        if let (Some(certain), Some(perhaps)) = (certain.get_mut(draws.len()), perhaps.get_mut(draws.len())) {
            let (mut last, mut last_bins) = ([u32::MAX; 64], [0; 64]);
            last[..draws_rest.len()].copy_from_slice(draws_rest);
            last_bins[..bins_rest.len()].copy_from_slice(bins_rest);
            word(&last, &last_bins, limits, (certain, perhaps));
            let there = (1 << draws_rest.len()) - 1;
            (*certain, *perhaps) = (*certain & there, *perhaps & there);
        }
    }
}

#[inline(always)]
fn word(draws: &[u32; 64], bins: &[u16; 64], limits: &Limits, (certain, perhaps): (&mut u64, &mut u64)) {
    let (mut below, mut not_above) = ([0u32; 2], [0u32; 2]);
    for half in 0..2 {
        for i in 0..32 {
            let limits = limits[usize::from(bins[half * 32 + i]) % limits.len()];
            let draw = draws[half * 32 + i] >> 16;
            below[half] |= u32::from(draw < limits & 0xFFFF) << i;
            not_above[half] |= u32::from(draw <= limits >> 16) << i;
        }
    }
    let word = |halves: [u32; 2]| u64::from(halves[0]) | u64::from(halves[1]) << 32;
    *certain = word(below);
    *perhaps = word(not_above) & !*certain;
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
            assert_eq!((0..5).map(|i| equal_before(level, &[3, 3, 0, 3, 0], i)).collect::<Vec<_>>(), [0, 1, 0, 2, 1]);
            let mut places = [9; 4];
            bins(level, &[0, 3, 10, 27], 10, 3, &mut places);
            assert_eq!(places, [0, 1, 1, 3]);
            let ends = [(0, 0), (0, 1 << 32), (1 << 30, 3 << 30), (1 << 32, 1 << 32), (7, 5 << 30)];
            let mut table = [0; 1 << 13];
            ends.iter().zip(&mut table).for_each(|((first, last), slot)| *slot = limits(*first, *last));
            let bins: Vec<u16> = (0..131).map(|i| i * 7 % 5).collect();
            let (mut certain, mut perhaps) = ([u64::MAX; 3], [u64::MAX; 3]);
            sort_out(level, &draws, &bins, &table, &mut certain, &mut perhaps);
            let bit = |words: &[u64], i: usize| words[i / 64] >> (i % 64) & 1 == 1;
            for (i, (draw, bin)) in draws.iter().zip(&bins).enumerate() {
                let (first, last) = ends[usize::from(*bin)];
                let (draw, near) = (u64::from(*draw), |limit: u64| u64::from(*draw).abs_diff(limit) <= 1 << 16);
                assert!(bit(&certain, i) == (draw < first) || near(first) && bit(&perhaps, i), "{draw} {first}");
                assert!(bit(&certain, i) || bit(&perhaps, i) == (draw < last) || near(last), "{draw} {last}");
                assert!(bit(&certain, i) || bit(&perhaps, i) || draw >= last, "{draw} {last}");
            }
            assert!((131..192).all(|i| !bit(&certain, i) && !bit(&perhaps, i)));
        }
    }
}
