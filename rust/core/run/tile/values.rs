//! What is computed of a tile, for every output, before it is rounded: for storages that do not round element by element.

use super::moved::{donors, Moved};
use super::{Place, Span, Tiler, Tiles, Work};
use crate::error::Result;
use crate::kernels::combine::Single;
use crate::kernels::widen::count_non_finite;
use crate::kernels::Real;
use crate::measure::Survival;
use crate::methods::method::{Computes, Method};
use crate::run::noise::of_pairs;
use crate::run::taken::restore;
use crate::storage::chunk::Chunk;
use crate::tensor::Tile;

/// Where what is computed of a tile goes before it is rounded.
pub(crate) struct Values<'v, 'o> {
    /// Input 0.
    pub target: &'v mut [f32],
    /// The step for α = 1.
    pub delta: &'v mut [f32],
    /// For each output its α, with the operation's factor, and the result.
    pub outs: &'v mut [(f64, &'o mut [f32])],
    /// By input, values that are not finite: added to.
    pub bad: &'v mut [u64],
    /// Elements that matter to no model: added to.
    pub unweighted: &'v mut u64,
    /// What the differences of donors and references are like, where that is measured: added to.
    pub noise: Option<&'v mut Survival>,
}

impl Tiler {
    /// What is computed of a tile, for every α, before it is rounded.
    ///
    /// # Errors
    /// Unreadable input.
    pub(crate) fn values(
        &mut self,
        place: &Place<'_>,
        chunks: &[Chunk<'_>],
        span: Span,
        values: &mut Values<'_, '_>,
    ) -> Result<()> {
        self.in_type(&place.program.arithmetic, Computed { place, chunks, span, values })
    }
}

/// What is computed, and where its values go.
struct Computed<'c, 'v, 'o> {
    place: &'c Place<'c>,
    chunks: &'c [Chunk<'c>],
    span: Span,
    values: &'c mut Values<'v, 'o>,
}

impl Work for Computed<'_, '_, '_> {
    fn run<R: Real>(self, tiler: &mut Tiler, method: Option<&dyn Method<R>>, tiles: &mut Tiles<R>) -> Result<()> {
        let Computed { place, chunks, span, values } = self;
        let (level, Span { at, n, .. }) = (tiler.level, span);
        tiles.load(level, chunks, at, n, |index, tile| values.bad[index] += count_non_finite(level, tile));
        let Tiles { inputs, step: delta, out, .. } = tiles;
        if let Some(sums) = values.noise.as_deref_mut() {
            of_pairs(level, &place.program.pairs, chunks, at, inputs).for_each(|noise| sums.add_noise(&noise));
        }
        let (delta, out) = (&mut delta[..n], &mut out[..n]);
        single(&inputs[0], values.target);
        let Some(method) = method else {
            values.delta.fill(0.0);
            values.outs.iter_mut().for_each(|(_, slot)| slot[..n].copy_from_slice(values.target));
            return Ok(());
        };
        let tile = Tile { level, first: span.first, inputs };
        let (taken, mut mask) = (place.program.taken.as_deref(), std::mem::take(&mut tiler.mask));
        if let Some(taken) = taken {
            taken.mask(span.first, n, &mut mask);
        }
        if method.computes() == Computes::Value {
            method.tile(&place.tensor, &place.state, &tile, &mut *out)?;
            *values.unweighted += method.unweighted(&tile);
            if let Some(taken) = taken {
                restore(&mask, &inputs[taken.input], out);
            }
            tiler.mask = mask;
            values.delta.fill(0.0);
            values.outs.iter_mut().for_each(|(_, slot)| single(out, slot));
            return Ok(());
        }
        method.tile(&place.tensor, &place.state, &tile, &mut *delta)?;
        if taken.is_some() {
            delta.iter_mut().zip(&mask).filter(|(_, taken)| !**taken).for_each(|(slot, _)| *slot = R::ZERO);
        }
        single(delta, values.delta);
        for (alpha, slot) in values.outs.iter_mut() {
            let (donor, elsewhere) = donors(inputs, chunks, method.sum_of(), *alpha);
            // Scales and codes are quotients of it: it is not rounded once more, and what is nearest is right.
            let (terms, rounding) = (method.sum_of(), Single::Nearest);
            let moved = Moved { inputs, delta, terms, alpha: *alpha, rounding, donor, elsewhere };
            tiler.moved(chunks, at, &moved, out);
            if let Some(taken) = taken {
                restore(&mask, &inputs[taken.input], out);
            }
            single(out, slot);
        }
        tiler.mask = mask;
        Ok(())
    }
}

fn single<R: Real>(from: &[R], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(slot, x)| *slot = x.to_f32());
}
