//! A whole step from stored bf16 to stored bf16 in one loop: widened, subtracted, added up, added to the target, rounded
//! and measured without a buffer between. Two elements that are neighbours in memory make one word, whose halves need
//! one instruction each to become numbers, and one together to become a word again.

use super::lanes::{Asked, Factors, Group, Lanes, Loop, Tried, MANY, TOGETHER};
use crate::kernels::factor::holds;
use crate::kernels::real::{Real, LANES};
use crate::kernels::stats::StepSums;

/// weight · (model − reference), as it is stored in bf16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredTerm<'a, R> {
    /// The model, or the difference itself.
    pub model: &'a [u8],
    /// What is subtracted from it.
    pub reference: Option<&'a [u8]>,
    /// Factor.
    pub weight: R,
}

/// Most terms of such a step.
pub(crate) const TERMS: usize = 3;

kernel! {
    /// `bytes = bf16(target + α · Σ terms)`, and what became of the step, as
    /// [`step_tiles_bf16`](super::finish::step_tiles_bf16) says it. With `keeps`, an element whose target is the reference of
    /// the first term becomes its model. None also where an input is not finite, or there are no terms or more than
    /// [`TERMS`].
    pub(crate) fn step_stored_bf16<R>(
        target: &[u8],
        terms: &[StoredTerm<'_, R>],
        factors: (f64, f64),
        keeps: bool,
        bytes: &mut [u8],
    ) -> Option<StepSums> {
        // α = 1, at which elements are kept, is no wide one.
        macro_rules! of {
            ($n:literal, $terms:expr) => {
                if R::IS_F32 && !holds::<R>(factors.0) {
                    all::<R, $n, Loop<true, false, true>>(target, $terms, factors, bytes)
                } else {
                    all::<R, $n, Loop<true, false, false>>(target, $terms, factors, bytes)
                }
            };
        }
        match (terms, keeps) {
            ([term], false) => of!(1, &[*term]),
            ([term], true) => all::<R, 1, Loop<true, true, false>>(target, &[*term], factors, bytes),
            ([a, b], false) => of!(2, &[*a, *b]),
            ([a, b, c], false) => of!(3, &[*a, *b, *c]),
            _ => None,
        }
    }
}

/// Bytes of the elements that are looked at together.
const BYTES: usize = 2 * MANY;
type Stored = [u8; BYTES];

#[inline(always)]
fn all<R: Real, const N: usize, A: Asked>(
    target: &[u8],
    terms: &[StoredTerm<'_, R>; N],
    (alpha, share): (f64, f64),
    bytes: &mut [u8],
) -> Option<StepSums> {
    let (mut lanes, factors) = (Lanes::default(), Factors::new(alpha, share));
    if alpha == 0.0 {
        return None;
    }
    let mut tries = factors.may_try();
    let zeros = [0u8; BYTES];
    let (mut models, mut references, mut weights) = ([&zeros; N], [&zeros; N], [R::ZERO; N]);
    for k in 0..N {
        weights[k] = terms[k].weight;
    }
    let (whole, rest) = bytes.as_chunks_mut::<BYTES>();
    let (targets, target_rest) = target.as_chunks::<BYTES>();
    let done = BYTES * whole.len();
    for (at, (out, target)) in whole.iter_mut().zip(targets).enumerate() {
        for k in 0..N {
            models[k] = &terms[k].model.as_chunks().0[at];
            references[k] = terms[k].reference.map_or(&zeros, |reference| &reference.as_chunks().0[at]);
        }
        let from = (target, &models, &references, &weights);
        // The f64 of a wide step is twice the work, and few groups need it. After one that does, the others of the tile
        // are taken for such: of unrelated models most are.
        if A::WIDE && tries {
            let group = group::<R, N, Tried>(from, &factors, out);
            if group.is_sure() {
                lanes.add(&group);
                continue;
            }
            tries = false;
        }
        lanes.add(&group::<R, N, A>(from, &factors, out));
    }
    if !rest.is_empty() {
        // Padded with zeros, which change no sum.
        let (mut last, mut out) = ([[[0u8; BYTES]; N]; 2], zeros);
        let mut padded = zeros;
        padded[..rest.len()].copy_from_slice(target_rest);
        for k in 0..N {
            last[0][k][..rest.len()].copy_from_slice(&terms[k].model[done..]);
            if let Some(reference) = terms[k].reference {
                last[1][k][..rest.len()].copy_from_slice(&reference[done..]);
            }
        }
        for k in 0..N {
            (models[k], references[k]) = (&last[0][k], &last[1][k]);
        }
        lanes.add(&group::<R, N, A>((&padded, &models, &references, &weights), &factors, &mut out));
        rest.copy_from_slice(&out[..rest.len()]);
    }
    lanes.sums(alpha, || target.iter().enumerate().all(|(i, byte)| byte & if i % 2 == 0 { 0xFF } else { 0x7F } == 0))
}

#[inline(always)]
fn group<R: Real, const N: usize, A: Asked>(
    (target, models, references, weights): (&Stored, &[&Stored; N], &[&Stored; N], &[R; N]),
    factors: &Factors,
    bytes: &mut Stored,
) -> Group {
    let word = |bytes: &Stored, at: usize| u32::from_le_bytes(bytes.as_chunks::<4>().0[at]);
    let halves = |word: u32| [word << 16, word & 0xFFFF_0000].map(|bits| R::from_f32(f32::from_bits(bits)));
    let mut group = Group::default();
    for i in 0..TOGETHER / 2 {
        for lane in 0..LANES {
            let at = i * LANES + lane;
            let (t, mut d) = (halves(word(target, at)), [R::ZERO; 2]);
            let (x, y) = (halves(word(models[0], at)), halves(word(references[0], at)));
            let mut rounded = [0; 2];
            for half in 0..2 {
                d[half] = weights[0] * (x[half] - y[half]);
            }
            for k in 1..N {
                let (x, y) = (halves(word(models[k], at)), halves(word(references[k], at)));
                for half in 0..2 {
                    d[half] += weights[k] * (x[half] - y[half]);
                }
            }
            for half in 0..2 {
                let (step, kept) = ((t[half], d[half]), (x[half], y[half]));
                rounded[half] = group.element::<R, A>(lane, step, kept, factors);
            }
            bytes.as_chunks_mut::<4>().0[at] = (rounded[0] >> 16 | rounded[1]).to_le_bytes();
        }
    }
    group
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::combine::CANCELLED;
    use crate::kernels::Level;

    fn value(bits: u16) -> f64 {
        f64::from(f32::from_bits(u32::from(bits) << 16))
    }

    /// The nearest bf16 number, of two the even one, by looking at the neighbours.
    fn nearest(x: f64) -> u16 {
        let near = ((x as f32).to_bits() >> 16) as u16;
        let neighbours = [near.saturating_sub(1), near, near + 1].into_iter();
        let apart =
            neighbours.map(|bits| ((value(bits) - x).abs(), bits & 1, bits)).filter(|(apart, ..)| !apart.is_nan());
        apart.min_by(|a, b| a.partial_cmp(b).unwrap()).unwrap().2
    }

    fn stored(values: &[u16]) -> Vec<u8> {
        values.iter().flat_map(|bits| bits.to_le_bytes()).collect()
    }

    /// One element of each group takes a step. Of these sums some hundred come out otherwise with the factor as f32 has
    /// it, most of them where the sum in f32 is not half way itself, and some where it is small beside its step.
    #[test]
    fn one_element_of_a_group_is_enough() {
        let sparse = if cfg!(miri) { 11 } else { 1 };
        let mut group = [0x3F80; MANY];
        let (mut zeros, mut number) = ([0; MANY], 0);
        for alpha in [0.3, 0.6, -1.1] {
            for (units, exponent) in (5..256).step_by(5 * sparse).flat_map(|units| (3..13).map(move |e| (units, e))) {
                let delta = nearest(f64::from(units) * (-f64::from(exponent)).exp2());
                for bits in (0x3F80..0x4000).step_by(5 * sparse).flat_map(|bits| [bits, bits | 0x8000]) {
                    number += 1;
                    let at = number * 37 % MANY;
                    (group[at], zeros[at]) = (bits, delta);
                    let (from, model) = (stored(&group), stored(&zeros));
                    group[at] = nearest(value(bits) + alpha * value(delta));
                    let want = stored(&group);
                    (group[at], zeros[at]) = (0x3F80, 0);
                    let terms = [StoredTerm::<f32> { model: &model, reference: None, weight: 1.0 }];
                    for level in Level::available() {
                        let mut got = [0; BYTES];
                        if step_stored_bf16(level, &from, &terms, (alpha, CANCELLED), false, &mut got).is_some() {
                            assert!(got[..] == want, "{alpha} {bits:x} {delta:x} {}", level.name());
                        }
                    }
                }
            }
        }
    }

    proptest! {
        /// Steps of whole tenths of half a unit: many sums are, but for the factor's last digits, half way between two
        /// numbers. Against one f64 an element.
        #[test]
        fn a_factor_that_f32_does_not_hold_decides_as_it_is(
            elements in prop::collection::vec((0x3F80u16..0x4000, -40i32..=40, 2i32..11, any::<bool>()), 1..600),
            crowded in 0usize..4,
            alpha in prop_oneof![Just(0.3), Just(0.1), Just(0.7), Just(0.8), Just(-1.1), 0.01..2.0f64],
        ) {
            // All groups, or those at the end alone, have such sums; the others take steps of an eighth of a unit.
            let plain = elements.len() * crowded / 3;
            let delta = |i: usize| match elements[i] {
                (_, units, exponent, _) if i >= plain => f64::from(units) * (-f64::from(exponent)).exp2(),
                (_, units, ..) => f64::from(units.signum()) / 1024.0,
            };
            let target: Vec<u16> = elements.iter().map(|e| e.0 | if e.3 { 0x8000 } else { 0 }).collect();
            let model: Vec<u16> = (0..elements.len()).map(|i| nearest(delta(i))).collect();
            let want: Vec<u16> = target.iter().zip(&model).map(|(t, d)| nearest(value(*t) + alpha * value(*d))).collect();
            let (from, model) = (stored(&target), stored(&model));
            let terms = [StoredTerm::<f32> { model: &model, reference: None, weight: 1.0 }];
            for level in Level::available() {
                let mut got = vec![0; from.len()];
                let found = step_stored_bf16(level, &from, &terms, (alpha, CANCELLED), false, &mut got);
                // A sum that cancels most of its target is left to the long way.
                let cancels = target.iter().zip(&want).any(|(t, w)| value(*w).abs() < value(*t).abs() / 1024.0);
                prop_assert!(found.is_some() || cancels || want == target);
                if found.is_some() {
                    prop_assert_eq!(&got, &stored(&want), "{}", level.name());
                }
            }
        }

        /// α beyond what f32 has, and results that are subnormal: right, or left to the long way.
        #[test]
        fn what_f32_has_not_is_never_wrong(
            elements in prop::collection::vec((any::<u16>(), any::<u16>()), 1..300),
            alpha in prop_oneof![Just(1e-40), Just(3e-39), Just(1e39), Just(0.3), Just(1e-30), Just(1e30)],
            small in any::<bool>(),
        ) {
            let one = |bits: u16| if small { bits & 0x81FF } else { bits };
            let finite = |bits: u16| if bits & 0x7F80 == 0x7F80 { bits & 0xBFFF } else { bits };
            let (target, model): (Vec<u16>, Vec<u16>) = elements.iter().map(|e| (finite(one(e.0)), finite(e.1))).unzip();
            let (from, delta) = (stored(&target), stored(&model));
            let terms = [StoredTerm::<f32> { model: &delta, reference: None, weight: 1.0 }];
            for level in Level::available() {
                let mut got = vec![0; from.len()];
                if step_stored_bf16(level, &from, &terms, (alpha, CANCELLED), false, &mut got).is_some() {
                    for ((t, d), bytes) in target.iter().zip(&model).zip(got.chunks_exact(2)) {
                        let (got, sum) = (u16::from_le_bytes([bytes[0], bytes[1]]), value(*t) + alpha * value(*d));
                        let want = if value(*d) == 0.0 { *t } else { nearest(sum) };
                        prop_assert!(got == want || value(got) == 0.0 && value(want) == 0.0, "{t:x} {d:x} {got:x} {want:x}");
                    }
                }
            }
        }
    }
}
