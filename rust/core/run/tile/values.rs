//! What is computed of a tile, for every output, before it is rounded: for storages that do not round element by element.

use super::{donors, Moved, Place, Span, Tiler, Tiles};
use crate::error::Result;
use crate::kernels::combine::Single;
use crate::kernels::widen::count_non_finite;
use crate::kernels::Real;
use crate::measure::Survival;
use crate::methods::method::{Computes, Method};
use crate::run::noise::of_pairs;
use crate::run::program::Arithmetic;
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
        match &place.program.arithmetic {
            Arithmetic::Wide(method) => {
                let mut tiles = std::mem::take(&mut self.wide);
                let done = self.into(place, Some(method.as_ref()), chunks, &mut tiles, span, values);
                self.wide = tiles;
                done
            }
            other => {
                let method = if let Arithmetic::Narrow(method) = other { Some(method.as_ref()) } else { None };
                let mut tiles = std::mem::take(&mut self.narrow);
                let done = self.into(place, method, chunks, &mut tiles, span, values);
                self.narrow = tiles;
                done
            }
        }
    }

    fn into<R: Real>(
        &mut self,
        place: &Place<'_>,
        method: Option<&dyn Method<R>>,
        chunks: &[Chunk<'_>],
        tiles: &mut Tiles<R>,
        span: Span,
        values: &mut Values<'_, '_>,
    ) -> Result<()> {
        let (level, Span { at, n, .. }) = (self.level, span);
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
        let (taken, mut mask) = (place.program.taken.as_deref(), std::mem::take(&mut self.mask));
        if let Some(taken) = taken {
            taken.mask(span.first, n, &mut mask);
        }
        if method.computes() == Computes::Value {
            method.tile(&place.tensor, &place.state, &tile, &mut *out)?;
            if let Some(taken) = taken {
                restore(&mask, &inputs[taken.input], out);
            }
            self.mask = mask;
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
            self.moved(chunks, at, &moved, out);
            if let Some(taken) = taken {
                restore(&mask, &inputs[taken.input], out);
            }
            single(out, slot);
        }
        self.mask = mask;
        Ok(())
    }
}

fn single<R: Real>(from: &[R], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(slot, x)| *slot = x.to_f32());
}
