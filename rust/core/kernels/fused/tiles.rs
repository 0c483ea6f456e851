//! The end of a step in one loop: onto the target, to bf16, measured. What `step`, `keep_donor`, `narrow` and
//! `step_sums` do one after the other, to the same bytes, with every value still in a register.

use super::lanes::{Asked, Factors, Group, Lanes, Loop, MANY, TOGETHER};
use crate::kernels::factor::holds;
use crate::kernels::real::{Real, LANES};
use crate::kernels::stats::StepSums;

kernel! {
    /// `bytes = bf16(target + α · delta)`, and what became of the step: told from the target, or with `rounds` from that
    /// as bf16 holds it. With `kept`, the donor and the reference, an element whose target is the reference becomes the
    /// donor. None, with anything in `bytes`, where α is 0, a sum is below `share` of its target, a result is not finite,
    /// or squares are too large or too small for the compute type: that wants the long way.
    pub(crate) fn step_tiles_bf16<R>(
        steps: (&[R], &[R]),
        rounds: bool,
        factors: (f64, f64),
        kept: Option<(&[R], &[R])>,
        bytes: &mut [u8],
    ) -> Option<StepSums> {
        let itself = (steps.0, steps.0);
        // α = 1, at which elements are kept, is no wide one.
        macro_rules! of {
            ($rounds:literal) => {
                match kept {
                    None if !holds::<f32>(factors.0) => {
                        all::<R, Loop<true, false, true, $rounds>>(steps, factors, itself, bytes)
                    }
                    None if factors.1 == 0.0 => all::<R, Loop<false, false, false, $rounds>>(steps, factors, itself, bytes),
                    None => all::<R, Loop<true, false, false, $rounds>>(steps, factors, itself, bytes),
                    Some(kept) => all::<R, Loop<true, true, false, $rounds>>(steps, factors, kept, bytes),
                }
            };
        }
        if rounds { of!(true) } else { of!(false) }
    }
}

#[inline(always)]
fn all<R: Real, A: Asked>(
    (target, delta): (&[R], &[R]),
    (alpha, share): (f64, f64),
    (donor, reference): (&[R], &[R]),
    bytes: &mut [u8],
) -> Option<StepSums> {
    let n = target.len();
    let (delta, donor, reference) = (&delta[..n], &donor[..n], &reference[..n]);
    let (mut lanes, factors) = (Lanes::default(), Factors::new(alpha, share));
    if alpha == 0.0 {
        return None;
    }
    let (pairs, _) = bytes.as_chunks_mut::<2>();
    let (out, out_rest) = pairs.as_chunks_mut::<MANY>();
    let (t, t_rest) = target.as_chunks::<MANY>();
    let (d, d_rest) = delta.as_chunks::<MANY>();
    let (x, x_rest) = donor.as_chunks::<MANY>();
    let (y, y_rest) = reference.as_chunks::<MANY>();
    for ((((out, t), d), x), y) in out.iter_mut().zip(t).zip(d).zip(x).zip(y) {
        group::<R, A>((t, d), (x, y), &factors, &mut lanes, out);
    }
    if !out_rest.is_empty() {
        // Padded with zeros, which change no sum.
        let mut padded = [[R::ZERO; MANY]; 4];
        for (padded, rest) in padded.iter_mut().zip([t_rest, d_rest, x_rest, y_rest]) {
            padded[..rest.len()].copy_from_slice(rest);
        }
        let mut out = [[0; 2]; MANY];
        let [t, d, x, y] = &padded;
        group::<R, A>((t, d), (x, y), &factors, &mut lanes, &mut out);
        out_rest.copy_from_slice(&out[..out_rest.len()]);
    }
    lanes.sums(alpha, || target.iter().all(|x| *x == R::ZERO))
}

#[inline(always)]
fn group<R: Real, A: Asked>(
    (target, delta): (&[R; MANY], &[R; MANY]),
    (donor, reference): (&[R; MANY], &[R; MANY]),
    factors: &Factors,
    lanes: &mut Lanes,
    bytes: &mut [[u8; 2]; MANY],
) {
    let mut group = Group::default();
    for i in 0..TOGETHER {
        for lane in 0..LANES {
            let at = i * LANES + lane;
            let (step, kept) = ((target[at], delta[at]), (donor[at], reference[at]));
            let rounded = group.element::<R, A>(lane, step, kept, factors);
            bytes[at] = ((rounded >> 16) as u16).to_le_bytes();
        }
    }
    lanes.add(&group);
}
