//! What a difference needs to be stored without loss.

use super::combine::CANCELLED;
use super::real::{Real, LANES};

/// Facts about the differences of one chunk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Facts {
    /// Elements that are not zero.
    pub changed: u64,
    /// Elements that reference + δ does not give back; see [`lost`].
    pub lost: u64,
    /// Every element is exact in BF16.
    pub bf16: bool,
    /// Every element is exact in F16.
    pub f16: bool,
    /// Every element is exact in F32.
    pub f32: bool,
    /// Σ δ².
    pub square: f64,
    /// max |δ|.
    pub largest: f64,
}

impl Default for Facts {
    fn default() -> Self {
        Facts { changed: 0, lost: 0, bf16: true, f16: true, f32: true, square: 0.0, largest: 0.0 }
    }
}

impl Facts {
    /// Adds those of the chunk that follows.
    pub(crate) fn merge(&mut self, other: &Facts) {
        self.changed += other.changed;
        self.lost += other.lost;
        self.bf16 &= other.bf16;
        self.f16 &= other.f16;
        self.f32 &= other.f32;
        self.square += other.square;
        self.largest = self.largest.max(other.largest);
    }
}

kernel! {
    /// Looks at the differences of a tile.
    pub(crate) fn facts(delta: &[f64]) -> Facts {
        let mut square = [0f64; LANES];
        let mut largest = [0f64; LANES];
        let (mut changed, mut wide, mut low, mut half) = ([0u32; LANES], [0u32; LANES], [0u32; LANES], [0u32; LANES]);
        macro_rules! lane {
            ($lane:expr, $x:expr) => {{
                let (lane, x): (usize, f64) = ($lane, $x);
                let single = x as f32;
                changed[lane] += u32::from(x != 0.0);
                wide[lane] |= u32::from(f64::from(single) != x);
                low[lane] |= single.to_bits() & 0xFFFF;
                // On the grid of F16, and within its range: multiples of 2^-24, eleven bits, at most 65504.
                let magnitude = single.abs();
                let ulp = (single.to_bits() & 0x7F80_0000).saturating_sub(10 << 23).max(103 << 23);
                // Times its reciprocal, a power of two as well: a division takes four times as long.
                let steps = magnitude * f32::from_bits((254 << 23) - ulp);
                half[lane] |= u32::from(magnitude > 65504.0) | u32::from(steps != steps.trunc());
                square[lane] += x * x;
                largest[lane] = if x.abs() > largest[lane] { x.abs() } else { largest[lane] };
            }};
        }
        let whole = delta.len() - delta.len() % LANES;
        for chunk in delta[..whole].chunks_exact(LANES) {
            for (lane, x) in chunk.iter().enumerate() {
                lane!(lane, *x);
            }
        }
        for (lane, x) in delta[whole..].iter().enumerate() {
            lane!(lane, *x);
        }
        let none = |flags: &[u32; LANES]| flags.iter().all(|flag| *flag == 0);
        Facts {
            changed: changed.iter().map(|c| u64::from(*c)).sum(),
            lost: 0,
            bf16: none(&wide) && none(&low),
            f16: none(&wide) && none(&half),
            f32: none(&wide),
            square: super::stats::fold(&square),
            largest: largest.iter().fold(0.0, |a: f64, b| a.max(*b)),
        }
    }
}

/// Whether reference + δ, as a run with α = 1 computes it, is not the donor bit for bit: where the difference was
/// rounded, or the donor is a negative zero. Differences of `narrow` types are added in f32 too, where the target is
/// of one as well; a sum that cancels is repeated in f64 there.
#[inline(always)]
fn is_lost(donor: f64, reference: f64, delta: f64, narrow: bool) -> bool {
    let back = if delta == 0.0 { reference } else { reference + delta };
    let (r, x) = (reference as f32, delta as f32);
    let sum = r + x;
    let repeated = sum.abs() < r.abs() * CANCELLED as f32;
    let single = narrow & (x != 0.0) & !repeated & (f64::from(sum).to_bits() != donor.to_bits());
    (back.to_bits() != donor.to_bits()) | single
}

kernel! {
    /// How many elements of a tile of differences do not give their donor back.
    pub(crate) fn lost(donor: &[f64], reference: &[f64], delta: &[f64], narrow: bool) -> u64 {
        let mut count = 0u32;
        for ((d, r), x) in donor.iter().zip(reference).zip(delta) {
            count += u32::from(is_lost(*d, *r, *x, narrow));
        }
        u64::from(count)
    }
}

/// Where these elements are.
pub(crate) fn lost_places<'a>(
    donor: &'a [f64],
    reference: &'a [f64],
    delta: &'a [f64],
    narrow: bool,
) -> impl Iterator<Item = usize> + 'a {
    (0..delta.len()).filter(move |i| is_lost(donor[*i], reference[*i], delta[*i], narrow))
}

/// Moves the elements that are not zero to the front, in order, and notes their places; returns how many there are.
pub(crate) fn compact<R: Real>(delta: &mut [R], places: &mut [u32]) -> usize {
    let mut count = 0;
    for i in 0..delta.len() {
        let x = delta[i];
        // Written whether kept or not: a branch would be mispredicted at every change.
        delta[count] = x;
        places[count] = i as u32;
        count += usize::from(x != R::ZERO);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Level;

    #[test]
    fn exactness_by_a_round_trip_through_each_type() {
        let values = [
            0.0,
            1.0,
            -1.5,
            0.1,
            65504.0,
            65505.0,
            65536.0,
            5.960_464_477_539_063e-8,
            2.9e-8,
            1e-40,
            3.0e38,
            1e300,
            0.333_251_953_125,
            1.0078125,
            1.000_976_562_5,
            1.000_488_281_25,
            f64::from(f32::MIN_POSITIVE),
            6.1e-5,
        ];
        for level in Level::available() {
            for x in values {
                let found = facts(level, &[x, 0.0]);
                assert_eq!(found.f32, f64::from(x as f32) == x, "{x}");
                assert_eq!(found.bf16, f64::from(half::bf16::from_f32(x as f32).to_f32()) == x, "{x}");
                assert_eq!(found.f16, f64::from(half::f16::from_f32(x as f32).to_f32()) == x, "{x}");
                assert_eq!((found.changed, found.largest), (u64::from(x != 0.0), x.abs()));
            }
        }
    }

    #[test]
    fn what_a_difference_does_not_give_back() {
        // (donor, reference, whether it is lost)
        let rows = [
            (1.5, 1.0, false),
            (0.0, 1.0, false),
            (-0.0, 1.0, true),
            (-0.0, 0.0, true),
            (0.0, -0.0, true),
            (-0.0, -0.0, false),
            (1e-300, 1.0, true),
            (1.0, 1e-300, false),
            (f64::MAX, -f64::MAX, true),
        ];
        for level in Level::available() {
            for (donor, reference, is_lost) in rows {
                let (d, r, x) = ([1.0, donor], [1.0, reference], [0.0, donor - reference]);
                assert_eq!(lost(level, &d, &r, &x, false), u64::from(is_lost), "{donor} {reference}");
                assert_eq!(lost_places(&d, &r, &x, false).next(), is_lost.then_some(1), "{donor} {reference}");
            }
        }
    }

    #[test]
    fn compaction_keeps_order() {
        let mut delta = [0.0f64, 2.0, 0.0, -0.0, 5.0, 6.0, 0.0];
        let mut places = [0; 7];
        let count = compact(&mut delta, &mut places);
        assert_eq!((&delta[..count], &places[..count]), (&[2.0, 5.0, 6.0][..], &[1, 4, 5][..]));
    }
}
