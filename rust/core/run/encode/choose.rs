//! What becomes of a group: the bytes of another model, or codes under the target's scale or a new one.

use super::chosen::{Choice, Chosen};
use super::columns::Columns;
use super::form::Place;
use super::original::{Group, Rows};
use super::packed::Packed;
use crate::kernels::quantise::rule::{Fresh, Setting};
use crate::kernels::quantise::seen::Seen;

/// What a group's bytes are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outcome {
    /// Those of the target.
    Target,
    /// Those of the donor.
    Donor,
    /// New ones, under the target's scale or another.
    Scaled(Fresh),
}

/// What is at hand of inputs that are packed as the output is.
pub(super) struct Stored<'s> {
    pub target: Option<Rows<'s>>,
    pub reference: Option<Rows<'s>>,
    pub donor: Option<Rows<'s>>,
    /// How the columns of groups are brought together, where they are not neighbours.
    pub columns: Option<Columns>,
}

/// A scale has to lower the squared error by more than this factor to replace the target's.
pub(super) const BETTER: f64 = 1.0 - 1.0 / 1024.0;

/// What the choice of scales looks at.
pub(super) struct Choose<'c, 's> {
    pub packed: &'c Packed,
    pub place: &'c Place,
    pub stored: &'c Stored<'s>,
    pub setting: &'c Setting,
    pub chosen: Option<&'c Chosen>,
    pub alpha: f64,
}

impl Choose<'_, '_> {
    /// What becomes of a group, and the other scale where the errors decide.
    pub(super) fn group(&self, group: &Group, seen: &Seen) -> (Outcome, Option<Fresh>) {
        if let Some(kept) = self.kept(group, seen) {
            return (kept, None);
        }
        if let (Some(chosen), None) = (self.chosen, self.packed.form.global) {
            return (Outcome::Scaled(Fresh::new(chosen.bits, 0.0)), None);
        }
        let fresh = self.setting.fresh(seen);
        // Under a new number for the whole tensor, the target's scale means something else.
        let is_own = self.packed.own && self.chosen.is_none_or(|chosen| chosen.choice == Choice::Own);
        let own = self.stored.target.as_ref().filter(|_| is_own).map(|rows| self.stored_scale(Some(rows), group));
        match (own, fresh) {
            (Some(own), Some(fresh)) => self.either(own, fresh, seen, group),
            (Some(one), None) | (None, Some(one)) => (Outcome::Scaled(one), None),
            (None, None) => (Outcome::Scaled(Fresh::new(0, 0.0)), None),
        }
    }

    fn either(&self, own: Fresh, fresh: Fresh, seen: &Seen, group: &Group) -> (Outcome, Option<Fresh>) {
        if self.packed.form.code.is_biased() {
            return self.either_on_bias(own, fresh, seen);
        }
        let (mine, other) = (self.setting.scale(own.bits), self.setting.scale(fresh.bits));
        let elements = (group.rows.end - group.rows.start) * (group.columns.end - group.columns.start);
        let nothing = seen.amax() == 0.0;
        if !mine.is_finite() || mine == 0.0 {
            // Nothing but zeros, or nothing that is a number, is as well off under it.
            let keeps = nothing && (mine == 0.0) == (seen.non_finite == 0);
            let all = mine == 0.0 || u64::from(seen.non_finite) == elements;
            return (Outcome::Scaled(if keeps && all { own } else { fresh }), None);
        }
        let close = mine.to_bits().abs_diff(other.to_bits()) <= 2 && own.zero == fresh.zero;
        if nothing || close {
            return (Outcome::Scaled(own), None);
        }
        if self.setting.covering && !self.setting.covers(&own, seen) {
            return (Outcome::Scaled(fresh), None);
        }
        (Outcome::Scaled(own), Some(fresh))
    }

    /// The same of scales with biases: zeros too have an error under them.
    fn either_on_bias(&self, own: Fresh, fresh: Fresh, seen: &Seen) -> (Outcome, Option<Fresh>) {
        let (mine, other) = (self.setting.scaling(&own), self.setting.scaling(&fresh));
        if !mine.scale.is_finite() || mine.scale == 0.0 || !mine.bias.is_finite() {
            return (Outcome::Scaled(fresh), None);
        }
        let near = |a: f32, b: f32| a.to_bits().abs_diff(b.to_bits()) <= 2;
        if near(mine.scale, other.scale) && near(mine.bias, other.bias) {
            return (Outcome::Scaled(own), None);
        }
        if self.setting.covering && !self.setting.covers(&own, seen) {
            return (Outcome::Scaled(fresh), None);
        }
        (Outcome::Scaled(own), Some(fresh))
    }

    /// A group whose bytes are known from another model.
    fn kept(&self, group: &Group, seen: &Seen) -> Option<Outcome> {
        let (packed, form, place) = (self.packed, &self.packed.form, self.place);
        match self.chosen.map(|chosen| chosen.choice) {
            Some(Choice::Donor) => return Some(Outcome::Donor),
            Some(Choice::Fresh) => return None,
            Some(Choice::Own) | None => {}
        }
        let target = self.stored.target.as_ref().filter(|_| packed.own)?;
        if packed.steps_from_target && self.alpha == 0.0 || !seen.changed {
            return Some(Outcome::Target);
        }
        let (reference, donor) = (self.stored.reference.as_ref()?, self.stored.donor.as_ref()?);
        let whole_is_shared = self.chosen.is_none_or(|chosen| chosen.shared);
        let gives_donor = self.alpha == 1.0 && packed.weight_one && whole_is_shared;
        let same = |a: &Rows<'_>, b: &Rows<'_>| a.is_same(b, (form, place), group, self.stored.columns.as_ref());
        if gives_donor && same(target, reference) && packed.takes_all(place, group) {
            return Some(Outcome::Donor);
        }
        let is_still = seen.non_finite > 0 && whole_is_shared && same(donor, reference);
        is_still.then_some(Outcome::Target)
    }

    /// The scale of a group, its code for zero and its bias, as they are stored.
    pub(super) fn stored_scale(&self, rows: Option<&Rows<'_>>, group: &Group) -> Fresh {
        let form = &self.packed.form;
        let Some(rows) = rows else { return Fresh::new(0, 0.0) };
        let place = (group.down, group.across);
        let bits = rows.scale(form, self.packed.scales, place);
        let zero = rows.zero(form, self.place.row + group.rows.start, group.across);
        Fresh { bias: rows.bias(form, self.packed.biases, place), ..Fresh::new(bits, zero) }
    }
}
