//! Sums of what is all stored in bf16, rounded and measured without a tile between: a step's differences, or models.

use super::{Place, Span, Target, Tiler};
use crate::dtype::Dtype;
use crate::kernels::combine::CANCELLED;
use crate::kernels::factor::Factor;
use crate::kernels::fused::stored::{step_stored_bf16, StoredTerm, TERMS};
use crate::kernels::fused::sum::{sum_stored_bf16, StoredFactor, SUMMANDS};
use crate::kernels::stats::StepSums;
use crate::kernels::Real;
use crate::methods::method::{Method, Term};
use crate::storage::chunk::Chunk;
use crate::storage::Storage;

impl Tiler {
    /// A sum of differences that are all stored in bf16, without a tile between; false where that cannot be, with
    /// anything in the outputs' bytes.
    pub(super) fn through<R: Real>(
        &mut self,
        place: &Place<'_>,
        method: &dyn Method<R>,
        chunks: &[Chunk<'_>],
        span: Span,
        outputs: &mut [Target<'_>],
    ) -> bool {
        if let Some(terms) = method.value_of() {
            return self.sum_through::<R>(place, terms, chunks, span, outputs);
        }
        let (Some(terms), factor, Span { at, n, .. }) = (method.sum_of(), method.factor(), span) else { return false };
        if !place.is_short(span) || !place.program.pairs.is_empty() || terms.is_empty() || terms.len() > TERMS {
            return false;
        }
        // All inputs are to be read: what is not finite is to be found.
        let named = |input| input == 0 || terms.iter().any(|t| t.model == input || t.reference == Some(input));
        if !(0..chunks.len()).all(named) {
            return false;
        }
        let stored = |index: usize| chunks[index].stored(Dtype::BF16, at, n);
        let Some(target) = stored(0) else { return false };
        let mut all = [StoredTerm { model: target, reference: None, weight: R::ZERO }; TERMS];
        for (slot, term) in all.iter_mut().zip(terms) {
            let reference = term.reference.map(stored);
            let (Some(model), false) = (stored(term.model), reference == Some(None)) else { return false };
            *slot = StoredTerm { model, reference: reference.flatten(), weight: R::from_f64(term.weight) };
        }
        chunks.iter().for_each(|chunk| chunk.ahead(at, n));
        self.sums.clear();
        for output in &mut *outputs {
            let alpha = output.alpha * factor;
            let keeps = matches!(terms, [Term { weight: 1.0, reference: Some(_), .. }]) && alpha == 1.0;
            self.sums.push(if alpha == 0.0 {
                output.bytes.copy_from_slice(target);
                StepSums::default()
            } else {
                let factors = (alpha, CANCELLED);
                match step_stored_bf16(self.level, target, &all[..terms.len()], factors, keeps, output.bytes) {
                    Some(sums) => sums,
                    None => return false,
                }
            });
        }
        // What becomes of nothing is known from any other α.
        let moved = |(_, output): &(_, &Target<'_>)| output.alpha * factor != 0.0;
        let Some((any, _)) = self.sums.iter().copied().zip(&*outputs).find(moved) else { return false };
        for (output, sums) in outputs.iter_mut().zip(&self.sums) {
            let sums = if output.alpha * factor == 0.0 { any.still(0.0) } else { *sums };
            output.survival.as_deref_mut().into_iter().for_each(|survival| survival.add(&sums, n as u64));
        }
        true
    }

    /// A weighted sum of models that are all stored in bf16, without a tile between; false where that cannot be, with
    /// anything in the outputs' bytes.
    fn sum_through<R: Real>(
        &self,
        place: &Place<'_>,
        terms: &[Term],
        chunks: &[Chunk<'_>],
        Span { at, n, .. }: Span,
        outputs: &mut [Target<'_>],
    ) -> bool {
        let program = place.program;
        let plain = program.job.target().plain() == Some(Dtype::BF16);
        if !plain || place.draws.is_some() || program.taken.is_some() || !program.pairs.is_empty() {
            return false;
        }
        // All inputs are to be read: what is not finite is to be found.
        let named = |input| terms.iter().any(|term| term.model == input);
        if terms.len() > SUMMANDS || !(0..chunks.len()).all(named) {
            return false;
        }
        let mut factors = [StoredFactor { model: &[], weight: Factor::<R>::one() }; SUMMANDS];
        for (slot, term) in factors.iter_mut().zip(terms) {
            let Some(model) = chunks[term.model].stored(Dtype::BF16, at, n) else { return false };
            *slot = StoredFactor { model, weight: Factor::new(term.weight) };
        }
        chunks.iter().for_each(|chunk| chunk.ahead(at, n));
        let Some((first, others)) = outputs.split_first_mut() else { return false };
        let done = sum_stored_bf16(self.level, &factors[..terms.len()], first.bytes);
        others.iter_mut().for_each(|output| output.bytes.copy_from_slice(first.bytes));
        done
    }
}
