//! What a difference needs to be stored without loss.

use super::combine::CANCELLED;
use super::dispatch::Level;
use super::marks::{differing, marked, places as places_of, Places, WORD};
use super::real::{LANES, TILE};
use crate::dtype::Dtype;

/// The types that values are stored in without loss, the narrowest first; what is said of each has its place here.
pub(crate) const TYPES: [Dtype; 4] = [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64];

/// Of an element: [`TYPES`]`[i]` does not hold its difference.
const BEYOND: [u32; 4] = [1, 2, 4, 0];
/// Of an element: reference + δ does not give its donor back.
const LOST: u32 = 8;

/// Facts about the differences of one chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Facts {
    /// Elements that are not zero.
    pub changed: u64,
    /// For each of [`TYPES`]: elements that it does not hold, or that reference + δ does not give back.
    pub apart: [u64; 4],
    /// For each of [`TYPES`]: a difference is beyond it.
    pub beyond: [bool; 4],
    /// Σ δ².
    pub square: f64,
    /// max |δ|.
    pub largest: f64,
}

impl Facts {
    /// Adds those of the chunk that follows.
    pub(crate) fn merge(&mut self, other: &Facts) {
        self.changed += other.changed;
        self.apart.iter_mut().zip(other.apart).for_each(|(sum, more)| *sum += more);
        self.beyond.iter_mut().zip(other.beyond).for_each(|(any, more)| *any |= more);
        self.square += other.square;
        self.largest = self.largest.max(other.largest);
    }

    /// How many elements have to be stored by themselves where the values are of this type.
    pub(crate) fn apart(&self, dtype: Dtype) -> u64 {
        index(dtype).map_or(0, |i| self.apart[i])
    }

    /// Whether a difference is beyond this type.
    pub(crate) fn is_beyond(&self, dtype: Dtype) -> bool {
        index(dtype).is_some_and(|i| self.beyond[i])
    }
}

fn index(dtype: Dtype) -> Option<usize> {
    TYPES.iter().position(|one| *one == dtype)
}

kernel! {
    /// What stands in the way of each element of a tile, as [`counted`] and [`places`] read it: the types that do not hold
    /// it, and whether reference + δ, as a run with α = 1 computes it, is not the donor bit for bit.
    pub(crate) fn flags(donor: &[f64], reference: &[f64], delta: &[f64], narrow: bool, out: &mut [u32]) {
        for (((slot, d), r), x) in out.iter_mut().zip(donor).zip(reference).zip(delta) {
            let single = *x as f32;
            let wide = f64::from(single) != *x;
            let low = single.to_bits() & 0xFFFF != 0;
            // On the grid of F16, and within its range: multiples of 2^-24, eleven bits, at most 65504.
            let magnitude = single.abs();
            let ulp = (single.to_bits() & 0x7F80_0000).saturating_sub(10 << 23).max(103 << 23);
            // Times its reciprocal, a power of two as well: a division takes four times as long.
            let steps = magnitude * f32::from_bits((254 << 23) - ulp);
            let half = (magnitude > 65504.0) | (steps != steps.trunc());
            *slot = u32::from(wide | low)
                | (u32::from(wide | half) << 1)
                | (u32::from(wide) << 2)
                | (u32::from(is_lost(*d, *r, *x, narrow)) << 3);
        }
    }
}

/// Whether reference + δ is not the donor bit for bit: where the difference was rounded, or the donor is a negative
/// zero. Differences of `narrow` types are added in f32 too, where the target is of one as well; a sum that cancels is
/// repeated in f64 there.
#[inline(always)]
fn is_lost(donor: f64, reference: f64, delta: f64, narrow: bool) -> bool {
    let back = if delta == 0.0 { reference } else { reference + delta };
    let (r, x) = (reference as f32, delta as f32);
    let sum = r + x;
    let repeated = sum.abs() < r.abs() * CANCELLED as f32;
    let single = narrow & (x != 0.0) & !repeated & (f64::from(sum).to_bits() != donor.to_bits());
    (back.to_bits() != donor.to_bits()) | single
}

/// Buffers of [`counted`], whatever is in them: to set them to zero for every tile would take as long as the rest.
pub(crate) struct Room {
    values: [[f64; TILE]; 3],
    places: Places,
    found: [u32; TILE],
}

impl Default for Room {
    fn default() -> Self {
        Room { values: [[0.0; TILE]; 3], places: [0; 2 * TILE], found: [0; TILE] }
    }
}

/// What [`flags`] finds in a tile, counted. Where few elements have changed it looks at these alone, brought together in
/// `room`: nothing stands in the way of any other.
pub(crate) fn counted(level: Level, [donor, reference, delta]: [&[f64]; 3], narrow: bool, room: &mut Room) -> Facts {
    let n = delta.len();
    let (mut marks, Room { values: room, places: at, found }) = ([0; TILE / WORD], room);
    let marks = &mut marks[..n.div_ceil(WORD)];
    differing(level, donor, reference, delta, marks);
    if marked(marks) * 3 > n {
        flags(level, donor, reference, delta, narrow, &mut found[..n]);
        return count(level, &found[..n]);
    }
    let few = places_of(level, marks, at);
    for (slots, values) in room.iter_mut().zip([donor, reference, delta]) {
        slots.iter_mut().zip(&at[..few]).for_each(|(slot, place)| *slot = values[*place as usize]);
    }
    let [donor, reference, delta] = room;
    flags(level, &donor[..few], &reference[..few], &delta[..few], narrow, &mut found[..few]);
    count(level, &found[..few])
}

kernel! {
    /// What [`flags`] has found, counted; the rest is zero.
    fn count(flags: &[u32]) -> Facts {
        let mut facts = Facts::default();
        let mut any = 0;
        let mut apart = [0u32; 4];
        for found in flags {
            any |= found;
            for (sum, beyond) in apart.iter_mut().zip(BEYOND) {
                *sum += u32::from(found & (beyond | LOST) != 0);
            }
        }
        for i in 0..TYPES.len() {
            facts.apart[i] = u64::from(apart[i]);
            facts.beyond[i] = any & BEYOND[i] != 0;
        }
        facts
    }
}

/// The places in a tile of what has to be stored by itself where the values are of this type; returns how many.
pub(crate) fn places(flags: &[u32], dtype: Dtype, out: &mut [u32]) -> usize {
    let wanted = LOST | index(dtype).map_or(0, |i| BEYOND[i]);
    let mut count = 0;
    for (i, found) in flags.iter().enumerate() {
        // Written whether kept or not: a branch would be mispredicted at every change.
        out[count] = i as u32;
        count += usize::from(found & wanted != 0);
    }
    count
}

kernel! {
    /// Looks at the differences of a tile: what [`counted`] does not say of them.
    pub(crate) fn facts(delta: &[f64]) -> Facts {
        let mut square = [0f64; LANES];
        let mut largest = [0f64; LANES];
        let mut changed = [0u32; LANES];
        macro_rules! lane {
            ($lane:expr, $x:expr) => {{
                let (lane, x): (usize, f64) = ($lane, $x);
                changed[lane] += u32::from(x != 0.0);
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
        Facts {
            changed: changed.iter().map(|c| u64::from(*c)).sum(),
            square: super::stats::fold(&square),
            largest: largest.iter().fold(0.0, |a: f64, b| a.max(*b)),
            ..Facts::default()
        }
    }
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
                let found = count(level, &looked_at(level, &[x, 0.0], &[0.0, 0.0], &[x, 0.0]));
                let held = [
                    f64::from(half::bf16::from_f32(x as f32).to_f32()) == x,
                    f64::from(half::f16::from_f32(x as f32).to_f32()) == x,
                    f64::from(x as f32) == x,
                    true,
                ];
                assert_eq!(found.beyond, held.map(|held| !held), "{x}");
                assert_eq!(found.apart, held.map(|held| u64::from(!held)), "{x}");
                let figures = facts(level, &[x, 0.0]);
                assert_eq!((figures.changed, figures.largest), (u64::from(x != 0.0), x.abs()));
            }
        }
    }

    fn looked_at(level: Level, donor: &[f64], reference: &[f64], delta: &[f64]) -> Vec<u32> {
        let mut found = vec![0; delta.len()];
        flags(level, donor, reference, delta, false, &mut found);
        found
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
                let found = looked_at(level, &d, &r, &x);
                assert_eq!(count(level, &found).apart[3], u64::from(is_lost), "{donor} {reference}");
                let mut at = [0; 2];
                let n = places(&found, Dtype::F64, &mut at);
                assert_eq!(at[..n].first(), is_lost.then_some(&1), "{donor} {reference}");
            }
        }
    }

    #[test]
    fn a_look_at_what_has_changed_finds_as_much_as_a_look_at_all() {
        let odd = [f64::INFINITY, f64::NAN, -0.0, 1e-300, 65505.0, 0.1, f64::from(1.1f32)];
        for level in Level::available() {
            for every in [1, 2, 4, 9, 1000] {
                for n in [1, 64, 100, TILE] {
                    let reference: Vec<f64> = (0..n).map(|i| [0.5, -0.0, 3.0, f64::INFINITY][i % 4]).collect();
                    let change = |(i, r): (usize, &f64)| if i % every == 0 { odd[i / every % odd.len()] } else { *r };
                    let donor: Vec<f64> = reference.iter().enumerate().map(change).collect();
                    let delta: Vec<f64> = donor.iter().zip(&reference).map(|(d, r)| d - r).collect();
                    for narrow in [false, true] {
                        let mut found = vec![0; n];
                        flags(level, &donor, &reference, &delta, narrow, &mut found);
                        let mut room = Room { values: [[f64::NAN; TILE]; 3], ..Room::default() };
                        let few = counted(level, [&donor, &reference, &delta], narrow, &mut room);
                        assert_eq!(few, count(level, &found), "every {every} of {n}");
                    }
                }
            }
        }
    }
}
