//! The groups of a patch, a row of them at a time: what they hold, and what becomes of each.

use std::ops::Range;

use super::{Bench, Encoded};
use crate::kernels::quantise::errors::errors;
use crate::kernels::quantise::scaling::Scaling;
use crate::kernels::quantise::seen::{look, range, Seen};
use crate::kernels::stats::step_sums;
use crate::kernels::widen::count_non_finite;
use crate::run::encode::choose::{Choose, Outcome, Stored, BETTER};
use crate::run::encode::chosen::Chosen;
use crate::run::encode::form::Place;
use crate::run::encode::original::Group;
use crate::run::encode::packed::Packed;

/// A row of groups of a patch, as one output has it.
pub(super) struct Line<'l, 's> {
    pub choose: Choose<'l, 's>,
    /// Which output it is.
    pub slot: usize,
    /// Its place among the rows of groups.
    pub down: u64,
    /// Its rows in the patch.
    pub rows: Range<u64>,
}

impl Line<'_, '_> {
    /// One of its groups.
    pub(super) fn group(&self, index: usize) -> Group {
        let (form, place) = (&self.choose.packed.form, self.choose.place);
        let across = place.across(form).start + index as u64;
        let first = across * form.wide;
        Group {
            down: self.down,
            across,
            rows: self.rows.clone(),
            columns: first..(first + form.wide).min(form.columns),
        }
    }

    /// The elements of a row of the patch.
    pub(super) fn elements(&self, row: u64) -> Range<usize> {
        let columns = self.choose.place.columns as usize;
        row as usize * columns..(row as usize + 1) * columns
    }
}

impl Bench {
    /// A patch as one output has it.
    pub(super) fn output(
        &mut self,
        packed: &Packed,
        place: &Place,
        stored: &Stored<'_>,
        chosen: Option<&Chosen>,
        slot: usize,
    ) -> Encoded {
        let (form, level, n) = (&packed.form, packed.level, place.elements());
        let mut encoded = Encoded { survival: self.noise.clone().unwrap_or_default(), ..Encoded::default() };
        let size = form.bytes_before(place.column + place.columns) - form.bytes_before(place.column);
        encoded.codes.resize(size * place.rows as usize, 0);
        self.codes.resize(n, 0);
        self.out.resize(n, 0.0);
        let setting = packed.setting(chosen);
        let alpha = packed.steps[slot].alpha;
        for (down, group_row) in place.down(form).enumerate() {
            let top = (group_row * form.tall).max(place.row) - place.row;
            let bottom = ((group_row + 1) * form.tall).min(place.row + place.rows) - place.row;
            let choose = Choose { packed, place, stored, setting: &setting, chosen, alpha };
            let line = Line { choose, slot, down: down as u64, rows: top..bottom };
            let seen = self.look(&line);
            encoded.bad += seen.iter().map(|seen| u64::from(seen.non_finite)).sum::<u64>();
            let outcomes = self.outcomes(&line, &seen);
            self.encode(&line, &outcomes, &mut encoded);
        }
        let sums = step_sums(level, &self.target[..n], &self.delta[..n], alpha, &self.out[..n]);
        encoded.survival.add(&sums, n as u64);
        if !sums.moved.is_finite() {
            encoded.bad = encoded.bad.max(count_non_finite(level, &self.out[..n]));
        }
        encoded
    }

    /// What each group of a row holds.
    fn look(&self, line: &Line<'_, '_>) -> Vec<Seen> {
        let Choose { packed, place, .. } = &line.choose;
        let (form, across) = (&packed.form, place.across(&packed.form));
        let mut seen = vec![Seen::default(); (across.end - across.start) as usize];
        for row in line.rows.clone() {
            let (x, target) = (&self.x[line.slot][line.elements(row)], &self.target[line.elements(row)]);
            look(packed.level, x, target, form.wide as usize, &mut seen);
            if form.code.is_biased() {
                range(packed.level, x, form.wide as usize, &mut seen);
            }
        }
        seen
    }

    /// What becomes of each group of a row.
    fn outcomes(&self, line: &Line<'_, '_>, seen: &[Seen]) -> Vec<Outcome> {
        let choose = &line.choose;
        let mut pairs: Vec<Option<[Scaling; 2]>> = vec![None; seen.len()];
        let mut outcomes = Vec::with_capacity(seen.len());
        let mut others = Vec::with_capacity(seen.len());
        for (index, (seen, pair)) in seen.iter().zip(&mut pairs).enumerate() {
            let (outcome, other) = choose.group(&line.group(index), seen);
            if let (Outcome::Scaled(own), Some(other)) = (outcome, other) {
                *pair = Some([choose.setting.scaling(&own), choose.setting.scaling(&other)]);
            }
            outcomes.push(outcome);
            others.push(other);
        }
        if pairs.iter().all(Option::is_none) {
            return outcomes;
        }
        let (form, mut sums) = (&choose.packed.form, vec![[0f64; 2]; seen.len()]);
        for row in line.rows.clone() {
            let x = &self.x[line.slot][line.elements(row)];
            errors(choose.packed.level, form.code, x, form.wide as usize, &pairs, &mut sums);
        }
        for (((outcome, other), pair), sums) in outcomes.iter_mut().zip(others).zip(pairs).zip(sums) {
            let (Some(other), Some([own, fresh])) = (other, pair) else { continue };
            let square = |scaling: Scaling| f64::from(scaling.scale) * f64::from(scaling.scale);
            if sums[1] * square(fresh) < sums[0] * square(own) * BETTER {
                *outcome = Outcome::Scaled(other);
            }
        }
        outcomes
    }
}
