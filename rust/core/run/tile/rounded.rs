//! A tile rounded into the bytes of each output, and measured.

use super::moved::{donors, Moved};
use super::{Place, Span, Target, Tiler, Tiles, Work};
use crate::error::Result;
use crate::kernels::combine::{Single, CANCELLED};
use crate::kernels::fused::tiles::step_tiles_bf16;
use crate::kernels::narrow::Rounding;
use crate::kernels::philox::fill;
use crate::kernels::stats::{more_step_sums, step_sums, StepSums};
use crate::kernels::{Level, Real, TILE};
use crate::methods::method::{Computes, Method};
use crate::run::noise::of_pairs;
use crate::run::program::Arithmetic;
use crate::run::taken::{restore, restore_bytes};
use crate::storage::chunk::Chunk;
use crate::storage::Storage;
use crate::tensor::Tile;

impl Tiler {
    /// Widen, compute, narrow, measure, for every output.
    ///
    /// # Errors
    /// Unreadable input.
    pub(crate) fn tile(
        &mut self,
        place: &Place<'_>,
        chunks: &[Chunk<'_>],
        span: Span,
        outputs: &mut [Target<'_>],
    ) -> Result<()> {
        if let Some(stream) = &place.draws {
            self.draws.resize(span.n, 0);
            fill(self.level, stream, span.first, &mut self.draws);
        }
        let through = match &place.program.arithmetic {
            Arithmetic::Narrow(method) => self.through(place, method.as_ref(), chunks, span, outputs),
            Arithmetic::Wide(method) => self.through(place, method.as_ref(), chunks, span, outputs),
            Arithmetic::Convert { .. } | Arithmetic::Raw | Arithmetic::Aside => false,
        };
        if through {
            return Ok(());
        }
        self.in_type(&place.program.arithmetic, Rounded { place, chunks, span, outputs })
    }
}

/// What is rounded, and where it goes.
struct Rounded<'r, 'b> {
    place: &'r Place<'r>,
    chunks: &'r [Chunk<'r>],
    span: Span,
    outputs: &'r mut [Target<'b>],
}

impl Work for Rounded<'_, '_> {
    fn run<R: Real>(self, tiler: &mut Tiler, method: Option<&dyn Method<R>>, tiles: &mut Tiles<R>) -> Result<()> {
        let Rounded { place, chunks, span, outputs } = self;
        let (level, program, Span { at, n, counted, .. }) = (tiler.level, place.program, span);
        let counts_inputs = counted && !program.has_read();
        let mut finite = true;
        tiles.load(level, chunks, at, n, |index, tile| {
            finite = false;
            if counts_inputs {
                place.non_finite.input(program.index, index, level, tile);
            }
        });
        let Tiles { inputs, step: delta, out, rounded } = tiles;
        if counted {
            for noise in of_pairs(level, &program.pairs, chunks, at, inputs) {
                outputs.iter_mut().filter_map(|output| output.survival.as_mut()).for_each(|s| s.add_noise(&noise));
            }
        }
        let (delta, out) = (&mut delta[..n], &mut out[..n]);
        let stepped = method.is_some_and(|method| method.computes() == Computes::Step);
        match method {
            Some(method) => {
                let tile = Tile { level, first: span.first, inputs };
                method.tile(&place.tensor, &place.state, &tile, if stepped { &mut *delta } else { &mut *out })?;
                if counted {
                    place.non_finite.note_unweighted(program.index, method.unweighted(&tile));
                }
            }
            None => out.copy_from_slice(&inputs[0]),
        }
        let taken = program.taken.as_deref();
        let mut mask = std::mem::take(&mut tiler.mask);
        if let Some(taken) = taken {
            taken.mask(span.first, n, &mut mask);
            delta.iter_mut().zip(&mask).filter(|(_, taken)| !**taken).for_each(|(slot, _)| *slot = R::ZERO);
            restore(&mask, &inputs[taken.input], out);
        }
        let sum = method.and_then(Method::sum_of);
        // What α = 0 leaves alone is copied as it is stored.
        let target = program.job.target();
        let raw = stepped.then(|| chunks[0].stored(target.dtype, at, n)).flatten();
        let stored = raw.filter(|_| finite);
        let short = R::IS_F32 && place.is_short(span);
        let rounds = stepped && program.rounds_target();
        // What does not depend on α is measured once.
        let mut first: Option<StepSums> = None;
        for output in outputs {
            let alpha = output.alpha * method.map_or(1.0, Method::factor);
            if let (true, Some(stored)) = (alpha == 0.0, stored) {
                output.bytes.copy_from_slice(stored);
                if let (true, Some(survival)) = (counted, output.survival.as_deref_mut()) {
                    let sums = first.get_or_insert_with(|| step_sums(level, &inputs[0], delta, 0.0, &inputs[0]));
                    survival.add(&sums.still(0.0), n as u64);
                }
                continue;
            }
            if stepped {
                let (donor, elsewhere) = donors(inputs, chunks, sum, alpha);
                if short && elsewhere.is_none() {
                    let factors = (alpha, if sum.is_some() { CANCELLED } else { 0.0 });
                    let steps = (&inputs[0][..], &delta[..]);
                    if let Some(sums) = step_tiles_bf16(level, steps, rounds, factors, donor, output.bytes) {
                        output.survival.as_deref_mut().into_iter().for_each(|survival| survival.add(&sums, n as u64));
                        first.get_or_insert(sums);
                        continue;
                    }
                }
                let rounding = Single::Odd;
                let moved = Moved { inputs, delta, terms: sum, alpha, rounding, donor, elsewhere };
                tiler.moved(chunks, at, &moved, out);
                if let Some(taken) = taken {
                    restore(&mask, &inputs[taken.input], out);
                }
            }
            let rounding = if place.draws.is_some() { Rounding::Stochastic(&tiler.draws) } else { Rounding::Nearest };
            let finite = target.encode(level, R::floats(out), rounding, output.bytes)?;
            if let (true, Some(raw)) = (alpha == 0.0, raw) {
                // What is not finite was computed to be counted; a signalling NaN has become a quiet one by that.
                output.bytes.copy_from_slice(raw);
            }
            if let Some(kept) = taken.and_then(|taken| chunks[taken.input].stored(target.dtype, at, n)) {
                restore_bytes(&mask, target.dtype.size(), kept, output.bytes);
            }
            if !counted {
                continue;
            }
            if !finite {
                place.non_finite.output(program.index, output.output, level, out);
            }
            if let (true, Some(survival)) = (stepped, output.survival.as_deref_mut()) {
                // A packed target is not what α = 0 gives in the output's type: the step is told from that.
                let from = if rounds { held(level, target, &inputs[0], rounded)? } else { &inputs[0] };
                let sums = match &first {
                    Some(first) => more_step_sums(level, from, delta, alpha, out, first),
                    None => step_sums(level, from, delta, alpha, out),
                };
                survival.add(&sums, n as u64);
                first.get_or_insert(sums);
            }
        }
        tiler.mask = mask;
        Ok(())
    }
}

/// Values as the target's type holds them.
fn held<'t, R: Real>(level: Level, target: impl Storage, values: &[R], rounded: &'t mut Vec<R>) -> Result<&'t [R]> {
    rounded.clear();
    rounded.extend_from_slice(values);
    let mut bytes = [0; TILE * 8];
    let bytes = &mut bytes[..target.bytes(&(0..values.len() as u64)) as usize];
    target.encode(level, R::floats(rounded), Rounding::Nearest, bytes)?;
    Ok(rounded)
}
