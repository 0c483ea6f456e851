//! What is computed of a patch before it is encoded, for every output.

use super::Bench;
use crate::error::Result;
use crate::kernels::quantise::seen::{look, Seen};
use crate::kernels::TILE;
use crate::run::encode::form::Place;
use crate::run::encode::packed::Packed;
use crate::run::tile::values::Values;
use crate::run::tile::{Place as TilePlace, Span};
use crate::storage::chunk::{Chunk, Scratch};

impl Bench {
    /// What is computed of a patch, for every output; returns the counts of values that are not finite, by input.
    ///
    /// # Errors
    /// Unreadable input.
    pub(super) fn compute(&mut self, packed: &Packed, tile: &TilePlace<'_>, place: &Place) -> Result<(Vec<u64>, u64)> {
        let (form, n, inputs) = (&packed.form, place.elements(), &tile.program.inputs);
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize_with(inputs.len().max(scratch.len()), Scratch::default);
        self.x.resize_with(packed.steps.len().max(self.x.len()), Vec::new);
        self.x.iter_mut().for_each(|x| x.resize(n, 0.0));
        self.target.resize(n, 0.0);
        self.delta.resize(n, 0.0);
        let first = place.first_row(form) * form.columns;
        let mut chunks = Vec::with_capacity(inputs.len());
        for (input, scratch) in inputs.iter().zip(&mut scratch) {
            chunks.push(input.open(first..first + place.rows * form.columns, scratch)?);
        }
        let (mut bad, mut unweighted) = (vec![0; inputs.len()], 0);
        let whole = place.columns == form.columns;
        let (runs, length) = if whole { (1, n) } else { (place.rows as usize, place.columns as usize) };
        for run in 0..runs {
            let from = if whole { 0 } else { run * form.columns as usize + place.column as usize };
            for at in (0..length).step_by(TILE) {
                let m = (length - at).min(TILE);
                let here = run * length + at;
                let span = Span { first: first + (from + at) as u64, at: from + at, n: m, counted: true };
                self.tile(packed, tile, &chunks, span, here, (&mut bad, &mut unweighted))?;
            }
        }
        drop(chunks);
        self.scratch = scratch;
        if tile.program.has_read() {
            bad.fill(0);
        }
        Ok((bad, unweighted))
    }

    fn tile(
        &mut self,
        packed: &Packed,
        tile: &TilePlace<'_>,
        chunks: &[Chunk<'_>],
        span: Span,
        here: usize,
        (bad, unweighted): (&mut [u64], &mut u64),
    ) -> Result<()> {
        let range = here..here + span.n;
        let mut outs: Vec<(f64, &mut [f32])> =
            packed.steps.iter().zip(&mut self.x).map(|(step, x)| (step.alpha, &mut x[range.clone()])).collect();
        let mut values = Values {
            target: &mut self.target[range.clone()],
            delta: &mut self.delta[range.clone()],
            outs: &mut outs,
            bad,
            unweighted,
            noise: self.noise.as_mut(),
        };
        self.tiler.values(tile, chunks, span, &mut values)
    }

    /// What the groups of a patch hold, by output; for a scale that is chosen for a whole.
    ///
    /// # Errors
    /// Unreadable input.
    pub(in crate::run::encode) fn seen(
        &mut self,
        packed: &Packed,
        tile: &TilePlace<'_>,
        place: &Place,
    ) -> Result<Vec<Seen>> {
        self.noise = None;
        self.compute(packed, tile, place)?;
        let n = place.elements();
        let seen = |x: &Vec<f32>| {
            let mut seen = [Seen::default()];
            look(packed.level, &x[..n], &self.target[..n], n, &mut seen);
            seen[0]
        };
        Ok(self.x[..packed.steps.len()].iter().map(seen).collect())
    }
}
