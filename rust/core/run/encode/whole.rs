//! Scales that are chosen for a whole tensor, or for each of its matrices, before any of it is encoded.

use std::sync::Mutex;

use super::chosen::{Choice, Chosen, Wholes};
use super::packed::Packed;
use super::patch::Bench;
use crate::error::Result;
use crate::kernels::quantise::code::Code;
use crate::kernels::quantise::rule::Rule;
use crate::kernels::quantise::seen::Seen;
use crate::run::tile::Place as TilePlace;
use crate::storage::packed::format::Global;
use crate::threads::{each, lock, Threads};

impl Packed {
    /// Chooses: the target's, unless it is too small for what has been computed.
    ///
    /// # Errors
    /// Unreadable input, or the run was cancelled.
    pub(super) fn choose(&self, tile: &TilePlace<'_>, threads: Threads<'_>) -> Result<Wholes> {
        (0..self.form.wholes).map(|whole| self.choose_one(tile, threads, whole)).collect()
    }

    fn choose_one(&self, tile: &TilePlace<'_>, threads: Threads<'_>, whole: u64) -> Result<Vec<Chosen>> {
        let (originals, mut buffer) = (self.originals(tile.program), Vec::new());
        let mut bits = |original: &Option<super::original::Original<'_>>| match original {
            Some(original) => original.whole(&self.form, whole, &mut buffer).map(Some),
            None => Ok(None),
        };
        let (target, reference, donor) =
            (bits(&originals.target)?, bits(&originals.reference)?, bits(&originals.donor)?);
        let target = target.filter(|_| self.own);
        let shared = target.is_some() && target == reference && target == donor;
        let equal = match (&originals.target, &originals.reference, donor) {
            (Some(target), Some(reference), Some(_)) if self.own && self.weight_one && self.taken.is_none() => {
                self.steps.iter().any(|step| step.alpha == 1.0) && target.equals(reference, whole, self.form.wholes)?
            }
            _ => false,
        };
        let kept = |alpha: f64| match target {
            Some(_) if equal && alpha == 1.0 => donor.map(|bits| Chosen { bits, choice: Choice::Donor, shared }),
            Some(bits) if self.rule == Rule::Own || self.steps_from_target && alpha == 0.0 => {
                Some(Chosen { bits, choice: Choice::Own, shared })
            }
            _ => None,
        };
        let known: Vec<Option<Chosen>> = self.steps.iter().map(|step| kept(step.alpha)).collect();
        if let Some(known) = known.iter().copied().collect() {
            return Ok(known);
        }
        let seen = self.seen(tile, threads, whole)?;
        let choose = |(known, seen): (Option<Chosen>, &Seen)| {
            known.unwrap_or_else(|| match target {
                Some(bits) if self.holds(bits, seen) => Chosen { bits, choice: Choice::Own, shared },
                _ => Chosen { bits: self.fresh_whole(seen), choice: Choice::Fresh, shared: false },
            })
        };
        Ok(known.into_iter().zip(&seen).map(choose).collect())
    }

    /// What all of the whole holds, by output.
    fn seen(&self, tile: &TilePlace<'_>, threads: Threads<'_>, whole: u64) -> Result<Vec<Seen>> {
        let per_whole = self.form.patches() / self.form.wholes.max(1);
        let sums = Mutex::new((vec![Seen::default(); self.steps.len()], Vec::new()));
        let one = |index: usize| {
            let taken = lock(&sums).1.pop();
            let mut bench = taken.unwrap_or_else(|| Bench::new(self.level));
            let seen = bench.seen(self, tile, &self.form.place(whole * per_whole + index as u64))?;
            let mut sums = lock(&sums);
            sums.0.iter_mut().zip(&seen).for_each(|(sum, more)| sum.merge(more));
            sums.1.push(bench);
            Ok(())
        };
        match threads {
            Threads::Pool(pool) => each(pool, tile.tensor.monitor, per_whole as usize, one)?,
            Threads::Alone => {
                (0..per_whole as usize).try_for_each(|index| tile.tensor.monitor.check().and_then(|()| one(index)))?;
            }
        }
        let (sums, _) = sums.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(sums)
    }

    /// Whether everything can be encoded under the target's scale without being clamped.
    fn holds(&self, bits: u32, seen: &Seen) -> bool {
        let (scale, most) = match self.form.global {
            None => (self.scales.value(bits), limit(self.form.code, self.covering)),
            Some(rule) => {
                let global = f32::from_bits(bits);
                let scale = if rule == Global::Multiply { global } else { 1.0 / global };
                (scale * self.form.code.top(), limit(Code::E4M3, self.covering))
            }
        };
        scale.is_finite() && scale != 0.0 && seen.amax() <= scale.abs() * most
    }

    fn fresh_whole(&self, seen: &Seen) -> u32 {
        let (amax, steps) = (seen.amax(), self.form.code.top() * Code::E4M3.top());
        let global = match self.form.global {
            None => return self.setting(None).fresh(seen).map_or(0, |fresh| fresh.bits),
            _ if amax == 0.0 => 1.0,
            Some(Global::Multiply) => amax / steps,
            Some(Global::Divide) => self.tool.round(self.tool.round(1.0 / amax) * steps),
        };
        global.clamp(f32::MIN_POSITIVE, f32::MAX).to_bits()
    }
}

/// Up to where numbers are rounded to the largest code; by draws, it may not be passed at all.
fn limit(code: Code, covering: bool) -> f32 {
    match code {
        _ if covering => code.top(),
        Code::E4M3 => 464.0,
        Code::E5M2 => 61440.0,
        Code::E2M1 => 7.0,
        Code::Signed(_) | Code::Offset(_) | Code::Unsigned(_) => code.top() + 0.5,
    }
}
