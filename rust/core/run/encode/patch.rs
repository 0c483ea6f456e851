//! One patch of a packed tensor: what is computed of it, the scale of each of its groups, and its codes.

use super::choose::{Choose, Outcome, Stored, BETTER};
use super::chosen::Chosen;
use super::form::Place;
use super::original::{read, Buffers, Group};
use super::packed::Packed;
use crate::error::Result;
use crate::kernels::philox::fill;
use crate::kernels::quantise::bits::pack;
use crate::kernels::quantise::group::{encode, errors, look, range, Scaling, Seen};
use crate::kernels::stats::step_sums;
use crate::kernels::widen::count_non_finite;
use crate::kernels::{Level, TILE};
use crate::measure::Survival;
use crate::run::tile::values::Values;
use crate::run::tile::{Place as TilePlace, Span, Tiler};
use crate::storage::chunk::{Chunk, Scratch};

/// A patch, encoded.
#[derive(Default)]
pub(super) struct Patch {
    /// By output.
    pub outputs: Vec<Encoded>,
    /// By input, values that are not finite.
    pub bad: Vec<u64>,
}

/// A patch as one output has it.
#[derive(Default)]
pub(super) struct Encoded {
    /// Packed codes, row by row.
    pub codes: Vec<u8>,
    /// Stored scales of its groups.
    pub scales: Vec<u32>,
    /// Codes for zero of its groups.
    pub zeros: Vec<f32>,
    /// Stored biases of its groups.
    pub biases: Vec<u32>,
    /// What became of the step.
    pub survival: Survival,
    /// Values that are not finite.
    pub bad: u64,
}

/// One thread's buffers.
pub(crate) struct Bench {
    tiler: Tiler,
    scratch: Vec<Scratch>,
    x: Vec<Vec<f32>>,
    target: Vec<f32>,
    delta: Vec<f32>,
    out: Vec<f32>,
    draws: Vec<u32>,
    codes: Vec<u8>,
    /// What the differences of donors and references in the patch are like.
    noise: Option<Survival>,
    originals: [Buffers; 3],
}

impl Bench {
    /// Buffers, empty.
    pub(crate) fn new(level: Level) -> Self {
        Bench {
            tiler: Tiler::new(level),
            scratch: Vec::new(),
            x: Vec::new(),
            target: Vec::new(),
            delta: Vec::new(),
            out: Vec::new(),
            draws: Vec::new(),
            codes: Vec::new(),
            noise: None,
            originals: Default::default(),
        }
    }

    /// What is computed of a patch, for every output; returns the counts of values that are not finite, by input.
    ///
    /// # Errors
    /// Unreadable input.
    fn compute(&mut self, packed: &Packed, tile: &TilePlace<'_>, place: &Place) -> Result<Vec<u64>> {
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
        let mut bad = vec![0; inputs.len()];
        let whole = place.columns == form.columns;
        let (runs, length) = if whole { (1, n) } else { (place.rows as usize, place.columns as usize) };
        for run in 0..runs {
            let from = if whole { 0 } else { run * form.columns as usize + place.column as usize };
            for at in (0..length).step_by(TILE) {
                let m = (length - at).min(TILE);
                let here = run * length + at;
                let span = Span { first: first + (from + at) as u64, at: from + at, n: m, counted: true };
                self.tile(packed, tile, &chunks, span, here, &mut bad)?;
            }
        }
        drop(chunks);
        self.scratch = scratch;
        if tile.program.has_read() {
            bad.fill(0);
        }
        Ok(bad)
    }

    fn tile(
        &mut self,
        packed: &Packed,
        tile: &TilePlace<'_>,
        chunks: &[Chunk<'_>],
        span: Span,
        here: usize,
        bad: &mut [u64],
    ) -> Result<()> {
        let range = here..here + span.n;
        let mut outs: Vec<(f64, &mut [f32])> =
            packed.steps.iter().zip(&mut self.x).map(|(step, x)| (step.alpha, &mut x[range.clone()])).collect();
        let mut values = Values {
            target: &mut self.target[range.clone()],
            delta: &mut self.delta[range.clone()],
            outs: &mut outs,
            bad,
            noise: self.noise.as_mut(),
        };
        self.tiler.values(tile, chunks, span, &mut values)
    }

    /// What the groups of a patch hold, by output; for a scale that is chosen for a whole.
    ///
    /// # Errors
    /// Unreadable input.
    pub(super) fn seen(&mut self, packed: &Packed, tile: &TilePlace<'_>, place: &Place) -> Result<Vec<Seen>> {
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

    /// Computes and encodes a patch.
    ///
    /// # Errors
    /// Unreadable input.
    pub(super) fn make(
        &mut self,
        packed: &Packed,
        tile: &TilePlace<'_>,
        place: &Place,
        chosen: &[Chosen],
    ) -> Result<Patch> {
        self.noise = Some(Survival::default());
        let bad = self.compute(packed, tile, place)?;
        self.draw(packed, tile, place);
        let originals = packed.originals(tile.program);
        let mut buffers = std::mem::take(&mut self.originals);
        let [target, reference, donor] = &mut buffers;
        let form = &packed.form;
        let stored = Stored {
            target: read(&originals.target, form, place, target)?,
            reference: read(&originals.reference, form, place, reference)?,
            donor: read(&originals.donor, form, place, donor)?,
        };
        let outputs = (0..packed.steps.len()).map(|slot| self.output(packed, place, &stored, chosen.get(slot), slot));
        let outputs = outputs.collect();
        self.originals = buffers;
        Ok(Patch { outputs, bad })
    }

    fn draw(&mut self, packed: &Packed, tile: &TilePlace<'_>, place: &Place) {
        let Some(stream) = &tile.draws else { return };
        let columns = place.columns as usize;
        self.draws.resize(place.elements(), 0);
        for (row, draws) in self.draws.chunks_mut(columns).enumerate() {
            let row = place.first_row(&packed.form) + row as u64;
            fill(packed.level, stream, row * packed.form.columns + place.column, draws);
        }
    }

    /// A patch as one output has it.
    fn output(
        &mut self,
        packed: &Packed,
        place: &Place,
        stored: &Stored<'_>,
        chosen: Option<&Chosen>,
        slot: usize,
    ) -> Encoded {
        let (form, level, n) = (&packed.form, packed.level, place.elements());
        let (columns, wide) = (place.columns as usize, form.wide as usize);
        let across = place.across(form);
        let width = (across.end - across.start) as usize;
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
            let mut seen = vec![Seen::default(); width];
            for row in top as usize..bottom as usize {
                let here = row * columns..(row + 1) * columns;
                look(level, &self.x[slot][here.clone()], &self.target[here.clone()], wide, &mut seen);
                if form.code.is_biased() {
                    range(level, &self.x[slot][here], wide, &mut seen);
                }
            }
            encoded.bad += seen.iter().map(|seen| u64::from(seen.non_finite)).sum::<u64>();
            let group = |index: usize| {
                let first = (across.start + index as u64) * form.wide;
                Group {
                    down: down as u64,
                    across: across.start + index as u64,
                    rows: top..bottom,
                    columns: first..(first + form.wide).min(form.columns),
                }
            };
            let choose = Choose { packed, place, stored, setting: &setting, chosen, alpha };
            let outcomes = self.outcomes(&choose, &seen, slot, &group);
            self.encode(&choose, &outcomes, slot, (top as usize, bottom as usize), &group, &mut encoded);
        }
        let sums = step_sums(level, &self.target[..n], &self.delta[..n], alpha, &self.out[..n]);
        encoded.survival.add(&sums, n as u64);
        if !sums.moved.is_finite() {
            encoded.bad = encoded.bad.max(count_non_finite(level, &self.out[..n]));
        }
        encoded
    }

    /// What becomes of each group of a row of groups.
    fn outcomes(
        &self,
        choose: &Choose<'_, '_>,
        seen: &[Seen],
        slot: usize,
        group: &impl Fn(usize) -> Group,
    ) -> Vec<Outcome> {
        let form = &choose.packed.form;
        let mut pairs: Vec<Option<[Scaling; 2]>> = vec![None; seen.len()];
        let mut outcomes = Vec::with_capacity(seen.len());
        let mut others = Vec::with_capacity(seen.len());
        for (index, (seen, pair)) in seen.iter().zip(&mut pairs).enumerate() {
            let (outcome, other) = choose.group(&group(index), seen);
            if let (Outcome::Scaled(own), Some(other)) = (outcome, other) {
                *pair = Some([choose.setting.scaling(&own), choose.setting.scaling(&other)]);
            }
            outcomes.push(outcome);
            others.push(other);
        }
        if pairs.iter().all(Option::is_none) {
            return outcomes;
        }
        let mut sums = vec![[0f64; 2]; seen.len()];
        let columns = choose.place.columns as usize;
        for row in group(0).rows {
            let x = &self.x[slot][row as usize * columns..(row as usize + 1) * columns];
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

    /// The codes, numbers and scales of a row of groups.
    fn encode(
        &mut self,
        choose: &Choose<'_, '_>,
        outcomes: &[Outcome],
        slot: usize,
        (top, bottom): (usize, usize),
        group: &impl Fn(usize) -> Group,
        encoded: &mut Encoded,
    ) {
        let Choose { packed, place, stored, setting, .. } = choose;
        let (form, level, columns) = (&packed.form, packed.level, place.columns as usize);
        let wide = form.wide as usize;
        let scalings: Vec<Scaling> = outcomes
            .iter()
            .enumerate()
            .map(|(index, outcome)| match outcome {
                Outcome::Scaled(fresh) if packed.own => setting.scaling(fresh),
                Outcome::Scaled(fresh) => {
                    let mut scaling = setting.scaling(fresh);
                    for row in top..bottom {
                        let from = row * columns + index * wide;
                        let end = (from + wide).min((row + 1) * columns);
                        self.out[from..end].copy_from_slice(&self.x[slot][from..end]);
                        scaling = setting.quotients(fresh, &mut self.out[from..end]);
                    }
                    scaling
                }
                Outcome::Target | Outcome::Donor => Scaling::new(1.0, 0.0),
            })
            .collect();
        let kept = outcomes.iter().any(|outcome| !matches!(outcome, Outcome::Scaled(_)));
        let all_kept = outcomes.iter().all(|outcome| !matches!(outcome, Outcome::Scaled(_)));
        let size = encoded.codes.len() / place.rows as usize;
        for row in top..bottom {
            let range = row * columns..(row + 1) * columns;
            let bytes = &mut encoded.codes[row * size..(row + 1) * size];
            if !all_kept {
                let draws = (!self.draws.is_empty()).then(|| &self.draws[range.clone()]);
                let codes = &mut self.codes[range.clone()];
                if packed.own {
                    encode(
                        level,
                        form.code,
                        &self.x[slot][range.clone()],
                        wide,
                        &scalings,
                        draws,
                        codes,
                        &mut self.out[range.clone()],
                    );
                } else {
                    let x = self.out[range.clone()].to_vec();
                    encode(level, form.code, &x, wide, &scalings, draws, codes, &mut self.out[range.clone()]);
                }
                let packed_bytes = form.packed(place.columns);
                pack(level, form.code.bits(), codes, &mut bytes[..packed_bytes]);
            }
            if !kept {
                continue;
            }
            for (index, outcome) in outcomes.iter().enumerate() {
                let (rows, values) = match outcome {
                    Outcome::Target => (&stored.target, &self.target),
                    Outcome::Donor => (&stored.donor, &self.x[slot]),
                    Outcome::Scaled(_) => continue,
                };
                let Some(rows) = rows else { continue };
                let group = group(index);
                let start = form.bytes_before(group.columns.start) - form.bytes_before(place.column);
                let from = rows.codes(form, row as u64, &group.columns);
                bytes[start..start + from.len()].copy_from_slice(from);
                let here = row * columns + index * wide
                    ..row * columns + index * wide + (group.columns.end - group.columns.start) as usize;
                self.out[here.clone()].copy_from_slice(&values[here]);
            }
        }
        for (index, outcome) in outcomes.iter().enumerate() {
            let stored = match outcome {
                Outcome::Scaled(fresh) => *fresh,
                Outcome::Target => choose.stored_scale(stored.target.as_ref(), &group(index)),
                Outcome::Donor => choose.stored_scale(stored.donor.as_ref(), &group(index)),
            };
            encoded.scales.push(stored.bits);
            encoded.zeros.push(stored.zero);
            encoded.biases.push(stored.bias);
        }
    }
}
