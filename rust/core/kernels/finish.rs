//! The end of a step in one loop: onto the target, to bf16, measured. What `step`, `keep_donor`, `narrow` and
//! `step_sums` do one after the other, bit for bit, with every value still in a register: a quarter of a transfer's
//! arithmetic less with AVX-512.

use super::narrow::nearest_bf16;
use super::stats::{fold, StepSums};
use super::{Real, LANES};

kernel! {
    /// `bytes = bf16(target + α · delta)`, and what became of the step. With `kept`, the donor and the reference, an
    /// element whose target is the reference becomes the donor. With `first`, the sums for another α, only what depends
    /// on α is summed. None, with anything in `bytes`, where a sum is below `share` of its target or a result is not
    /// finite: that wants the long way.
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
    /// Σ moved², Σ step·moved, Σ error²; then those that do not depend on α, Σ Δ² and Σ target².
    sums: [[f64; LANES]; 5],
    changed: [u32; LANES],
    lost: [u32; LANES],
    /// Not zero where an element wants the long way.
    odd: [u32; LANES],
}

#[inline(always)]
fn all<R: Real, const KEEPS: bool, const FIRST: bool>(
    (target, delta): (&[R], &[R]),
    factors: (f64, R, R),
    (donor, reference): (&[R], &[R]),
    bytes: &mut [u8],
) -> Option<StepSums> {
    let n = target.len();
    let (delta, donor, reference) = (&delta[..n], &donor[..n], &reference[..n]);
    let mut lanes = Lanes { sums: [[0.0; LANES]; 5], changed: [0; LANES], lost: [0; LANES], odd: [0; LANES] };
    let (pairs, _) = bytes.as_chunks_mut::<2>();
    let (out, out_rest) = pairs.as_chunks_mut::<LANES>();
    let (t, t_rest) = target.as_chunks::<LANES>();
    let (d, d_rest) = delta.as_chunks::<LANES>();
    let (x, x_rest) = donor.as_chunks::<LANES>();
    let (y, y_rest) = reference.as_chunks::<LANES>();
    for ((((out, t), d), x), y) in out.iter_mut().zip(t).zip(d).zip(x).zip(y) {
        group::<R, KEEPS, FIRST>((t, d), (x, y), factors, &mut lanes, out);
    }
    if !out_rest.is_empty() {
        // Padded with zeros, which change no sum.
        let mut padded = [[R::ZERO; LANES]; 4];
        for (padded, rest) in padded.iter_mut().zip([t_rest, d_rest, x_rest, y_rest]) {
            padded[..rest.len()].copy_from_slice(rest);
        }
        let mut out = [[0; 2]; LANES];
        let [t, d, x, y] = &padded;
        group::<R, KEEPS, FIRST>((t, d), (x, y), factors, &mut lanes, &mut out);
        out_rest.copy_from_slice(&out[..out_rest.len()]);
    }
    if lanes.odd.iter().any(|odd| *odd != 0) {
        return None;
    }
    let count = |lanes: &[u32; LANES]| lanes.iter().map(|count| u64::from(*count)).sum();
    let [moved, dot, error, delta, target] = &lanes.sums;
    Some(StepSums {
        delta: if FIRST { fold(delta) } else { 0.0 },
        step: 0.0,
        moved: fold(moved),
        dot: fold(dot),
        error: fold(error),
        target: if FIRST { fold(target) } else { 0.0 },
        changed: count(&lanes.changed),
        lost: count(&lanes.lost),
    })
}

#[inline(always)]
#[allow(clippy::needless_range_loop)] // lanes side by side in all arrays: what makes vectors of it
fn group<R: Real, const KEEPS: bool, const FIRST: bool>(
    (target, delta): (&[R; LANES], &[R; LANES]),
    (donor, reference): (&[R; LANES], &[R; LANES]),
    (alpha, factor, share): (f64, R, R),
    lanes: &mut Lanes,
    bytes: &mut [[u8; 2]; LANES],
) {
    let mut out = [0f32; LANES];
    for lane in 0..LANES {
        let (t, d) = (target[lane], delta[lane]);
        let moved = t + factor * d;
        let still = (d == R::ZERO) | (factor == R::ZERO);
        let cancelled = (moved.abs() < t.abs() * share) & !still;
        let mut value = if still { t } else { moved };
        if KEEPS {
            value = if t.is_same(reference[lane]) { donor[lane] } else { value };
        }
        let stored = nearest_bf16(value.to_f32());
        bytes[lane] = (stored as u16).to_le_bytes();
        out[lane] = f32::from_bits(stored << 16);
        let nonzero = u32::from(d != R::ZERO);
        if FIRST {
            lanes.changed[lane] += nonzero;
        }
        lanes.lost[lane] += nonzero & u32::from(out[lane] == t.to_f32());
        lanes.odd[lane] |= u32::from(cancelled) | u32::from(stored & 0x7F80 == 0x7F80);
    }
    for lane in 0..LANES {
        let (t, d, o) = (target[lane].to_f64(), delta[lane].to_f64(), f64::from(out[lane]));
        let step = alpha * d;
        let moved = o - t;
        let error = moved - step;
        lanes.sums[0][lane] += moved * moved;
        lanes.sums[1][lane] += step * moved;
        lanes.sums[2][lane] += error * error;
        if FIRST {
            lanes.sums[3][lane] += d * d;
            lanes.sums[4][lane] += t * t;
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
                    prop_assert_eq!(found.is_some(), plain && finite, "{}", level.name());
                    if let Some(found) = found {
                        prop_assert_eq!(&got, &want, "{}", level.name());
                        prop_assert_eq!(format!("{found:?}"), format!("{sums:?}"), "{}", level.name());
                    }
                }
            }
        }
    }
}
