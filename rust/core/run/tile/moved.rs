//! The target with α times its step: in f32 where that does, again in f64 where it cancels.

use super::Tiler;
use crate::kernels::combine::{keep_donor, step, step_again, Single, Term as WideTerm};
use crate::kernels::{Real, TILE};
use crate::methods::method::Term;
use crate::storage::chunk::{Chunk, Exact};

/// A step and what is done with it.
pub(super) struct Moved<'t, R> {
    pub inputs: &'t [Vec<R>],
    pub delta: &'t [R],
    pub terms: Option<&'t [Term]>,
    pub alpha: f64,
    /// How what f64 computes becomes f32.
    pub rounding: Single,
    /// The donor and the reference where the target may have to become the donor.
    pub donor: Option<(&'t [R], &'t [R])>,
    pub elsewhere: Option<Exact<'t>>,
}

/// At α = 1 of one difference as it is, the target may have to become the donor.
#[allow(clippy::type_complexity)]
pub(super) fn donors<'t, R: Real>(
    inputs: &'t [Vec<R>],
    chunks: &'t [Chunk<'_>],
    terms: Option<&[Term]>,
    alpha: f64,
) -> (Option<(&'t [R], &'t [R])>, Option<Exact<'t>>) {
    let kept = match (alpha, terms) {
        (1.0, Some([term @ Term { weight: 1.0, .. }])) => Some(term),
        _ => None,
    };
    let donor = kept.and_then(|term| Some((&inputs[term.model][..], &inputs[term.reference?][..])));
    let elsewhere = kept.filter(|term| term.reference.is_none()).and_then(|term| chunks[term.model].exact());
    (donor, elsewhere)
}

impl Tiler {
    /// The target with α times its step.
    pub(super) fn moved<R: Real>(&mut self, chunks: &[Chunk<'_>], at: usize, moved: &Moved<'_, R>, out: &mut [R]) {
        let Moved { inputs, delta, terms, alpha, rounding, donor, elsewhere } = moved;
        let plain = step(self.level, &inputs[0], delta, *alpha, *rounding, out);
        if let (true, Some(terms)) = (R::IS_F32 && !plain, terms) {
            self.again(chunks, at, terms, (*alpha, *rounding), out);
        }
        if let Some((donor, reference)) = donor {
            keep_donor(self.level, &inputs[0], donor, reference, out);
        }
        if let Some(kept) = elsewhere {
            kept.keep(self.level, at, &inputs[0], out);
        }
    }

    /// What f32 cannot do well in this tile, again in f64.
    fn again<R: Real>(
        &mut self,
        chunks: &[Chunk<'_>],
        at: usize,
        terms: &[Term],
        (alpha, rounding): (f64, Single),
        out: &mut [R],
    ) {
        let n = out.len();
        self.wide.load(self.level, chunks, at, n, |_, _| {});
        let inputs = &self.wide.inputs;
        let wide: Vec<WideTerm<'_>> = terms
            .iter()
            .map(|term| (inputs[term.model].as_slice(), term.reference.map(|r| inputs[r].as_slice()), term.weight))
            .collect();
        let mut single = [0f32; TILE];
        for (slot, value) in single.iter_mut().zip(out.iter()) {
            *slot = value.to_f32();
        }
        step_again(self.level, &inputs[0], &wide, alpha, rounding, &mut single[..n]);
        for (slot, value) in out.iter_mut().zip(&single) {
            *slot = R::from_f32(*value);
        }
    }
}
