//! The end of a step in one loop: onto the target, to bf16, measured. What `step`, `keep_donor`, `narrow` and
//! `step_sums` do one after the other, to the same bytes, with every value still in a register.
//!
//! The sums are a little less exact: the squares of four elements are added up in the compute type, everything else in
//! f64. Over many elements, where alone that is worth it, the difference is below 1e-9 of the sum; and half of the
//! instructions for the sums, which were most of the loop, are gone.

use super::stats::{fold, StepSums};
use super::{Real, LANES};

/// Sums of squares below this may have lost some of them: the squares of the smallest f32 are zero.
const LEAST: f64 = 1e-25;

kernel! {
    /// `bytes = bf16(target + α · delta)`, and what became of the step. With `kept`, the donor and the reference, an
    /// element whose target is the reference becomes the donor. With `first`, the sums for another α, only what depends
    /// on α is summed. None, with anything in `bytes`, where α is 0, a sum is below `share` of its target, a result is not
    /// finite, or squares are too large or too small for the compute type: that wants the long way.
    pub fn finish_bf16<R>(
        steps: (&[R], &[R]),
        factors: (f64, f64),
        kept: Option<(&[R], &[R])>,
        first: Option<&StepSums>,
        bytes: &mut [u8],
    ) -> Option<StepSums> {
        let (alpha, share) = factors;
        let factors = (alpha, R::from_f64(alpha), R::from_f64(share));
        let itself = (steps.0, steps.0);
        let sums = match (kept, first) {
            (None, None) => all::<R, false, true>(steps, factors, itself, bytes),
            (None, Some(_)) => all::<R, false, false>(steps, factors, itself, bytes),
            (Some(kept), None) => all::<R, true, true>(steps, factors, kept, bytes),
            (Some(kept), Some(_)) => all::<R, true, false>(steps, factors, kept, bytes),
        }?;
        let (delta, changed) = first.map_or((sums.delta, sums.changed), |first| (first.delta, first.changed));
        if sums.moved == 0.0 && sums.lost != changed || !fits(delta) {
            return None;
        }
        Some(match first {
            None => StepSums { step: alpha * (alpha * sums.delta), ..sums },
            Some(first) => {
                let StepSums { moved, dot, error, lost, .. } = sums;
                StepSums { moved, dot, error, lost, ..first.still(alpha) }
            }
        })
    }
}

/// Sums in lanes.
struct Lanes {
    /// Σ moved², Σ Δ·moved, Σ error²; then those that do not depend on α, Σ Δ² and Σ target².
    sums: [[f64; LANES]; 5],
    changed: [u32; LANES],
    lost: [u32; LANES],
    /// Not zero where a sum is too small.
    odd: [u32; LANES],
    /// The bits of the largest magnitude.
    most: [u32; LANES],
}

/// Magnitudes from here on are infinite in bf16.
const INFINITE: u32 = 0x7F7F_8000;

/// Whether none of the squares in that sum can have been lost, if not all of them were.
#[inline(always)]
fn fits(sum: f64) -> bool {
    sum == 0.0 || (LEAST..f64::INFINITY).contains(&sum)
}

/// Groups of lanes whose squares are added up in the compute type.
const FOUR: usize = 4;
const MANY: usize = FOUR * LANES;

#[inline(always)]
fn all<R: Real, const KEEPS: bool, const FIRST: bool>(
    (target, delta): (&[R], &[R]),
    factors: (f64, R, R),
    (donor, reference): (&[R], &[R]),
    bytes: &mut [u8],
) -> Option<StepSums> {
    let n = target.len();
    let (alpha, factor, share) = factors;
    let (delta, donor, reference) = (&delta[..n], &donor[..n], &reference[..n]);
    if alpha == 0.0 {
        return None;
    }
    let none = [0; LANES];
    let mut lanes = Lanes { sums: [[0.0; LANES]; 5], changed: none, lost: none, odd: none, most: none };
    let (pairs, _) = bytes.as_chunks_mut::<2>();
    let (out, out_rest) = pairs.as_chunks_mut::<MANY>();
    let (t, t_rest) = target.as_chunks::<MANY>();
    let (d, d_rest) = delta.as_chunks::<MANY>();
    let (x, x_rest) = donor.as_chunks::<MANY>();
    let (y, y_rest) = reference.as_chunks::<MANY>();
    for ((((out, t), d), x), y) in out.iter_mut().zip(t).zip(d).zip(x).zip(y) {
        group::<R, KEEPS, FIRST>((t, d), (x, y), (factor, share), &mut lanes, out);
    }
    if !out_rest.is_empty() {
        // Padded with zeros, which change no sum.
        let mut padded = [[R::ZERO; MANY]; 4];
        for (padded, rest) in padded.iter_mut().zip([t_rest, d_rest, x_rest, y_rest]) {
            padded[..rest.len()].copy_from_slice(rest);
        }
        let mut out = [[0; 2]; MANY];
        let [t, d, x, y] = &padded;
        group::<R, KEEPS, FIRST>((t, d), (x, y), (factor, share), &mut lanes, &mut out);
        out_rest.copy_from_slice(&out[..out_rest.len()]);
    }
    if lanes.odd.iter().any(|odd| *odd != 0) || lanes.most.iter().any(|most| *most >= INFINITE) {
        return None;
    }
    let count = |lanes: &[u32; LANES]| lanes.iter().map(|count| u64::from(*count)).sum();
    let [moved, dot, error, delta_sum, target_sum] = &lanes.sums;
    let sums = StepSums {
        delta: if FIRST { fold(delta_sum) } else { 0.0 },
        step: 0.0,
        moved: fold(moved),
        dot: alpha * fold(dot),
        error: fold(error),
        target: if FIRST { fold(target_sum) } else { 0.0 },
        changed: count(&lanes.changed),
        lost: count(&lanes.lost),
    };
    let all_sums = [sums.delta, sums.moved, sums.error, sums.target];
    // No sum is zero where the squares of anything but zeros are; errors are zero, or not far below what has moved.
    let lost_none = !FIRST
        || (sums.delta != 0.0 || sums.changed == 0) && (sums.target != 0.0 || target.iter().all(|x| *x == R::ZERO));
    let exact = lost_none && all_sums.into_iter().all(fits) && sums.dot.is_finite();
    exact.then_some(sums)
}

#[inline(always)]
#[allow(clippy::needless_range_loop)] // lanes side by side in all arrays: what makes vectors of it
fn group<R: Real, const KEEPS: bool, const FIRST: bool>(
    (target, delta): (&[R; MANY], &[R; MANY]),
    (donor, reference): (&[R; MANY], &[R; MANY]),
    (factor, share): (R, R),
    lanes: &mut Lanes,
    bytes: &mut [[u8; 2]; MANY],
) {
    // In the compute type first, with as many lanes to a vector as it has.
    let mut sums = [[R::ZERO; LANES]; 5];
    for lane in 0..LANES {
        let mut squares = [[R::ZERO; FOUR]; 5];
        for i in 0..FOUR {
            let at = i * LANES + lane;
            let (t, d) = (target[at], delta[at]);
            let step = factor * d;
            let sum = t + step;
            let still = d == R::ZERO;
            lanes.odd[lane] |= u32::from((sum.abs() < t.abs() * share) & !still);
            let mut value = if still { t } else { sum };
            if KEEPS {
                value = if t.is_same(reference[at]) { donor[at] } else { value };
            }
            // To nearest, ties to even; what is not a number, or becomes none, is seen in `most`.
            let bits = value.to_f32().to_bits();
            lanes.most[lane] = lanes.most[lane].max(bits & 0x7FFF_FFFF);
            let stored = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
            bytes[at] = (stored as u16).to_le_bytes();
            let moved = R::from_f32(f32::from_bits(stored << 16)) - t;
            let error = moved - step;
            let nonzero = u32::from(d != R::ZERO);
            if FIRST {
                lanes.changed[lane] += nonzero;
            }
            lanes.lost[lane] += nonzero & u32::from(moved == R::ZERO);
            squares[0][i] = moved * moved;
            squares[1][i] = d * moved;
            squares[2][i] = error * error;
            if FIRST {
                squares[3][i] = d * d;
                squares[4][i] = t * t;
            }
        }
        for sum in 0..if FIRST { 5 } else { 3 } {
            let [a, b, c, d] = squares[sum];
            sums[sum][lane] = (a + b) + (c + d);
        }
    }
    for sum in 0..if FIRST { 5 } else { 3 } {
        for lane in 0..LANES {
            lanes.sums[sum][lane] += sums[sum][lane].to_f64();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dtype::Dtype;
    use crate::kernels::combine::{difference, keep_donor, step, CANCELLED};
    use crate::kernels::narrow::{narrow, Rounding};
    use crate::kernels::stats::step_sums;
    use crate::kernels::Level;

    fn values(bits: &[u16]) -> Vec<f32> {
        bits.iter().map(|bits| f32::from_bits(u32::from(*bits) << 16)).collect()
    }

    #[test]
    fn squares_that_are_too_small_are_not_taken_for_zeros() {
        let least = f32::from_bits(1 << 16);
        for level in Level::available() {
            for (target, delta) in [(-least, 0.0), (0.0, least), (least, least)] {
                let steps = ([0.0, target], [0.0, delta]);
                let mut bytes = [0; 4];
                let first = step_sums(level, &steps.0, &steps.1, 0.25, &steps.0);
                for first in [None, Some(&first).filter(|_| delta != 0.0)] {
                    let found = finish_bf16(level, (&steps.0, &steps.1), (1.0, CANCELLED), None, first, &mut bytes);
                    assert!(found.is_none(), "{} {target} {delta} {found:?}", level.name());
                }
            }
        }
    }

    proptest! {
        /// Against the kernels that do one thing each, over all bit patterns, and over values near each other.
        #[test]
        fn the_short_way_is_the_long_way(
            bits in prop::collection::vec((any::<u16>(), any::<u16>(), any::<u16>(), 0u16..4), 0..200),
            near in any::<bool>(),
            alpha in prop_oneof![Just(1.0), Just(0.0), Just(-1.0), -2.0..2.0f64],
            keeps in any::<bool>(),
        ) {
            let target = values(&bits.iter().map(|b| if near { 0x3C00 | b.0 & 0x81FF } else { b.0 }).collect::<Vec<_>>());
            let reference = values(&bits.iter().enumerate().map(|(i, b)| match b.3 {
                0 => (target[i].to_bits() >> 16) as u16,
                _ if near => 0x3C00 | b.1 & 0x81FF,
                _ => b.1,
            }).collect::<Vec<_>>());
            let donor = values(&bits.iter().map(|b| if near { 0x3C00 | b.2 & 0x81FF } else { b.2 }).collect::<Vec<_>>());
            for level in Level::available() {
                let n = bits.len();
                let mut delta = vec![0f32; n];
                difference(level, &donor, &reference, &mut delta);
                let (mut out, mut want) = (vec![0f32; n], vec![0u8; 2 * n]);
                let plain = step(level, &target, &delta, alpha as f32, &mut out);
                if keeps {
                    keep_donor(level, &target, &donor, &reference, &mut out);
                }
                let finite = narrow(level, Dtype::BF16, &mut out, Rounding::Nearest, &mut want);
                let sums = step_sums(level, &target, &delta, alpha, &out);
                let mut got = vec![0u8; 2 * n];
                let kept = keeps.then_some((donor.as_slice(), reference.as_slice()));
                let steps = (target.as_slice(), delta.as_slice());
                for first in [None, Some(step_sums(level, &target, &delta, 0.25, &target))] {
                    let found = finish_bf16(level, steps, (alpha, CANCELLED), kept, first.as_ref(), &mut got);
                    let squares = [sums.delta, sums.moved, sums.error, sums.target];
                    let fits = |sum: &f64| *sum == 0.0 || (1e-24..1e36).contains(sum);
                    prop_assert!(found.is_none() || plain && finite, "{}", level.name());
                    // An error below the rounding of what has moved may be anything.
                    let clear = sums.error == 0.0 || sums.error > 1e-12 * (sums.step + sums.moved);
                    let short = plain && finite && clear && squares.iter().all(fits);
                    prop_assert!(found.is_some() || alpha == 0.0 || !short, "{}", level.name());
                    if let Some(found) = found {
                        prop_assert_eq!(&got, &want, "{}", level.name());
                        prop_assert_eq!((found.changed, found.lost), (sums.changed, sums.lost));
                        let scale = (sums.step * sums.moved).sqrt();
                        for (found, sum, scale) in [
                            (found.delta, sums.delta, sums.delta),
                            (found.step, sums.step, sums.step),
                            (found.moved, sums.moved, sums.moved),
                            (found.target, sums.target, sums.target),
                            (found.dot, sums.dot, scale),
                            (found.error, sums.error, sums.error + (sums.error * (sums.step + sums.moved)).sqrt()
                                + 1e-7 * (sums.step + sums.moved)),
                        ] {
                            prop_assert!((found - sum).abs() <= 1e-6 * scale, "{} {found} {sum}", level.name());
                        }
                        let again = finish_bf16(Level::SCALAR, steps, (alpha, CANCELLED), kept, first.as_ref(), &mut got);
                        prop_assert_eq!(format!("{again:?}"), format!("{:?}", Some(found)), "{}", level.name());
                    }
                }
            }
        }
    }
}
