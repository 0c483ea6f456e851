//! A packed tensor of the output: how it is encoded, and from which inputs bytes may be taken as they are.

use std::sync::Arc;

use super::chosen::Chosen;
use super::form::{Form, Place};
use super::original::{is_same, Group, Original};
use crate::dtype::Dtype;
use crate::error::{shown, Error, Kind, Result};
use crate::kernels::quantise::rule::{Global as Number, Rule, Setting};
use crate::kernels::quantise::scale::ScaleType;
use crate::kernels::Level;
use crate::methods::method::{Computes, Method, Term};
use crate::plan::encoding::{Encoding, Role};
use crate::plan::job::{Job, PartOf};
use crate::plan::Plan;
use crate::run::program::{Arithmetic, Program, Step};
use crate::run::taken::Taken;
use crate::storage::packed::e2m1::scales_as;
use crate::storage::packed::format::{Format, Global};

/// A packed tensor of the output.
pub(crate) struct Packed {
    /// How it is cut.
    pub(super) form: Form,
    /// How scales are made.
    pub(super) rule: Rule,
    /// How they are stored.
    pub(super) scales: ScaleType,
    /// How biases are stored, where there are any.
    pub(super) biases: ScaleType,
    /// The type in which tools compute that a rule is taken from.
    pub(super) tool: ScaleType,
    /// The target is packed in the same way.
    pub(super) own: bool,
    /// No scale may clamp: rounding is by draws.
    pub(super) covering: bool,
    /// The operation is a step from the target.
    pub(super) steps_from_target: bool,
    /// The step is one difference as it is.
    pub(super) weight_one: bool,
    /// What became of the step is reported.
    pub(super) measured: bool,
    /// The part of the tensor that is taken, where it is not all of it.
    pub(super) taken: Option<Arc<Taken>>,
    /// Donor and reference, where both are packed as the target is.
    pair: Option<(usize, usize)>,
    /// The outputs that any part is to be written in; α with the operation's factor.
    pub(super) steps: Vec<Step>,
    pub(super) level: Level,
    /// Codes are still to be written.
    pub(super) writes_codes: bool,
    /// The job of each part.
    pub(super) parts: Vec<(Role, usize)>,
}

/// Inputs that are packed as the output is.
pub(super) struct Originals<'a> {
    pub target: Option<Original<'a>>,
    pub reference: Option<Original<'a>>,
    pub donor: Option<Original<'a>>,
}

impl Originals<'_> {
    /// Whether the columns of all have the same groups.
    ///
    /// # Errors
    /// Where a file was truncated or cannot be read.
    pub(super) fn are_in_one_order(&self) -> Result<bool> {
        let (mut one, mut other) = (Vec::new(), Vec::new());
        let Some(order) = self.target.as_ref().and_then(|target| target.order) else { return Ok(false) };
        let first = order.all(&mut one)?;
        for original in self.reference.iter().chain(&self.donor) {
            let Some(order) = original.order else { return Ok(false) };
            if order.all(&mut other)? != first {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What a tensor's parts in a plan are.
pub(super) struct Parts<'p> {
    pub plan: &'p Plan,
    /// The job of each part; that of the codes first.
    pub jobs: Vec<(Role, usize)>,
    /// The outputs that any of them is to be written in.
    pub outputs: Vec<usize>,
    /// Whether the codes are to be written in any.
    pub writes_codes: bool,
}

impl Packed {
    /// A tensor whose parts are these.
    ///
    /// # Errors
    /// `Kind::Plan` for parts that are missing, or do not fit their format or each other.
    pub(super) fn new(parts: Parts<'_>, programs: &[Program<'_>], level: Level) -> Result<Packed> {
        let Parts { plan, jobs, outputs, writes_codes } = parts;
        let job = |role: Role| jobs.iter().find(|(each, _)| *each == role).map(|(_, job)| &plan.jobs[*job]);
        let codes = job(Role::Codes).ok_or_else(|| bad(plan, &jobs, "codes are not written"))?;
        let scales = job(Role::Scales).ok_or_else(|| bad(plan, &jobs, "scales are not written"))?;
        let unfit = || bad(plan, &jobs, "parts do not fit their format");
        let part = codes.packed.as_ref().ok_or_else(unfit)?;
        let encoding = &plan.encodings[part.encoding];
        let wholes = job(Role::Global).unwrap_or(scales).elements;
        let form = Form::new(&encoding.format, &part.name, &part.shape, codes.dtype, wholes)?;
        let stored_as = match &encoding.format {
            Format::E2m1(e2m1) => scales_as(e2m1, scales.dtype),
            _ => scales.dtype,
        };
        let kind = ScaleType::of(stored_as).ok_or_else(unfit)?;
        check(&form, (codes, scales), (job(Role::Zeros), job(Role::Global)), job(Role::Shape), kind)
            .ok_or_else(unfit)?;
        let biases = check_biases(&form, job(Role::Biases)).ok_or_else(unfit)?;
        let program = &programs[jobs[0].1];
        let (steps_from_target, terms, factor) = facts(&program.arithmetic);
        let stored =
            Types { codes: codes.dtype, scales: stored_as, biases: job(Role::Biases).map(|biases| biases.dtype) };
        let is_like = |index: usize| is_like(plan, encoding, program, index, (&form, stored));
        if encoding.own && !is_like(0) {
            return Err(bad(plan, &jobs, "input 0 is not stored in the format that is written"));
        }
        if !encoding.own && form.strewn {
            return Err(bad(plan, &jobs, "the group of each column is not known"));
        }
        if !encoding.own && encoding.rule == Rule::Own {
            return Err(bad(plan, &jobs, "there is no rule for scales, nor any of the target"));
        }
        let term = match terms {
            Some([term]) => Some(*term),
            _ => None,
        };
        let pair = term.and_then(|term| Some((term.model, term.reference?)));
        let steps = outputs.iter().map(|output| {
            let alpha = plan.outputs[*output].alpha * factor;
            Step { alpha: if steps_from_target { alpha } else { 1.0 }, output: *output }
        });
        let convert = matches!(program.arithmetic, Arithmetic::Convert { .. });
        Ok(Packed {
            rule: encoding.rule,
            scales: kind,
            biases,
            own: encoding.own,
            tool: match program.inputs[0].dtype {
                Dtype::BF16 if !encoding.own => ScaleType::BF16,
                Dtype::F16 if !encoding.own => ScaleType::F16,
                _ => ScaleType::F32,
            },
            covering: plan.stochastic,
            steps_from_target,
            weight_one: term.is_some_and(|term| term.weight == 1.0),
            measured: steps_from_target || convert,
            taken: program.taken.clone(),
            pair: pair.filter(|(model, reference)| encoding.own && is_like(*model) && is_like(*reference)),
            steps: steps.collect(),
            level,
            writes_codes,
            parts: jobs,
            form,
        })
    }

    /// The job of the codes.
    pub(super) fn job(&self) -> usize {
        self.parts[0].1
    }

    /// Whether a selection takes all of a group of a patch.
    pub(super) fn takes_all(&self, place: &Place, group: &Group) -> bool {
        let Some(taken) = &self.taken else { return true };
        let (columns, count) = (&group.columns, (group.columns.end - group.columns.start) as usize);
        let first = |row: u64| (place.first_row(&self.form) + row) * self.form.columns + columns.start;
        group.rows.clone().all(|row| taken.has_all(first(row), count))
    }

    /// The stored bytes of the inputs that are packed as the output is.
    pub(super) fn originals<'a>(&self, program: &'a Program<'_>) -> Originals<'a> {
        let original = |index: usize| Original::of(program, index, &self.form);
        Originals {
            target: self.own.then(|| original(0)).flatten(),
            reference: self.pair.and_then(|(_, reference)| original(reference)),
            donor: self.pair.and_then(|(donor, _)| original(donor)),
        }
    }

    /// The numbers that scales are made with, under a scale for a whole.
    pub(super) fn number(&self, chosen: &Chosen) -> Option<Number> {
        self.form.global.map(|rule| match rule {
            Global::Multiply => Number::Times(f32::from_bits(chosen.bits)),
            Global::Divide => Number::Over(f32::from_bits(chosen.bits)),
        })
    }

    /// What rules for scales look at, under a scale for a whole where there is one.
    pub(super) fn setting(&self, chosen: Option<&Chosen>) -> Setting {
        Setting {
            rule: self.rule,
            code: self.form.code,
            scales: self.scales,
            biases: self.biases,
            global: chosen.and_then(|chosen| self.number(chosen)),
            zeros: self.form.zeros,
            tool: self.tool,
            covering: self.covering,
        }
    }
}

/// Whether the operation is a step from the target, its terms where it is a sum of differences, its factor.
fn facts(arithmetic: &Arithmetic) -> (bool, Option<&[Term]>, f64) {
    match arithmetic {
        Arithmetic::Narrow(method) => (method.computes() == Computes::Step, method.sum_of(), Method::factor(&**method)),
        Arithmetic::Wide(method) => (method.computes() == Computes::Step, method.sum_of(), Method::factor(&**method)),
        Arithmetic::Raw | Arithmetic::Convert { .. } | Arithmetic::Aside => (false, None, 1.0),
    }
}

/// The types of the parts.
#[derive(Clone, Copy)]
struct Types {
    codes: Dtype,
    scales: Dtype,
    biases: Option<Dtype>,
}

/// Whether an input has bytes that an output could have.
fn is_like(
    plan: &Plan,
    encoding: &Encoding,
    program: &Program<'_>,
    index: usize,
    (form, stored): (&Form, Types),
) -> bool {
    let (source, name) = &program.job.inputs[index];
    let found = plan.sources[*source].packed.find(name).ok().flatten();
    let original = Original::of(program, index, form);
    match (found, original) {
        (Some((format, _)), Some(original)) => {
            is_same(&encoding.format, format) && original.is_of(stored.codes, stored.scales, stored.biases)
        }
        _ => false,
    }
}

/// Types and sizes of the parts.
fn check(
    form: &Form,
    (codes, scales): (&Job, &Job),
    (zeros, global): (Option<&Job>, Option<&Job>),
    shape: Option<&Job>,
    kind: ScaleType,
) -> Option<()> {
    let bytes = |job: &Job| job.dtype.bytes(&job.shape);
    let mut fits = bytes(codes)? == form.bytes() && form.bytes() > 0;
    let of_whole = form.wholes > 0 && form.global.is_none();
    fits &= scales.elements == if of_whole { form.wholes } else { form.groups() };
    fits &= form.global.is_none() || kind == ScaleType::E4M3;
    fits &= form.global.is_some() == global.is_some() && form.zeros == zeros.is_some();
    fits &= global.is_none_or(|global| global.dtype == Dtype::F32);
    fits &= form.wholes <= 1 || form.wholes == form.matrices;
    fits &= zeros.is_none_or(|zeros| {
        let words = (form.rows * u64::from(form.code.bits())).div_ceil(32);
        zeros.dtype == Dtype::I32 && zeros.elements == form.matrices * words * form.across()
    });
    fits &= shape.is_none_or(|shape| matches!(shape.dtype, Dtype::I32 | Dtype::I64) && shape.elements == 2);
    fits.then_some(())
}

/// The type of the biases: one for each group where codes are counted from them, and none elsewhere.
fn check_biases(form: &Form, biases: Option<&Job>) -> Option<ScaleType> {
    let Some(job) = biases else { return (!form.code.is_biased()).then_some(ScaleType::F32) };
    let is_plain = matches!(job.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16);
    let fits = form.code.is_biased() && is_plain && job.elements == form.groups();
    ScaleType::of(job.dtype).filter(|_| fits)
}

fn bad(plan: &Plan, jobs: &[(Role, usize)], what: &str) -> Error {
    let name = jobs.first().map_or("", |(_, job)| plan.jobs[*job].logical().0);
    Error::new(Kind::Plan, format!("unusable plan: `{}`: {what}", shown(name)))
}

/// Whether two parts are of the same tensor, computed in the same way.
pub(super) fn belong(plan: &Plan, a: &Job, b: &Job) -> bool {
    let same = |a: &PartOf, b: &PartOf| a.encoding == b.encoding && a.shape == b.shape;
    let packed = a.packed.as_ref().zip(b.packed.as_ref()).is_some_and(|(a, b)| same(a, b));
    packed && a.operation == b.operation && a.inputs == b.inputs && a.operation < plan.operations.len()
}

/// Whether a format is one that is written at all.
pub(super) fn is_written(format: &Format) -> bool {
    matches!(format, Format::Scaled(_) | Format::E2m1(_) | Format::PackedInt(_) | Format::Mlx(_))
}
