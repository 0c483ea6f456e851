//! Methods that drop elements of each difference before they add them up: TIES (2306.01708), DARE (2311.03099), DELLA
//! (2406.11617), Breadcrumbs (2312.06795), and the dataless Localize-and-stitch (2408.13656).
//!
//! Each is a way to drop (by magnitude, at random, at random by rank, both ends), a way to rescale what is left, and a
//! way to add up (a sum, a sum of those that agree with an elected sign, a mean of those that are left).

use serde::Deserialize;

use super::by_rank;
use super::coin::{chance, Coin};
use super::mask::Mask;
use super::ranks::ranks;
use super::select::{largest, Cut};
use super::terms::{cached, deltas, read_deltas, rows, Ends};
use crate::error::{Error, Kind, Result};
use crate::kernels::across::elect;
use crate::kernels::combine::{add_scaled, multiply};
use crate::kernels::philox::{fill, Stream};
use crate::kernels::stats::{sum_abs, sum_abs_marked};
use crate::kernels::trim::keep_marked;
use crate::kernels::{Real, TILE};
use crate::op::{Computes, Method, State, Tile};
use crate::tensor::{lock, Crew, Tensor, CHUNK};

/// Most bytes of masks of one tensor; a larger one's draws are drawn again instead.
const MASKS: u64 = 64 << 20;

/// Which elements are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// The smallest in magnitude.
    Smallest,
    /// Any, with the same probability.
    Random,
    /// Any, with a probability that falls with the rank in the row.
    Ranked,
    /// The largest and the smallest.
    Ends,
}

/// How what is left is added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// Σ w·δ.
    Plain,
    /// Σ w·δ over those whose sign is that of Σ w·δ.
    Elected,
    /// Σ w·δ over how many are left.
    Mean,
}

/// How what is left of a difference is scaled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rescale {
    /// Not at all.
    #[default]
    None,
    /// To the L1 norm of the whole.
    L1,
    /// By the probability of being kept.
    Expectation,
}

/// One model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrimTerm {
    /// Position among the inputs.
    pub model: usize,
    /// Position of what is subtracted.
    pub reference: Option<usize>,
    /// Factor.
    pub weight: f64,
    /// Share that is kept.
    #[serde(default = "one", alias = "s")]
    pub density: f64,
    /// Share of the largest that is dropped.
    #[serde(default)]
    pub gamma: f64,
    /// Half the width of the range of probabilities.
    #[serde(default)]
    pub epsilon: f64,
    /// Which random numbers it draws.
    #[serde(default)]
    pub stream: u64,
}

fn one() -> f64 {
    1.0
}

/// Parameters as the plan has them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trimmed {
    /// The models, in order.
    pub terms: Vec<TrimTerm>,
    /// Divide by the weights of those that agree.
    #[serde(default)]
    pub normalize: bool,
    /// How to rescale.
    #[serde(default)]
    pub rescale: Rescale,
    /// Final factor.
    #[serde(default = "one")]
    pub lambda: f64,
}

/// The parameters with the two ways that the method's name stands for.
#[derive(Clone, Debug)]
pub struct TrimmedMethod {
    /// Parameters.
    pub parameters: Trimmed,
    /// What is dropped.
    pub drop: Drop,
    /// How the rest is added up.
    pub sum: Sum,
}

/// What the look at the whole tensor found, per term.
struct Found {
    /// Of the elements kept by `keep`, those kept by `except` are dropped again.
    keep: Cut,
    except: Cut,
    scale: f64,
    /// What a random drop keeps, if that is known already.
    mask: Option<Mask>,
    /// What a random drop flips.
    coin: Coin,
}

impl Found {
    fn nothing(coin: Coin) -> Self {
        Found { keep: Cut::ALL, except: Cut::NONE, scale: 1.0, mask: None, coin }
    }
}

/// What a pass over some elements finds out, per term: the L1 norms before and after, and the bits of the masks.
#[derive(Default)]
struct Part {
    norms: Vec<(f64, f64)>,
    words: Vec<Vec<u64>>,
}

impl Trimmed {
    /// Ranges of the parameters.
    ///
    /// # Errors
    /// `Kind::Plan` naming the parameter.
    pub fn check(&self, inputs: usize) -> Result<()> {
        for term in &self.terms {
            let share = |x: f64| (0.0..=1.0).contains(&x);
            let fine = term.model < inputs
                && term.reference.is_none_or(|reference| reference < inputs)
                && term.weight.is_finite()
                && share(term.density)
                && share(term.gamma)
                && share(term.epsilon);
            if !fine {
                return Err(Error::new(Kind::Plan, format!("parameters out of range: {term:?}")));
            }
        }
        Ok(())
    }
}

impl TrimTerm {
    fn ends(&self) -> Ends {
        (self.model, self.reference)
    }

    /// Of being kept, by the rank in a row of `n` > 1 elements.
    fn probability(&self, rank: usize, n: usize) -> f64 {
        (self.density - self.epsilon) + 2.0 * self.epsilon * (rank as f64 / (n - 1) as f64)
    }
}

impl TrimmedMethod {
    fn ends(&self) -> impl Iterator<Item = Ends> + '_ {
        self.parameters.terms.iter().map(TrimTerm::ends)
    }

    fn cuts_by_magnitude(&self) -> bool {
        matches!(self.drop, Drop::Smallest | Drop::Ends)
    }

    /// Whether a term is left as it is.
    fn whole(term: &TrimTerm) -> bool {
        term.density >= 1.0
    }

    fn coin(tensor: &Tensor<'_>, term: &TrimTerm) -> Coin {
        let stream = Stream::new(tensor.seed, &format!("drop {}", term.stream), tensor.name);
        Coin::new(stream, term.density)
    }

    /// Whether a random drop leaves something of a term and takes something.
    fn draws(term: &TrimTerm) -> bool {
        term.density > 0.0 && !Self::whole(term)
    }

    /// Whether what is drawn is remembered from the look at the whole tensor.
    fn remembers(&self, tensor: &Tensor<'_>) -> bool {
        let rescale = self.parameters.rescale;
        let looks = match self.drop {
            Drop::Random => rescale == Rescale::L1,
            Drop::Ranked => rescale != Rescale::Expectation,
            Drop::Smallest | Drop::Ends => false,
        };
        let terms = self.parameters.terms.iter().filter(|term| Self::draws(term)).count() as u64;
        looks && terms.saturating_mul(tensor.elements / 8) <= MASKS
    }

    /// Drops from `delta`, the difference of term `index`, what is to go.
    fn trim<R: Real>(
        &self,
        tensor: &Tensor<'_>,
        tile: &Tile<'_, R>,
        index: usize,
        found: &Found,
        delta: &mut [R],
    ) -> Result<()> {
        let (term, level, n) = (&self.parameters.terms[index], tile.level, delta.len());
        if Self::whole(term) {
            return Ok(());
        }
        if term.density <= 0.0 {
            delta.fill(R::ZERO);
            return Ok(());
        }
        if let Some(mask) = &found.mask {
            mask.keep(level, tile.first, delta);
            return Ok(());
        }
        if self.cuts_by_magnitude() {
            found.keep.keep(level, tile.first, delta);
            if found.except != Cut::NONE {
                found.except.drop(level, tile.first, delta);
            }
            return Ok(());
        }
        if self.drop == Drop::Random {
            let mut words = [0; TILE / 64];
            found.coin.flip(level, tile.first, n, &mut words);
            keep_marked(level, &words, 0, delta);
            return Ok(());
        }
        let mut draws = [0; TILE];
        let draws = &mut draws[..n];
        fill(level, &found.coin.stream, tile.first, draws);
        let probabilities = self.probabilities::<R>(tensor, index, tile.first, n)?;
        let expected = self.parameters.rescale == Rescale::Expectation;
        for ((x, draw), p) in delta.iter_mut().zip(draws).zip(probabilities) {
            let kept = if expected { R::from_f64(x.to_f64() / p) } else { *x };
            *x = if u64::from(*draw) < chance(p) { kept } else { R::ZERO };
        }
        Ok(())
    }

    /// Probabilities of being kept of the elements `first .. first + n`: from density − epsilon for the smallest of a
    /// row to density + epsilon for the largest, linear in the rank; equal magnitudes by index.
    fn probabilities<R: Real>(&self, tensor: &Tensor<'_>, index: usize, first: u64, n: usize) -> Result<Vec<f64>> {
        let term = &self.parameters.terms[index];
        let (_, length) = rows(tensor.shape);
        let mut all = Vec::with_capacity(n);
        while all.len() < n {
            let element = first + all.len() as u64;
            let (row, at) = (element / length, (element % length) as usize);
            let take = (n - all.len()).min(length as usize - at);
            let make = || {
                let delta: Vec<R> = read_deltas(tensor, row * length..(row + 1) * length, term.ends())?;
                let mut probabilities = vec![term.density; delta.len()];
                if delta.len() > 1 {
                    ranks(&delta, |i, rank| probabilities[i] = term.probability(rank, delta.len()));
                }
                Ok(probabilities)
            };
            cached((tensor.id, index, 0, row), make, |row| all.extend_from_slice(&row[at..at + take]))?;
        }
        Ok(all)
    }

    /// Norms and masks of a drop by rank, row by row.
    fn ranked<R: Real>(&self, tensor: &Tensor<'_>, crew: Crew<'_>) -> Result<Vec<(usize, Part)>> {
        let terms = &self.parameters.terms;
        let length = rows(tensor.shape).1;
        let n = length as usize;
        let limits = |term: &TrimTerm| match n {
            1 => vec![chance(term.density)],
            n => (0..n).map(|rank| chance(term.probability(rank, n))).collect::<Vec<u64>>(),
        };
        let limits: Vec<Vec<u64>> =
            terms.iter().map(|term| if Self::draws(term) { limits(term) } else { Vec::new() }).collect();
        let streams: Vec<Stream> = terms.iter().map(|term| Self::coin(tensor, term).stream).collect();
        let parts = tensor.rows::<R, Part, _>(crew, length, |row, inputs| {
            let tile = Tile { level: tensor.level, first: row * length, inputs };
            let mut part = Part::default();
            let mut draws = vec![0; n];
            for (index, delta) in deltas(&tile, self.ends()).iter_mut().enumerate() {
                let mut words = Vec::new();
                if Self::draws(&terms[index]) {
                    fill(tile.level, &streams[index], tile.first, &mut draws);
                    words.resize(n.div_ceil(64), 0u64);
                    by_rank::keep(tile.level, delta, &draws, &limits[index], &mut words);
                    part.norms.push(sum_abs_marked(tile.level, delta, &words));
                } else {
                    let before = sum_abs(tile.level, delta);
                    part.norms.push((before, if Self::whole(&terms[index]) { before } else { 0.0 }));
                }
                part.words.push(words);
            }
            part
        })?;
        Ok(parts.into_iter().map(|part| (n, part)).collect())
    }

    /// Norms, and masks of a drop at random where they are to be remembered, chunk by chunk.
    fn measured<R: Real>(
        &self,
        tensor: &Tensor<'_>,
        crew: Crew<'_>,
        found: &[Found],
        remembers: bool,
    ) -> Result<Vec<(usize, Part)>> {
        let terms = &self.parameters.terms;
        let failed = std::sync::Mutex::new(None);
        let parts = tensor.fold::<R, (usize, Part), _, _>(
            crew,
            |_| (0, Part { norms: vec![(0.0, 0.0); terms.len()], words: vec![Vec::new(); terms.len()] }),
            |(n, part), tile| {
                for (index, delta) in deltas(tile, self.ends()).iter_mut().enumerate() {
                    let mut words = [0; TILE / 64];
                    let norms = &mut part.norms[index];
                    if self.drop == Drop::Random && Self::draws(&terms[index]) {
                        found[index].coin.flip(tile.level, tile.first, delta.len(), &mut words);
                        let (before, after) = sum_abs_marked(tile.level, delta, &words);
                        *norms = (norms.0 + before, norms.1 + after);
                    } else {
                        norms.0 += sum_abs(tile.level, delta);
                        if let Err(error) = self.trim(tensor, tile, index, &found[index], delta) {
                            lock(&failed).get_or_insert(error);
                        }
                        norms.1 += sum_abs(tile.level, delta);
                    }
                    if remembers && Self::draws(&terms[index]) {
                        let all = &mut part.words[index];
                        all.reserve_exact((CHUNK as usize / 64).saturating_sub(all.len()));
                        all.extend_from_slice(&words[..delta.len().div_ceil(64)]);
                    }
                }
                *n += tile.inputs.first().map_or(0, Vec::len);
            },
        )?;
        let failed = lock(&failed).take();
        failed.map_or(Ok(parts), Err)
    }
}

impl<R: Real> Method<R> for TrimmedMethod {
    fn computes(&self) -> Computes {
        Computes::Step
    }

    fn factor(&self) -> f64 {
        self.parameters.lambda
    }

    fn prepares(&self) -> bool {
        let rescale = self.parameters.rescale;
        let looks =
            rescale == Rescale::L1 || self.cuts_by_magnitude() || self.drop == Drop::Ranked && rescale == Rescale::None;
        looks && self.parameters.terms.iter().any(|term| !Self::whole(term))
    }

    fn prepare(&self, tensor: &Tensor<'_>, crew: Crew<'_>) -> Result<State> {
        let n = tensor.elements;
        let terms = &self.parameters.terms;
        let mut found: Vec<Found> = terms.iter().map(|term| Found::nothing(Self::coin(tensor, term))).collect();
        if self.cuts_by_magnitude() {
            let counts: Vec<Vec<u64>> = terms
                .iter()
                .map(|term| {
                    let kept = (term.density * n as f64) as u64;
                    match (Self::whole(term), self.drop) {
                        (true, _) => vec![n],
                        (false, Drop::Ends) => {
                            // Fewer of the largest go where density asks for them.
                            let top = ((term.gamma * n as f64) as u64).min(n - kept);
                            vec![top + kept, top]
                        }
                        _ => vec![kept],
                    }
                })
                .collect();
            let scores = |tile: &Tile<'_, R>| deltas(tile, self.ends());
            for (found, cuts) in found.iter_mut().zip(largest(tensor, crew, &counts, &scores)?) {
                found.keep = cuts[0];
                found.except = cuts.get(1).copied().unwrap_or(Cut::NONE);
            }
        }
        let (remembers, rescales) = (self.remembers(tensor), self.parameters.rescale == Rescale::L1);
        if !remembers && !rescales {
            return Ok(Box::new(found));
        }
        let parts = if remembers && self.drop == Drop::Ranked {
            self.ranked::<R>(tensor, crew)?
        } else {
            self.measured::<R>(tensor, crew, &found, remembers)?
        };
        for (index, found) in found.iter_mut().enumerate() {
            let (before, after) = parts.iter().fold((0.0, 0.0), |(before, after), (_, part)| {
                (before + part.norms[index].0, after + part.norms[index].1)
            });
            if rescales && before >= 1e-7 && after >= 1e-7 {
                found.scale = before / after;
            }
            if remembers && Self::draws(&terms[index]) {
                let mask = found.mask.get_or_insert_default();
                parts.iter().for_each(|(n, part)| mask.append(&part.words[index], *n));
            }
        }
        Ok(Box::new(found))
    }

    fn tile(&self, tensor: &Tensor<'_>, state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<()> {
        let found = state.downcast_ref::<Vec<Found>>();
        let mut all = deltas(tile, self.ends());
        let mut kept = vec![0u32; if self.sum == Sum::Mean { out.len() } else { 0 }];
        for (index, (delta, term)) in all.iter_mut().zip(&self.parameters.terms).enumerate() {
            let nothing = found.is_none().then(|| Found::nothing(Self::coin(tensor, term)));
            let Some(found) = found.map(|found| &found[index]).or(nothing.as_ref()) else { continue };
            self.trim(tensor, tile, index, found, delta)?;
            let expected = self.parameters.rescale == Rescale::Expectation && self.drop == Drop::Random;
            let factor =
                if expected && !Self::whole(term) && term.density > 0.0 { 1.0 / term.density } else { found.scale };
            if factor != 1.0 {
                multiply(tile.level, R::from_f64(factor), delta);
            }
            kept.iter_mut().zip(delta.iter()).for_each(|(kept, x)| *kept += u32::from(*x != R::ZERO));
        }
        match self.sum {
            Sum::Elected => {
                let weights: Vec<R> = self.parameters.terms.iter().map(|term| R::from_f64(term.weight)).collect();
                let all: Vec<&[R]> = all.iter().map(Vec::as_slice).collect();
                elect(tile.level, &all, &weights, self.parameters.normalize, out);
            }
            Sum::Plain | Sum::Mean => {
                out.fill(R::ZERO);
                for (delta, term) in all.iter().zip(&self.parameters.terms) {
                    add_scaled(tile.level, delta, R::from_f64(term.weight), out);
                }
                for (x, kept) in out.iter_mut().zip(&kept) {
                    *x = *x / R::from_f64(f64::from((*kept).max(1)));
                }
            }
        }
        Ok(())
    }
}
