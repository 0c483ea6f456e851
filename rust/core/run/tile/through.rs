//! A sum of differences that are all stored in bf16, rounded and measured without a tile between.

use super::{Place, Span, Target, Tiler};
use crate::dtype::Dtype;
use crate::kernels::combine::CANCELLED;
use crate::kernels::fused::stored::{step_stored_bf16, StoredTerm, TERMS};
use crate::kernels::stats::StepSums;
use crate::kernels::Real;
use crate::methods::method::{Method, Term};
use crate::storage::chunk::Chunk;

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
}
