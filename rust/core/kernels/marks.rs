//! Which elements of a tile have changed: a bit each, from which their places follow. Where one element in seven has, as
//! after reinforcement learning, what looks at these alone takes a fraction of what a look at all would.

use super::real::TILE;

/// Elements of a word of marks.
pub(crate) const WORD: usize = 64;

/// The marks of a word's elements. Over a whole word the compiler makes vectors of this; with a length that it does not
/// know it does not, at five times the cost.
#[inline(always)]
fn word(elements: usize, is: impl Fn(usize) -> bool) -> u64 {
    let mut marks = 0;
    for i in 0..elements {
        marks |= u64::from(is(i)) << i;
    }
    marks
}

kernel! {
    /// Marks the elements that are not zero; `out` has a word for each 64 elements or part of them, whose rest is zero.
    pub(crate) fn not_zero<R>(values: &[R], out: &mut [u64]) {
        let (whole, rest) = values.as_chunks::<WORD>();
        let (words, last) = out.split_at_mut(whole.len());
        for (slot, values) in words.iter_mut().zip(whole) {
            *slot = word(WORD, |i| values[i] != R::ZERO);
        }
        last.fill(word(rest.len(), |i| rest[i] != R::ZERO));
    }
}

kernel! {
    /// Marks the elements whose difference is not zero, or whose donor has other bits than its reference: for all others
    /// there is nothing that a type does not hold, or that reference + δ does not give back.
    pub(crate) fn differing(donor: &[f64], reference: &[f64], delta: &[f64], out: &mut [u64]) {
        let (donor, donor_rest) = donor.as_chunks::<WORD>();
        let (reference, reference_rest) = reference.as_chunks::<WORD>();
        let (delta, rest) = delta.as_chunks::<WORD>();
        let is = |d: f64, r: f64, x: f64| (x != 0.0) | (d.to_bits() != r.to_bits());
        let (words, last) = out.split_at_mut(delta.len());
        for (((slot, d), r), x) in words.iter_mut().zip(donor).zip(reference).zip(delta) {
            *slot = word(WORD, |i| is(d[i], r[i], x[i]));
        }
        last.fill(word(rest.len(), |i| is(donor_rest[i], reference_rest[i], rest[i])));
    }
}

/// How many are marked.
pub(crate) fn marked(marks: &[u64]) -> usize {
    marks.iter().map(|word| word.count_ones() as usize).sum()
}

/// Places of a tile, with room behind them.
pub(crate) type Places = [u32; 2 * TILE];

/// Places that are written at once, wanted or not: one branch that is mispredicted for so many.
const ROUND: usize = 8;

kernel! {
    /// The places of the marked elements of a tile, in order; returns how many there are, behind which is anything.
    pub(crate) fn places(marks: &[u64], out: &mut Places) -> usize {
        let mut count = 0;
        for (word, marks) in marks.iter().take(TILE / WORD).enumerate() {
            let first = (word * WORD) as u32;
            let (mut left, mut at) = (*marks, count);
            count += marks.count_ones() as usize;
            while at < count {
                for i in 0..ROUND {
                    // Never beyond the end; the compiler does not see it, and would look each time.
                    out[(at + i) % (2 * TILE)] = first + left.trailing_zeros();
                    left &= left.wrapping_sub(1);
                }
                at += ROUND;
            }
        }
        count
    }
}

/// Moves the elements at `places`, which ascend, to the front.
pub(crate) fn gather<T: Copy>(values: &mut [T], places: &[u32]) {
    for (count, place) in places.iter().enumerate() {
        values[count] = values[*place as usize];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Level;

    /// Every third element and the last are not zero, for lengths around the borders of steps and words.
    fn values(n: usize) -> Vec<f64> {
        (0..n).map(|i| if i % 3 == 1 || i + 1 == n { i as f64 - 0.5 } else { [0.0, -0.0][i % 2] }).collect()
    }

    #[test]
    fn marks_are_those_of_one_element_after_the_other() {
        for level in Level::available() {
            for n in [0, 1, 7, 8, 9, 63, 64, 65, 127, 200, 512] {
                let values = values(n);
                let mut marks = vec![!0; n.div_ceil(WORD)];
                not_zero(level, &values, &mut marks);
                let wanted: Vec<u32> = (0..n as u32).filter(|i| values[*i as usize] != 0.0).collect();
                let mut found = [0; 2 * TILE];
                let count = places(level, &marks, &mut found);
                assert_eq!(&found[..count], &wanted[..], "{n}");
                assert_eq!(marked(&marks), wanted.len());
                let singles: Vec<f32> = values.iter().map(|x| *x as f32).collect();
                let mut same = vec![0; marks.len()];
                not_zero(level, &singles, &mut same);
                assert_eq!(same, marks);
                let mut moved = values.clone();
                gather(&mut moved, &found[..count]);
                let kept: Vec<f64> = values.iter().copied().filter(|x| *x != 0.0).collect();
                assert_eq!(&moved[..count], &kept[..]);
            }
        }
    }

    #[test]
    fn all_of_a_tile() {
        for level in Level::available() {
            let mut marks = [0; TILE / WORD];
            not_zero(level, &[1.0f64; TILE], &mut marks);
            let mut found = [0; 2 * TILE];
            assert_eq!((places(level, &marks, &mut found), marks), (TILE, [!0; TILE / WORD]));
            assert!(found[..TILE].iter().zip(0..).all(|(place, i)| *place == i));
        }
    }

    #[test]
    fn other_bits_are_marked_where_the_difference_is_zero() {
        for level in Level::available() {
            let infinity = f64::INFINITY;
            let donor = [0.0, -0.0, 0.0, 1.5, 2.0, infinity, f64::NAN];
            let reference = [0.0, 0.0, -0.0, 1.5, 1.0, infinity, 1.0];
            let delta: Vec<f64> = donor.iter().zip(reference).map(|(d, r)| d - r).collect();
            let mut marks = [0];
            differing(level, &donor, &reference, &delta, &mut marks);
            assert_eq!(marks, [0b111_0110]);
        }
    }
}
