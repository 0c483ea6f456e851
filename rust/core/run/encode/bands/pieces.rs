//! Pieces of the parts of a packed tensor, filled in from its patches.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use super::{Banded, Context, Wanted};
use crate::error::{Error, Result};
use crate::measure::{Place as Where, Survival};
use crate::plan::encoding::Role;
use crate::run::encode::make;
use crate::run::encode::patch::{Bench, Patch};
use crate::run::program::Step;
use crate::threads::{lock, Threads};

impl Banded {
    /// Fills in a piece of a part; returns what was measured, by output wanted, of patches that begin in it.
    ///
    /// # Errors
    /// Unreadable input.
    pub(crate) fn fill(
        &self,
        context: &Context<'_, '_>,
        bench: &mut Bench,
        wanted: &mut Wanted<'_>,
    ) -> Result<Vec<Option<Survival>>> {
        let role = self.packed.parts.iter().find(|(_, job)| *job == wanted.job).map_or(Role::Codes, |(role, _)| *role);
        let measured = if role == Role::Codes {
            self.codes(context, bench, wanted)?
        } else {
            self.aside(context, bench, wanted, role)?;
            vec![None; wanted.steps.len()]
        };
        let bytes = (wanted.bytes.end - wanted.bytes.start) * wanted.steps.len() as u64;
        if self.bands.left.fetch_sub(bytes, Relaxed) == bytes {
            *lock(&self.bands.kept) = None;
        }
        Ok(measured)
    }

    /// Position of each wanted output among those that are computed.
    fn positions(&self, steps: &[Step]) -> Vec<usize> {
        let position = |step: &Step| self.packed.steps.iter().position(|own| own.output == step.output);
        steps.iter().map(|step| position(step).unwrap_or(0)).collect()
    }

    fn codes(
        &self,
        context: &Context<'_, '_>,
        bench: &mut Bench,
        wanted: &mut Wanted<'_>,
    ) -> Result<Vec<Option<Survival>>> {
        let (form, positions) = (&self.packed.form, self.positions(wanted.steps));
        let row = |byte: u64| byte / form.row_bytes;
        let bands = form.band_of(row(wanted.bytes.start))..form.band_of(row(wanted.bytes.end - 1)) + 1;
        let first = form.patches_of(bands.start).start;
        let mut pending: Vec<u64> = (first..form.patches_of(bands.end - 1).end).collect();
        let mut sums: Vec<Option<Vec<Survival>>> = vec![None; pending.len()];
        while !pending.is_empty() {
            let before = pending.len();
            // What another thread is at comes later.
            let mut later = Vec::new();
            for index in pending {
                match self.patch(context, bench, index, false)? {
                    Some(patch) => {
                        sums[(index - first) as usize] = self.put(context, index, &patch, &positions, wanted)
                    }
                    None => later.push(index),
                }
            }
            if later.len() == before {
                let index = later.remove(0);
                if let Some(patch) = self.patch(context, bench, index, true)? {
                    sums[(index - first) as usize] = self.put(context, index, &patch, &positions, wanted);
                }
            }
            pending = later;
        }
        let mut totals: Vec<Option<Survival>> = vec![None; positions.len()];
        for sums in sums.into_iter().flatten() {
            for (total, sum) in totals.iter_mut().zip(&sums) {
                total.get_or_insert_default().merge(sum);
            }
        }
        Ok(totals.into_iter().map(|total| total.filter(|_| self.packed.measured)).collect())
    }

    /// Puts the rows of a patch where they are wanted; what was measured of it, if its band begins here.
    fn put(
        &self,
        context: &Context<'_, '_>,
        index: u64,
        patch: &Patch,
        positions: &[usize],
        wanted: &mut Wanted<'_>,
    ) -> Option<Vec<Survival>> {
        let (form, place) = (&self.packed.form, self.packed.form.place(index));
        let left = form.bytes_before(place.column) as u64;
        let size = form.bytes_before(place.column + place.columns) as u64 - left;
        for row in 0..place.rows {
            let from = (place.first_row(form) + row) * form.row_bytes + left;
            let (start, end) = (from.max(wanted.bytes.start), (from + size).min(wanted.bytes.end));
            if start >= end {
                continue;
            }
            let here = (row * size + start - from) as usize..(row * size + end - from) as usize;
            let there = (start - wanted.bytes.start) as usize..(end - wanted.bytes.start) as usize;
            for (out, position) in wanted.out.iter_mut().zip(positions) {
                out[there.clone()].copy_from_slice(&patch.outputs[*position].codes[here.clone()]);
            }
        }
        // The block that holds a band's first byte counts it.
        let begins = form.band(index / form.strips()).start * form.row_bytes;
        if begins < wanted.bytes.start {
            return None;
        }
        let job = self.packed.job();
        for (input, count) in patch.bad.iter().enumerate() {
            context.non_finite.note(job, Where::Input(input), *count);
        }
        context.non_finite.note_unweighted(job, patch.unweighted);
        let outputs = positions.iter().zip(wanted.steps).map(|(position, step)| {
            let encoded = &patch.outputs[*position];
            context.non_finite.note(job, Where::Output(step.output), encoded.bad);
            encoded.survival.clone()
        });
        Some(outputs.collect())
    }

    /// A piece of a part other than the codes.
    fn aside(&self, context: &Context<'_, '_>, bench: &mut Bench, wanted: &mut Wanted<'_>, role: Role) -> Result<()> {
        let (form, job) = (&self.packed.form, &context.plan.jobs[wanted.job]);
        let (size, positions) = (job.dtype.size(), self.positions(wanted.steps));
        if role == Role::Shape {
            wanted.out.iter_mut().for_each(|out| make::shape(form, size, &wanted.bytes, out));
            return Ok(());
        }
        if role == Role::Global || role == Role::Scales && form.wholes > 0 && form.global.is_none() {
            let wholes = self.wholes(context, Threads::Alone)?;
            let outs = wanted.out.iter_mut().zip(&positions);
            outs.for_each(|(out, position)| make::wholes(&wholes, *position, size, &wanted.bytes, out));
            return Ok(());
        }
        let patches = self.patches_behind(role, size as u64, &wanted.bytes);
        for index in patches {
            self.known(context, bench, index)?;
        }
        let kept = lock(&self.bands.kept);
        let Some(kept) = kept.as_ref() else { return Err(Error::engine("scales are gone before they are written")) };
        for (out, position) in wanted.out.iter_mut().zip(&positions) {
            match role {
                Role::Zeros => kept.zeros(form, *position, &wanted.bytes, out),
                Role::Biases => kept.biases(*position, &wanted.bytes, out),
                _ => kept.scales(*position, &wanted.bytes, out),
            }
        }
        Ok(())
    }

    /// The patches that bytes of scales, or of codes for zero, come from.
    fn patches_behind(&self, role: Role, size: u64, bytes: &Range<u64>) -> Range<u64> {
        let (form, across) = (&self.packed.form, self.packed.form.across());
        let (first, last) = (bytes.start / size, (bytes.end - 1) / size);
        let row = |index: u64, end: bool| match role {
            Role::Zeros => {
                let bits = u64::from(form.code.bits());
                let words = (form.rows * bits).div_ceil(32);
                let (matrix, word) = (index / across / words, index / across % words);
                let row = if end { (word * 32 + 31) / bits } else { word * 32 / bits };
                matrix * form.rows + row.min(form.rows - 1)
            }
            _ => {
                let down = index / across;
                down / form.down() * form.rows + down % form.down() * form.tall
            }
        };
        let (first, last) = (form.band_of(row(first, false)), form.band_of(row(last, true)));
        form.patches_of(first).start..form.patches_of(last).end
    }
}
