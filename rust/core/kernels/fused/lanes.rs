//! The end of a step, an element at a time: onto the target, to bf16, measured. What the loops of `finish` and `through`
//! have in common.
//!
//! The sums are a little less exact than those of `stats`: the squares of eight elements are added up in f32, everything
//! else in f64. Over many elements, where alone that is worth it, the difference is below 1e-8 of the sum; and half of the
//! instructions for the sums, which were most of the loop, are gone. Where a step was tried in f32, errors are measured
//! from the step with α as f32 has it.

use crate::kernels::real::{Real, LANES};
use crate::kernels::stats::{fold_all, StepSums};

/// Sums of squares below this may have lost some of them: the squares of the smallest f32 are zero.
const LEAST: f64 = 1e-25;

/// Magnitudes from here on are infinite in bf16.
pub(super) const INFINITE: u32 = 0x7F7F_8000;

/// Groups of lanes whose squares are added up in f32.
pub(super) const TOGETHER: usize = 8;

/// Elements of such a group.
pub(super) const MANY: usize = TOGETHER * LANES;

/// What is asked of a loop, and so compiled for itself each time.
pub(super) trait Asked {
    /// Whether a sum that cancels most of its target is to be found.
    const CHECKS: bool;
    /// Whether an element whose target is the reference becomes the donor.
    const KEEPS: bool;
    /// Whether the step is f64's, as f32 does not hold α.
    const WIDE: bool;
    /// Whether what has moved is told from the target as bf16 holds it.
    const ROUNDS: bool;
    /// Whether the step is f32's although f32 does not hold α, and elements are found that this may decide.
    const TRIES: bool;
}

/// [`Asked`], by its constants in their order.
pub(super) struct Loop<
    const CHECKS: bool,
    const KEEPS: bool,
    const WIDE: bool,
    const ROUNDS: bool = false,
    const TRIES: bool = false,
>;

impl<const CHECKS: bool, const KEEPS: bool, const WIDE: bool, const ROUNDS: bool, const TRIES: bool> Asked
    for Loop<CHECKS, KEEPS, WIDE, ROUNDS, TRIES>
{
    const CHECKS: bool = CHECKS;
    const KEEPS: bool = KEEPS;
    const WIDE: bool = WIDE;
    const ROUNDS: bool = ROUNDS;
    const TRIES: bool = TRIES;
}

/// Where f32 does not hold α, most elements come out the same as if it did: those whose sum in f32 stands further from
/// half way between two bf16 numbers than its error. This loop finds whether all of a group are such.
pub(super) type Tried = Loop<false, false, false, false, true>;

/// α as f32, the product and the sum are each off by half a unit in the last place: together by at most 16.5 of those of
/// a sum that is an eighth of its step or more.
const EIGHTH: f32 = 0.125;

/// Sums nearer to half way than this, in units of f32's last place, may be rounded to the other side.
const NEAR: u32 = 24;

/// What is the same for all elements.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    alpha: f64,
    single: f32,
    /// A sum below this share of its target is not good enough.
    share: f32,
    /// One, which the compiler does not know: then it counts with one instruction instead of three.
    one: u32,
}

impl Factors {
    pub(super) fn new(alpha: f64, share: f64) -> Self {
        Factors { alpha, single: alpha as f32, share: share as f32, one: std::hint::black_box(1) }
    }

    /// Whether α as f32 is off by no more than its last place.
    pub(super) fn may_try(&self) -> bool {
        self.single.is_normal()
    }
}

/// What [`odd`](crate::kernels::combine::odd) gives wherever that is a normal number, in half of the instructions.
#[inline(always)]
pub(super) fn odd_normal(x: f64) -> f32 {
    // The digits that f32 has not; any of them sets the last that it has.
    const BEYOND: u64 = (1 << 29) - 1;
    let bits = x.to_bits();
    f64::from_bits((((bits & BEYOND) + BEYOND) | bits) & !BEYOND) as f32
}

/// Sums of [`MANY`] elements in lanes.
#[derive(Default)]
pub(super) struct Group {
    /// Σ moved², Σ Δ·moved, Σ error², Σ Δ², Σ target².
    squares: [[f32; LANES]; 5],
    changed: [u32; LANES],
    lost: [u32; LANES],
    /// Not zero where a sum is too small for this way.
    odd: [u32; LANES],
    /// The bits of the largest magnitude.
    most: [u32; LANES],
}

impl Group {
    /// Whether no element is to be computed in another way.
    #[inline(always)]
    pub(super) fn is_sure(&self) -> bool {
        self.odd.iter().fold(0, |any, odd| any | odd) == 0
    }

    /// The bits of one result as f32, of which the upper half is to be stored.
    #[inline(always)]
    pub(super) fn element<R: Real, A: Asked>(
        &mut self,
        lane: usize,
        (t, d): (R, R),
        (donor, reference): (R, R),
        factors: &Factors,
    ) -> u32 {
        let (still, kept) = (d == R::ZERO, t.is_same(reference));
        let (single, delta) = (t.to_f32(), d.to_f32());
        let (step, moved) = if A::WIDE || !R::IS_F32 {
            let step = factors.alpha * d.to_f64();
            (step as f32, odd_normal(t.to_f64() + step))
        } else {
            let step = factors.single * delta;
            (step, single + step)
        };
        let (t, d) = (single, delta);
        let mut value = if still { t } else { moved };
        if A::CHECKS && R::IS_F32 {
            self.odd[lane] |= if value.abs() < t.abs() * factors.share { factors.one } else { 0 };
        }
        if A::KEEPS {
            value = if kept { donor.to_f32() } else { value };
        }
        if A::WIDE || !R::IS_F32 {
            let subnormal = (value.to_bits() & 0x7FFF_FFFF).wrapping_sub(1) < 0x007F_FFFF;
            self.odd[lane] |= if subnormal { factors.one } else { 0 };
        }
        // To nearest, ties to even; what is not a number, or becomes none, is seen in `most`.
        let bits = value.to_bits();
        if A::TRIES {
            let near = (bits.wrapping_sub(0x8000 - NEAR) & 0xFFFF) <= 2 * NEAR;
            let small = value.abs() < step.abs() * EIGHTH;
            self.odd[lane] |= if !still & (near | small) { factors.one } else { 0 };
        }
        self.most[lane] = self.most[lane].max(bits & 0x7FFF_FFFF);
        let nearest = |bits: u32| bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000;
        let rounded = nearest(bits);
        let from = if A::ROUNDS { f32::from_bits(nearest(t.to_bits())) } else { t };
        let moved = f32::from_bits(rounded) - from;
        let error = moved - step;
        self.changed[lane] += if still { 0 } else { factors.one };
        self.lost[lane] += if !still & (moved == 0.0) { factors.one } else { 0 };
        self.squares[0][lane] += moved * moved;
        self.squares[1][lane] += d * moved;
        self.squares[2][lane] += error * error;
        self.squares[3][lane] += d * d;
        self.squares[4][lane] += t * t;
        rounded
    }
}

/// Sums of a tile in lanes.
#[derive(Default)]
pub(super) struct Lanes {
    squares: [[f64; LANES]; 5],
    changed: [u32; LANES],
    lost: [u32; LANES],
    odd: [u32; LANES],
    most: [u32; LANES],
}

impl Lanes {
    #[inline(always)]
    pub(super) fn add(&mut self, group: &Group) {
        for (sums, squares) in self.squares.iter_mut().zip(&group.squares) {
            for lane in 0..LANES {
                sums[lane] += f64::from(squares[lane]);
            }
        }
        for lane in 0..LANES {
            self.changed[lane] += group.changed[lane];
            self.lost[lane] += group.lost[lane];
            self.odd[lane] |= group.odd[lane];
            self.most[lane] = self.most[lane].max(group.most[lane]);
        }
    }

    /// The sums; none where a sum was too small to be done this way, a result is not finite, or squares are too large or too small for f32. `zeros` says whether all targets are zero.
    #[inline(always)]
    pub(super) fn sums(&self, alpha: f64, zeros: impl FnOnce() -> bool) -> Option<StepSums> {
        let odd = self.odd.iter().fold(0, |any, odd| any | odd);
        let most = self.most.iter().fold(0, |most, x| most.max(*x));
        if odd != 0 || most >= INFINITE {
            return None;
        }
        let count = |lanes: &[u32; LANES]| u64::from(lanes.iter().sum::<u32>());
        let [moved, dot, error, delta, target] = fold_all(&self.squares);
        let sums = StepSums {
            delta,
            step: alpha * (alpha * delta),
            moved,
            dot: alpha * dot,
            error,
            target,
            changed: count(&self.changed),
            lost: count(&self.lost),
        };
        // No sum is zero but of zeros; errors are zero, or not far below what has moved.
        let exact = (sums.delta != 0.0 || sums.changed == 0)
            && (sums.moved != 0.0 || sums.lost == sums.changed && (sums.error != 0.0 || sums.changed == 0))
            && (sums.target != 0.0 || zeros());
        let squares = [sums.delta, sums.moved, sums.error, sums.target];
        let fit = squares.iter().all(|sum| *sum == 0.0 || (LEAST..f64::INFINITY).contains(sum));
        (exact && fit && sums.dot.is_finite()).then_some(sums)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::TestCaseResult;

    use super::*;
    use crate::dtype::Dtype;
    use crate::kernels::combine::{add_difference, keep_donor, scale_difference, step, Single, CANCELLED};
    use crate::kernels::factor::holds;
    use crate::kernels::fused::stored::{step_stored_bf16, StoredTerm};
    use crate::kernels::fused::tiles::step_tiles_bf16;
    use crate::kernels::narrow::{narrow, Rounding};
    use crate::kernels::stats::step_sums;
    use crate::kernels::Level;

    fn values(bits: &[u16]) -> Vec<f32> {
        bits.iter().map(|bits| f32::from_bits(u32::from(*bits) << 16)).collect()
    }

    fn stored(bits: &[u16]) -> Vec<u8> {
        bits.iter().flat_map(|bits| bits.to_le_bytes()).collect()
    }

    #[test]
    fn squares_that_are_too_small_are_not_taken_for_zeros() {
        let least = 1;
        for level in Level::available() {
            for (target, delta) in [(least | 0x8000, 0), (0, least), (least, least)] {
                let (target, delta) = ([0, target], [0, delta]);
                let mut bytes = [0; 4];
                let steps = (&values(&target)[..], &values(&delta)[..]);
                let found = step_tiles_bf16(level, steps, false, (1.0, CANCELLED), None, &mut bytes);
                assert!(found.is_none(), "{} {steps:?} {found:?}", level.name());
                let terms = [StoredTerm::<f32> { model: &stored(&delta), reference: None, weight: 1.0 }];
                let found = step_stored_bf16(level, &stored(&target), &terms, (1.0, CANCELLED), false, &mut bytes);
                assert!(found.is_none(), "{} {steps:?} {found:?}", level.name());
            }
        }
    }

    #[test]
    fn a_tiny_alpha_is_left_to_the_long_way() {
        let (target, delta) = ([0x8000u16, 0x3F80], [0x3C00u16, 0x3C00]);
        let steps = (&values(&target)[..], &values(&delta)[..]);
        let (from, model) = (stored(&target), stored(&delta));
        let terms = [StoredTerm::<f32> { model: &model, reference: None, weight: 1.0 }];
        for level in Level::available() {
            // Squares that are too small, and a factor that is.
            for alpha in [1e-22, 1e-46] {
                let mut bytes = [0; 4];
                assert!(step_tiles_bf16(level, steps, false, (alpha, CANCELLED), None, &mut bytes).is_none());
                assert!(step_stored_bf16(level, &from, &terms, (alpha, CANCELLED), false, &mut bytes).is_none());
            }
        }
    }

    /// What a loop has found, against the kernels that do one thing each.
    fn compare(short: bool, found: Option<&StepSums>, sums: &StepSums, bytes: (&[u8], &[u8])) -> TestCaseResult {
        prop_assert!(found.is_some() || !short);
        let Some(found) = found else { return Ok(()) };
        prop_assert_eq!(bytes.0, bytes.1);
        prop_assert_eq!((found.changed, found.lost), (sums.changed, sums.lost));
        let (both, product) = (sums.step + sums.moved, (sums.step * sums.moved).sqrt());
        for (found, sum, scale) in [
            (found.delta, sums.delta, sums.delta),
            (found.step, sums.step, sums.step),
            (found.moved, sums.moved, sums.moved),
            (found.target, sums.target, sums.target),
            (found.dot, sums.dot, product),
            (found.error, sums.error, sums.error + (sums.error * both).sqrt() + 1e-7 * both),
        ] {
            prop_assert!((found - sum).abs() <= 2e-6 * scale, "{found} {sum}");
        }
        Ok(())
    }

    proptest! {
        /// Over all bit patterns, and over values near each other.
        #[test]
        fn the_short_ways_are_the_long_way(
            bits in prop::collection::vec((any::<u16>(), any::<u16>(), any::<u16>(), 0u16..4), 0..300),
            near in any::<bool>(),
            alpha in prop_oneof![Just(1.0), Just(0.0), Just(-1.0), -2.0..2.0f64],
            count in 1usize..4,
            keeps in any::<bool>(),
        ) {
            let n = bits.len();
            let one = |x: u16| if near { 0x3C00 | x & 0x81FF } else { x };
            let target: Vec<u16> = bits.iter().map(|b| one(b.0)).collect();
            let reference: Vec<u16> = bits.iter().zip(&target).map(|(b, t)| if b.3 == 0 { *t } else { one(b.1) }).collect();
            let donor: Vec<u16> = bits.iter().map(|b| one(b.2)).collect();
            // Elements are kept at α = 1 alone, which no loop has to try.
            let (keeps, weights) = (keeps && count == 1 && holds::<f32>(alpha), [1.0, 0.5, -0.25]);
            // The second term is a vector already.
            let models = [(&donor, Some(&reference)), (&reference, None), (&target, Some(&donor))];
            let (t, zeros) = (values(&target), vec![0f32; n]);
            let mut terms = Vec::new();
            let kept: Vec<(Vec<u8>, Option<Vec<u8>>)> =
                models.iter().map(|(x, y)| (stored(x), y.map(|y| stored(y)))).collect();
            for ((model, reference), weight) in kept.iter().zip(weights).take(count) {
                terms.push(StoredTerm { model, reference: reference.as_deref(), weight });
            }
            for level in Level::available() {
                let mut delta = vec![0f32; n];
                for (k, ((x, y), weight)) in models.iter().zip(weights).take(count).enumerate() {
                    let add = if k == 0 { scale_difference } else { add_difference };
                    add(level, &values(x), &y.map_or(zeros.clone(), |y| values(y)), weight, &mut delta);
                }
                let (mut out, mut want) = (vec![0f32; n], vec![0u8; 2 * n]);
                let plain = step(level, &t, &delta, alpha, Single::Odd, &mut out);
                let pair = (values(&donor), values(&reference));
                if keeps {
                    keep_donor(level, &t, &pair.0, &pair.1, &mut out);
                }
                let finite = narrow(level, Dtype::BF16, &mut out, Rounding::Nearest, &mut want);
                let sums = step_sums(level, &t, &delta, alpha, &out);
                let fits = |sum: &f64| *sum == 0.0 || (1e-24..1e36).contains(sum);
                // An error below the rounding of what has moved may be anything.
                let clear = sums.error == 0.0 || sums.error > 1e-12 * (sums.step + sums.moved);
                let exact = clear && [sums.delta, sums.moved, sums.error, sums.target].iter().all(fits);
                let short = plain && finite && exact && alpha != 0.0;
                let mut got = vec![0u8; 2 * n];
                let pairs = keeps.then_some((&pair.0[..], &pair.1[..]));
                let found = step_tiles_bf16(level, (&t, &delta), false, (alpha, CANCELLED), pairs, &mut got);
                prop_assert!(found.is_none() || plain && finite);
                compare(short, found.as_ref(), &sums, (&got, &want))?;
                let through = step_stored_bf16(level, &stored(&target), &terms, (alpha, CANCELLED), keeps, &mut got);
                prop_assert!(through.is_none() || plain && finite);
                compare(short, through.as_ref(), &sums, (&got, &want))?;
                // In f64, as factors that f32 does not hold want it.
                if !keeps {
                    let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
                    let tenths = |k: usize| [1.0, 0.3, -0.7][k];
                    let mut delta = vec![0f64; n];
                    for (k, (x, y)) in models.iter().take(count).enumerate() {
                        let add = if k == 0 { scale_difference } else { add_difference };
                        let y = y.map_or(zeros.clone(), |y| values(y));
                        add(level, &wide(&values(x)), &wide(&y), tenths(k), &mut delta);
                    }
                    let mut out = vec![0f64; n];
                    step(level, &wide(&t), &delta, alpha, Single::Odd, &mut out);
                    let finite = narrow(level, Dtype::BF16, &mut out, Rounding::Nearest, &mut want);
                    let terms: Vec<StoredTerm<'_, f64>> = (0..count)
                        .map(|k| StoredTerm { model: &kept[k].0, reference: kept[k].1.as_deref(), weight: tenths(k) })
                        .collect();
                    let found = step_stored_bf16(level, &stored(&target), &terms, (alpha, CANCELLED), false, &mut got);
                    prop_assert!(found.is_none() || finite);
                    if let Some(found) = found {
                        let sums = step_sums(level, &wide(&t), &delta, alpha, &out);
                        prop_assert_eq!(&got, &want);
                        prop_assert_eq!((found.changed, found.lost), (sums.changed, sums.lost));
                    }
                }
                // The same bits at every level.
                let mut got = vec![0u8; 2 * n];
                let base = Level::SCALAR;
                let again = step_tiles_bf16(base, (&t, &delta), false, (alpha, CANCELLED), pairs, &mut got);
                prop_assert_eq!(format!("{again:?}"), format!("{found:?}"));
                let again = step_stored_bf16(base, &stored(&target), &terms, (alpha, CANCELLED), keeps, &mut got);
                prop_assert_eq!(format!("{again:?}"), format!("{through:?}"));
            }
        }
    }
}
