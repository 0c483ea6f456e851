//! A whole step from stored bf16 to stored bf16 in one loop: widened, subtracted, added up, added to the target, rounded
//! and measured without a buffer between. Two elements that are neighbours in memory make one word, whose halves need
//! one instruction each to become numbers, and one together to become a word again.

use super::lanes::{Asked, Factors, Group, Lanes, Loop, MANY, TOGETHER};
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
        group::<R, N, A>(target, (&models, &references, &weights), &factors, &mut lanes, out);
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
        group::<R, N, A>(&padded, (&models, &references, &weights), &factors, &mut lanes, &mut out);
        rest.copy_from_slice(&out[..rest.len()]);
    }
    lanes.sums(alpha, || target.iter().enumerate().all(|(i, byte)| byte & if i % 2 == 0 { 0xFF } else { 0x7F } == 0))
}

#[inline(always)]
fn group<R: Real, const N: usize, A: Asked>(
    target: &Stored,
    (models, references, weights): (&[&Stored; N], &[&Stored; N], &[R; N]),
    factors: &Factors,
    lanes: &mut Lanes,
    bytes: &mut Stored,
) {
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
    lanes.add(&group);
}
