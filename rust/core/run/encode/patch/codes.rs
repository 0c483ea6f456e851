//! The codes, numbers and scales of a row of groups, once it is known what becomes of each.

use super::groups::Line;
use super::{Bench, Encoded};
use crate::kernels::quantise::bits::pack;
use crate::kernels::quantise::encode::encode;
use crate::kernels::quantise::scaling::Scaling;
use crate::run::encode::choose::{Choose, Outcome};

impl Bench {
    /// The codes, numbers and scales of a row of groups.
    pub(super) fn encode(&mut self, line: &Line<'_, '_>, outcomes: &[Outcome], encoded: &mut Encoded) {
        let Choose { place, stored, .. } = &line.choose;
        let scalings = self.scalings(line, outcomes);
        let is_new = |outcome: &Outcome| matches!(outcome, Outcome::Scaled(_));
        let (some_new, all_new) = (outcomes.iter().any(is_new), outcomes.iter().all(is_new));
        let size = encoded.codes.len() / place.rows as usize;
        for row in line.rows.clone() {
            let bytes = &mut encoded.codes[row as usize * size..(row as usize + 1) * size];
            if some_new {
                self.encode_row(line, row, &scalings);
            }
            let is_strewn = stored.columns.is_some();
            if some_new && !is_strewn {
                self.pack(line, row, bytes);
            }
            if !all_new {
                self.keep(line, row, outcomes, bytes);
            }
            if let Some(columns) = &stored.columns {
                columns.scatter(&mut self.codes[line.elements(row)], &mut self.room.2);
                self.pack(line, row, bytes);
            }
        }
        for (index, outcome) in outcomes.iter().enumerate() {
            let group = line.group(index);
            let scale = match outcome {
                Outcome::Scaled(fresh) => *fresh,
                Outcome::Target => line.choose.stored_scale(stored.target.as_ref(), &group),
                Outcome::Donor => line.choose.stored_scale(stored.donor.as_ref(), &group),
            };
            encoded.scales.push(scale.bits);
            encoded.zeros.push(scale.zero);
            encoded.biases.push(scale.bias);
        }
    }

    /// How each group is scaled. What a rule's own tool rounds in another way is put into `out`.
    fn scalings(&mut self, line: &Line<'_, '_>, outcomes: &[Outcome]) -> Vec<Scaling> {
        let Choose { packed, place, setting, .. } = &line.choose;
        let (wide, columns) = (packed.form.wide as usize, place.columns as usize);
        let mut scalings = Vec::with_capacity(outcomes.len());
        for (index, outcome) in outcomes.iter().enumerate() {
            let Outcome::Scaled(fresh) = outcome else {
                scalings.push(Scaling::new(1.0, 0.0));
                continue;
            };
            let mut scaling = setting.scaling(fresh);
            for row in line.rows.clone().filter(|_| !packed.own) {
                let all = line.elements(row);
                let here = all.start + index * wide..(all.start + (index * wide + wide).min(columns));
                self.out[here.clone()].copy_from_slice(&self.x[line.slot][here.clone()]);
                scaling = setting.quotients(fresh, &mut self.out[here]);
            }
            scalings.push(scaling);
        }
        scalings
    }

    /// The codes of a row, and the numbers that they stand for.
    fn encode_row(&mut self, line: &Line<'_, '_>, row: u64, scalings: &[Scaling]) {
        let packed = line.choose.packed;
        let (form, level, here) = (&packed.form, packed.level, line.elements(row));
        let draws = (!self.draws.is_empty()).then(|| &self.draws[here.clone()]);
        let (codes, out) = (&mut self.codes[here.clone()], &mut self.out[here.clone()]);
        let wide = form.wide as usize;
        if packed.own {
            encode(level, form.code, &self.x[line.slot][here], wide, scalings, draws, codes, out);
        } else {
            let x = out.to_vec();
            encode(level, form.code, &x, wide, scalings, draws, codes, out);
        }
    }

    fn pack(&self, line: &Line<'_, '_>, row: u64, bytes: &mut [u8]) {
        let Choose { packed, place, .. } = &line.choose;
        let size = packed.form.packed(place.columns);
        pack(packed.level, packed.form.code.bits(), &self.codes[line.elements(row)], &mut bytes[..size]);
    }

    /// Takes over the groups of a row that are another model's: their bytes, or their codes where those are strewn.
    fn keep(&mut self, line: &Line<'_, '_>, row: u64, outcomes: &[Outcome], bytes: &mut [u8]) {
        let Choose { packed, place, stored, .. } = &line.choose;
        let (form, first) = (&packed.form, line.elements(row).start);
        for (index, outcome) in outcomes.iter().enumerate() {
            let (rows, values) = match outcome {
                Outcome::Target => (&stored.target, &self.target),
                Outcome::Donor => (&stored.donor, &self.x[line.slot]),
                Outcome::Scaled(_) => continue,
            };
            let Some(rows) = rows else { continue };
            let group = line.group(index);
            let start = first + index * form.wide as usize;
            let here = start..start + (group.columns.end - group.columns.start) as usize;
            self.out[here.clone()].copy_from_slice(&values[here.clone()]);
            if let Some(columns) = &stored.columns {
                let codes = rows.strewn(form, row, &group, columns);
                self.codes[here].iter_mut().zip(codes).for_each(|(slot, code)| *slot = code);
            } else {
                let from = rows.codes(form, row, &group.columns);
                let start = form.bytes_before(group.columns.start) - form.bytes_before(place.column);
                bytes[start..start + from.len()].copy_from_slice(from);
            }
        }
    }
}
