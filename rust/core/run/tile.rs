//! One tile of one job: its inputs are widened, the operation is applied, and the result is narrowed and measured for
//! every output.

use std::sync::Arc;

use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernels::combine::{keep_donor, step, step_again, Single, Term as WideTerm, CANCELLED};
use crate::kernels::fused::stored::{step_stored_bf16, StoredTerm, TERMS};
use crate::kernels::fused::tiles::step_tiles_bf16;
use crate::kernels::narrow::Rounding;
use crate::kernels::philox::{fill, Stream};
use crate::kernels::stats::{more_step_sums, step_sums, StepSums};
use crate::kernels::{Level, Real, TILE};
use crate::measure::{NonFinite, Survival};
use crate::methods::method::{Computes, Method, State, Term};
use crate::run::noise::of_pairs;
use crate::run::program::{Arithmetic, Program};
use crate::run::taken::{restore, restore_bytes};
use crate::storage::chunk::{Chunk, Exact};
use crate::storage::Storage;
use crate::tensor::Tensor;
use crate::tensor::Tile;

pub(crate) mod values;

/// A smaller tensor's sums are all exact: one number less exact would show in them.
const SHORT: u64 = 1 << 16;

/// What is the same for all tiles of one job.
pub(crate) struct Place<'a> {
    pub program: &'a Program<'a>,
    pub tensor: Tensor<'a>,
    pub state: Arc<State>,
    pub non_finite: &'a NonFinite,
    /// The draws of stochastic rounding.
    pub draws: Option<Stream>,
}

impl<'a> Place<'a> {
    /// A job whose `prepare` is done.
    pub(crate) fn new(program: &'a Program<'a>, non_finite: &'a NonFinite, stochastic: bool) -> Self {
        let draws = stochastic.then(|| Stream::new(program.seed, "round", program.job.logical().0));
        Place { program, tensor: program.tensor(), state: program.state(), non_finite, draws }
    }

    /// Whether these elements may be rounded and measured in one loop.
    fn is_short(&self, span: Span) -> bool {
        let target = self.program.job.target();
        let plain = target.plain() == Some(Dtype::BF16);
        let whole = self.program.taken.is_none();
        span.counted && whole && self.draws.is_none() && plain && target.elements >= SHORT
    }
}

/// Which elements a tile holds.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    /// Index in the tensor of its first element.
    pub first: u64,
    /// Where that stands in the chunks.
    pub at: usize,
    /// Elements; at most [`TILE`].
    pub n: usize,
    /// Whether it is measured: an element that a block boundary cuts is computed on both sides of it.
    pub counted: bool,
}

/// Where one output of a tile goes.
pub(crate) struct Target<'b> {
    pub alpha: f64,
    /// Index of the output.
    pub output: usize,
    /// The bytes of the tile's elements.
    pub bytes: &'b mut [u8],
    /// Gets what became of the step.
    pub survival: Option<&'b mut Survival>,
}

/// A step and what is done with it.
struct Moved<'t, R> {
    inputs: &'t [Vec<R>],
    delta: &'t [R],
    terms: Option<&'t [Term]>,
    alpha: f64,
    /// How what f64 computes becomes f32.
    rounding: Single,
    /// The donor and the reference where the target may have to become the donor.
    donor: Option<(&'t [R], &'t [R])>,
    elsewhere: Option<Exact<'t>>,
}

/// At α = 1 of one difference as it is, the target may have to become the donor.
#[allow(clippy::type_complexity)]
fn donors<'t, R: Real>(
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

/// One thread's tiles, reused from tile to tile.
pub(crate) struct Tiler {
    level: Level,
    narrow: Tiles<f32>,
    wide: Tiles<f64>,
    draws: Vec<u32>,
    sums: Vec<StepSums>,
    mask: Vec<bool>,
}

/// Widened inputs and results of one tile.
#[derive(Default)]
struct Tiles<R> {
    inputs: Vec<Vec<R>>,
    step: Vec<R>,
    out: Vec<R>,
    /// The target as the output's type holds it, where it is not stored so.
    rounded: Vec<R>,
}

impl<R: Real> Tiles<R> {
    fn new() -> Self {
        Tiles { inputs: Vec::new(), step: vec![R::ZERO; TILE], out: vec![R::ZERO; TILE], rounded: Vec::new() }
    }

    /// Widens the inputs of `n` elements from `at` on; false if any is not finite.
    fn load(&mut self, level: Level, chunks: &[Chunk<'_>], at: usize, n: usize, mut bad: impl FnMut(usize, &[R])) {
        self.inputs.resize_with(chunks.len(), Vec::new);
        for (index, (tile, chunk)) in self.inputs.iter_mut().zip(chunks).enumerate() {
            tile.resize(n, R::ZERO);
            if !chunk.tile(level, at, tile) {
                bad(index, tile);
            }
        }
    }
}

impl Tiler {
    /// Buffers for tiles computed at `level`.
    pub(crate) fn new(level: Level) -> Self {
        Tiler { level, narrow: Tiles::new(), wide: Tiles::new(), draws: Vec::new(), sums: Vec::new(), mask: Vec::new() }
    }

    /// Whether the job's operation is a step from its target, which is measured.
    pub(crate) fn steps(program: &Program<'_>) -> bool {
        match &program.arithmetic {
            Arithmetic::Narrow(method) => method.computes() == Computes::Step,
            Arithmetic::Wide(method) => method.computes() == Computes::Step,
            Arithmetic::Convert { .. } | Arithmetic::Raw | Arithmetic::Aside => false,
        }
    }

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
        match &place.program.arithmetic {
            Arithmetic::Narrow(method) => {
                if self.through(place, method.as_ref(), chunks, span, outputs) {
                    return Ok(());
                }
                self.narrow(place, Some(method.as_ref()), chunks, span, outputs)
            }
            Arithmetic::Wide(method) if self.through(place, method.as_ref(), chunks, span, outputs) => Ok(()),
            Arithmetic::Convert { narrow: true } => self.narrow(place, None, chunks, span, outputs),
            Arithmetic::Wide(method) => self.wide(place, Some(method.as_ref()), chunks, span, outputs),
            Arithmetic::Convert { narrow: false } | Arithmetic::Raw | Arithmetic::Aside => {
                self.wide(place, None, chunks, span, outputs)
            }
        }
    }

    /// A sum of differences that are all stored in bf16, without a tile between; false where that cannot be, with
    /// anything in the outputs' bytes.
    fn through<R: Real>(
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

    fn narrow(
        &mut self,
        place: &Place<'_>,
        method: Option<&dyn Method<f32>>,
        chunks: &[Chunk<'_>],
        span: Span,
        outputs: &mut [Target<'_>],
    ) -> Result<()> {
        let mut tiles = std::mem::take(&mut self.narrow);
        let done = self.compute(place, method, chunks, &mut tiles, span, outputs);
        self.narrow = tiles;
        done
    }

    fn wide(
        &mut self,
        place: &Place<'_>,
        method: Option<&dyn Method<f64>>,
        chunks: &[Chunk<'_>],
        span: Span,
        outputs: &mut [Target<'_>],
    ) -> Result<()> {
        let mut tiles = std::mem::take(&mut self.wide);
        let done = self.compute(place, method, chunks, &mut tiles, span, outputs);
        self.wide = tiles;
        done
    }

    fn compute<R: Real>(
        &mut self,
        place: &Place<'_>,
        method: Option<&dyn Method<R>>,
        chunks: &[Chunk<'_>],
        tiles: &mut Tiles<R>,
        span: Span,
        outputs: &mut [Target<'_>],
    ) -> Result<()> {
        let (level, program, Span { at, n, counted, .. }) = (self.level, place.program, span);
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
            }
            None => out.copy_from_slice(&inputs[0]),
        }
        let taken = program.taken.as_deref();
        let mut mask = std::mem::take(&mut self.mask);
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
                self.moved(chunks, at, &moved, out);
                if let Some(taken) = taken {
                    restore(&mask, &inputs[taken.input], out);
                }
            }
            let rounding = if place.draws.is_some() { Rounding::Stochastic(&self.draws) } else { Rounding::Nearest };
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
        self.mask = mask;
        Ok(())
    }

    /// The target with α times its step.
    fn moved<R: Real>(&mut self, chunks: &[Chunk<'_>], at: usize, moved: &Moved<'_, R>, out: &mut [R]) {
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

/// Values as the target's type holds them.
fn held<'t, R: Real>(level: Level, target: impl Storage, values: &[R], rounded: &'t mut Vec<R>) -> Result<&'t [R]> {
    rounded.clear();
    rounded.extend_from_slice(values);
    let mut bytes = [0; TILE * 8];
    let bytes = &mut bytes[..target.bytes(&(0..values.len() as u64)) as usize];
    target.encode(level, R::floats(rounded), Rounding::Nearest, bytes)?;
    Ok(rounded)
}
