//! What groups hold: their largest numbers, their range, and whether anything in them has changed.
//!
//! A row begins with the first element of a group; the last group may be short.

use crate::kernels::real::LANES;

/// What a group holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    /// The largest finite number, or 0.
    pub high: f32,
    /// The largest finite magnitude of a number below zero, or 0.
    pub low: f32,
    /// Some element is not, bit for bit, what the target has.
    pub changed: bool,
    /// Elements that are not finite.
    pub non_finite: u32,
    /// The smallest and the largest finite number, where [`range`] has looked and there is one.
    pub range: Option<[f32; 2]>,
}

impl Seen {
    /// The largest finite magnitude.
    pub(crate) fn amax(&self) -> f32 {
        self.high.max(self.low)
    }

    /// Adds what another part of the group holds.
    pub(crate) fn merge(&mut self, other: &Seen) {
        self.high = self.high.max(other.high);
        self.low = self.low.max(other.low);
        self.changed |= other.changed;
        self.non_finite += other.non_finite;
        self.range = match (self.range, other.range) {
            (Some([a, b]), Some([c, d])) => Some([a.min(c), b.max(d)]),
            (one, another) => one.or(another),
        };
    }
}

kernel! {
    /// Adds to `seen` what the groups of `wide` elements hold; `target` is what they would be unchanged.
    pub(crate) fn look(x: &[f32], target: &[f32], wide: usize, seen: &mut [Seen]) {
        for ((x, t), seen) in x.chunks(wide).zip(target.chunks(wide)).zip(seen) {
            let (mut high, mut low) = ([0f32; LANES], [0f32; LANES]);
            let (mut other, mut bad) = ([0u32; LANES], [0u32; LANES]);
            let mut add = |x: &[f32; LANES], t: &[f32; LANES]| {
                for lane in 0..LANES {
                    let finite = x[lane].abs() < f32::INFINITY;
                    let value = if finite { x[lane] } else { 0.0 };
                    high[lane] = if value > high[lane] { value } else { high[lane] };
                    low[lane] = if -value > low[lane] { -value } else { low[lane] };
                    other[lane] |= x[lane].to_bits() ^ t[lane].to_bits();
                    bad[lane] += u32::from(!finite);
                }
            };
            let (whole, rest) = x.as_chunks::<LANES>();
            let (whole_t, rest_t) = t.as_chunks::<LANES>();
            for (x, t) in whole.iter().zip(whole_t) {
                add(x, t);
            }
            if !rest.is_empty() {
                let (mut x, mut t) = ([0f32; LANES], [0f32; LANES]);
                x[..rest.len()].copy_from_slice(rest);
                t[..rest.len()].copy_from_slice(rest_t);
                add(&x, &t);
            }
            seen.merge(&Seen {
                high: high.iter().fold(0.0, |a: f32, b| a.max(*b)),
                low: low.iter().fold(0.0, |a: f32, b| a.max(*b)),
                changed: other.iter().fold(0, |a, b| a | b) != 0,
                non_finite: bad.iter().sum(),
                range: None,
            });
        }
    }
}

kernel! {
    /// Adds to `seen` the smallest and the largest finite number of each group of `wide` elements.
    pub(crate) fn range(x: &[f32], wide: usize, seen: &mut [Seen]) {
        for (x, seen) in x.chunks(wide).zip(seen) {
            let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
            let (whole, rest) = x.as_chunks::<LANES>();
            let mut add = |lane: usize, x: f32| {
                let finite = x.abs() < f32::INFINITY;
                low[lane] = if finite && x < low[lane] { x } else { low[lane] };
                high[lane] = if finite && x > high[lane] { x } else { high[lane] };
            };
            for x in whole {
                x.iter().enumerate().for_each(|(lane, x)| add(lane, *x));
            }
            rest.iter().enumerate().for_each(|(lane, x)| add(lane, *x));
            let low = low.iter().fold(f32::INFINITY, |a: f32, b| a.min(*b));
            let high = high.iter().fold(f32::NEG_INFINITY, |a: f32, b| a.max(*b));
            let found = (low <= high).then_some([low, high]);
            seen.merge(&Seen { range: found, ..Seen::default() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::quantise::samples::numbers;
    use crate::kernels::Level;

    #[test]
    fn the_range_of_a_group_is_that_of_its_finite_numbers() {
        let numbers: Vec<f32> = numbers().into_iter().step_by(131).collect();
        for (level, wide) in Level::available().iter().flat_map(|level| [1, 3, 16, 32, 100].map(|wide| (*level, wide)))
        {
            let x = &numbers[..];
            let mut seen = vec![Seen::default(); x.len().div_ceil(wide)];
            range(level, x, wide, &mut seen);
            for (seen, group) in seen.iter().zip(x.chunks(wide)) {
                let finite: Vec<f32> = group.iter().copied().filter(|x| x.is_finite()).collect();
                let edges = finite.iter().fold(None, |edges: Option<[f32; 2]>, x| match edges {
                    None => Some([*x, *x]),
                    Some([low, high]) => Some([low.min(*x), high.max(*x)]),
                });
                assert_eq!(seen.range, edges);
            }
        }
    }
}
