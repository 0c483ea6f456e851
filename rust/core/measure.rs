//! What a run finds out on its way: survival of the step after rounding, and values that are not finite.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Mutex;

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Kind};
use crate::kernels::stats::StepSums;
use crate::kernels::widen::count_non_finite;
use crate::kernels::{Level, Real};
use crate::threads::lock;

/// Sums over one output tensor, as the journal keeps them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Survival {
    /// Σ step².
    #[serde(deserialize_with = "finite_or_null")]
    pub step: f64,
    /// Σ (out − target)².
    #[serde(deserialize_with = "finite_or_null")]
    pub moved: f64,
    /// Σ step·(out − target).
    #[serde(deserialize_with = "finite_or_null")]
    pub dot: f64,
    /// Σ ((out − target) − step)².
    #[serde(deserialize_with = "finite_or_null")]
    pub error: f64,
    /// Σ target².
    #[serde(deserialize_with = "finite_or_null")]
    pub target: f64,
    /// Elements with a step.
    pub changed: u64,
    /// Of those, rounded back to the target.
    pub lost: u64,
    /// Elements measured.
    pub elements: u64,
    /// What its differences of donor and reference are like, where that is measured: one for each pair of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub noises: Vec<Noise>,
}

/// A sum that is not finite is written as null, for JSON has nothing else.
fn finite_or_null<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

impl Survival {
    /// Adds a tile of `elements`.
    pub(crate) fn add(&mut self, sums: &StepSums, elements: u64) {
        self.step += sums.step;
        self.moved += sums.moved;
        self.dot += sums.dot;
        self.error += sums.error;
        self.target += sums.target;
        self.changed += sums.changed;
        self.lost += sums.lost;
        self.elements += elements;
    }

    /// Adds another sum.
    pub(crate) fn merge(&mut self, other: &Survival) {
        self.step += other.step;
        self.moved += other.moved;
        self.dot += other.dot;
        self.error += other.error;
        self.target += other.target;
        self.changed += other.changed;
        self.lost += other.lost;
        self.elements += other.elements;
        other.noises.iter().for_each(|noise| self.add_noise(noise));
    }

    /// Adds what a tile's difference of one pair is like.
    pub(crate) fn add_noise(&mut self, noise: &Noise) {
        match self.noises.iter_mut().find(|own| own.pair == noise.pair) {
            Some(own) => own.merge(noise),
            None => self.noises.push(*noise),
        }
    }

    /// Norms, cosine and relative error, under the tensor's name where they are one tensor's.
    pub(crate) fn figures<'n>(&self, name: Option<&'n str>) -> Figures<'n> {
        let cosine = self.dot / (self.step.sqrt() * self.moved.sqrt());
        Figures {
            changed: self.changed,
            cosine: number(if cosine > 1.0 { 1.0 } else { cosine }),
            elements: self.elements,
            moved_norm: number(self.moved.sqrt()),
            name,
            relative_error: number((self.error / self.step).sqrt()),
            rounded_away: self.lost,
            step_norm: number(self.step.sqrt()),
            target_norm: number(self.target.sqrt()),
        }
    }
}

/// What a report says of a [`Survival`].
#[derive(Serialize)]
pub(crate) struct Figures<'n> {
    changed: u64,
    cosine: Option<f64>,
    elements: u64,
    moved_norm: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'n str>,
    relative_error: Option<f64>,
    rounded_away: u64,
    step_norm: Option<f64>,
    target_norm: Option<f64>,
}

/// Six significant digits: the sums may differ in the last bits where shards are cut elsewhere. A number that does not
/// exist (no step, NaN) is null.
pub(crate) fn number(x: f64) -> Option<f64> {
    if !x.is_finite() {
        return None;
    }
    format!("{x:.5e}").parse().ok()
}

/// Sums over the difference of donor and reference, as the journal keeps them: from those of a format, how much of it is
/// a vector can be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Noise {
    /// Which donor and reference of the sum, counted from 0.
    #[serde(default)]
    pub pair: usize,
    /// Whether both are stored as codes with scales, in one format; or both as plain numbers.
    pub packed: bool,
    /// Elements measured.
    pub elements: u64,
    /// Σ difference².
    #[serde(deserialize_with = "finite_or_null")]
    pub squares: f64,
    /// Σ reference².
    #[serde(deserialize_with = "finite_or_null")]
    pub reference: f64,
    /// Σ |difference| over groups with equal scales; of plain numbers over all.
    #[serde(deserialize_with = "finite_or_null")]
    pub magnitudes: f64,
    /// Elements of those.
    pub equal: u64,
    /// Codes that differ.
    pub codes: u64,
    /// Groups that share a scale.
    pub groups: u64,
    /// Of those, with another scale in donor and reference.
    pub scales: u64,
}

impl Noise {
    /// Adds another sum.
    pub(crate) fn merge(&mut self, other: &Noise) {
        self.packed = other.packed;
        self.elements += other.elements;
        self.squares += other.squares;
        self.reference += other.reference;
        self.magnitudes += other.magnitudes;
        self.equal += other.equal;
        self.codes += other.codes;
        self.groups += other.groups;
        self.scales += other.scales;
    }

    /// What a report says, under the tensor's name where it is one tensor's.
    pub(crate) fn figures<'n>(&self, name: Option<&'n str>) -> NoiseFigures<'n> {
        let coded = |count: u64| self.packed.then_some(count);
        NoiseFigures {
            codes_differ: coded(self.codes),
            elements: self.elements,
            equal_elements: coded(self.equal),
            groups: coded(self.groups),
            magnitudes: number(self.magnitudes),
            name,
            pair: self.pair,
            reference_squares: number(self.reference),
            scales_differ: coded(self.scales),
            squares: number(self.squares),
            stored: if self.packed { "packed" } else { "plain" },
        }
    }
}

/// What a report says of a [`Noise`].
#[derive(Serialize)]
pub(crate) struct NoiseFigures<'n> {
    #[serde(skip_serializing_if = "Option::is_none")]
    codes_differ: Option<u64>,
    elements: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    equal_elements: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<u64>,
    magnitudes: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'n str>,
    pair: usize,
    reference_squares: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scales_differ: Option<u64>,
    squares: Option<f64>,
    stored: &'static str,
}

/// Values that are not finite, by job and by where they stand; and elements that matter to no model, by job.
#[derive(Debug)]
pub(crate) struct NonFinite {
    counts: Mutex<BTreeMap<(usize, Place), u64>>,
    unweighted: Mutex<BTreeMap<usize, u64>>,
    /// The first job that has any: nothing after it needs doing where they are not allowed.
    pub(crate) first: AtomicUsize,
}

/// Where a value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Input by position.
    Input(usize),
    /// Output by position.
    Output(usize),
}

impl Default for NonFinite {
    fn default() -> Self {
        let (counts, unweighted) = (Mutex::new(BTreeMap::new()), Mutex::new(BTreeMap::new()));
        NonFinite { counts, unweighted, first: AtomicUsize::new(usize::MAX) }
    }
}

impl NonFinite {
    /// Notes the values of a tile of input `index`.
    pub(crate) fn input<R: Real>(&self, job: usize, index: usize, level: Level, tile: &[R]) {
        self.note(job, Place::Input(index), count_non_finite(level, tile));
    }

    /// Notes the values of a tile of output `index`.
    pub(crate) fn output<R: Real>(&self, job: usize, index: usize, level: Level, tile: &[R]) {
        self.note(job, Place::Output(index), count_non_finite(level, tile));
    }

    /// Adds a count.
    pub(crate) fn note(&self, job: usize, place: Place, count: u64) {
        if count > 0 {
            self.first.fetch_min(job, Relaxed);
            *lock(&self.counts).entry((job, place)).or_default() += count;
        }
    }

    /// Notes elements that matter to none of a job's models.
    pub(crate) fn note_unweighted(&self, job: usize, count: u64) {
        if count > 0 {
            *lock(&self.unweighted).entry(job).or_default() += count;
        }
    }

    /// Those of all jobs that have any, in order.
    pub(crate) fn unweighted(&self) -> Vec<(usize, u64)> {
        lock(&self.unweighted).iter().map(|(job, count)| (*job, *count)).collect()
    }

    /// All counts, in job order.
    pub(crate) fn counts(&self) -> Vec<(usize, Place, u64)> {
        lock(&self.counts).iter().map(|((job, place), count)| (*job, *place, *count)).collect()
    }

    /// The error that names the first tensor, given names of jobs and of their inputs.
    pub(crate) fn error(&self, describe: impl Fn(usize, Place) -> String) -> Option<Error> {
        let counts = self.counts();
        let first = counts.first()?.0;
        let parts: Vec<String> = counts
            .iter()
            .filter(|(job, _, _)| *job == first)
            .map(|(job, place, count)| format!("{count} in {}", describe(*job, *place)))
            .collect();
        let message = format!("values that are not finite (NaN or infinity): {}", parts.join(", "));
        let is_made = counts.iter().all(|(job, place, _)| *job != first || matches!(place, Place::Output(_)));
        let hint = if is_made {
            "choose a wider output type or a smaller factor, or go on with `--force non-finite`"
        } else {
            "repair that checkpoint, leave the tensor out (`--exclude` of transfer and apply), or go on with \
             `--force non-finite`"
        };
        Some(Error::new(Kind::NonFinite, message).hint(hint))
    }
}
