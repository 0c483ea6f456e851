//! Methods that drop elements of each difference before they add them up: TIES (2306.01708), DARE (2311.03099), DELLA
//! (2406.11617), Breadcrumbs (2312.06795), and the dataless Localize-and-stitch (2408.13656).
//!
//! Each is a way to drop (by magnitude, at random, at random by rank, both ends), a way to rescale what is left, and a
//! way to add up (a sum, a sum of those that agree with an elected sign, a mean of those that are left).

use serde::Deserialize;

use super::dropped::{measure, Found, Words, WORDS};
use super::select::{largest, Each};
use super::terms::{Buffers, Ends};
use crate::error::{Error, Kind, Result};
use crate::kernels::kept::{add_up, Kept, Sum};
use crate::kernels::Real;
use crate::op::{Computes, Method, State, Tile};
use crate::tensor::{Crew, Tensor};

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
    /// Where its difference comes from.
    pub fn ends(&self) -> Ends {
        (self.model, self.reference)
    }

    /// Its difference in a tile, with the bits of what is kept.
    pub fn whole<'a, R: Real>(&self, tile: &'a Tile<'_, R>, words: &'a [u64]) -> Kept<'a, R> {
        Kept::whole(tile.input(self.model), self.reference.map(|reference| tile.input(reference)), words)
    }

    /// Whether it is left as it is.
    pub fn is_whole(&self) -> bool {
        self.density >= 1.0
    }

    /// Whether a random drop leaves something of it and takes something.
    pub fn draws(&self) -> bool {
        self.density > 0.0 && !self.is_whole()
    }

    /// Of being kept, by the rank in a row of `n` > 1 elements.
    pub fn probability(&self, rank: usize, n: usize) -> f64 {
        (self.density - self.epsilon) + 2.0 * self.epsilon * (rank as f64 / (n - 1) as f64)
    }
}

impl TrimmedMethod {
    /// Where the differences come from.
    pub fn ends(&self) -> impl Iterator<Item = Ends> + '_ {
        self.parameters.terms.iter().map(TrimTerm::ends)
    }

    /// Whether what goes is found by magnitude.
    pub fn cuts(&self) -> bool {
        matches!(self.drop, Drop::Smallest | Drop::Ends)
    }

    /// How many of the largest of a term are kept at first, and how many of those go again.
    fn counts(&self, term: &TrimTerm, n: u64) -> Vec<u64> {
        let kept = (term.density * n as f64) as u64;
        match (term.is_whole(), self.drop) {
            (true, _) => vec![n],
            (false, Drop::Ends) => {
                // Fewer of the largest go where density asks for them.
                let top = ((term.gamma * n as f64) as u64).min(n - kept);
                vec![top + kept, top]
            }
            _ => vec![kept],
        }
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
        let looks = rescale == Rescale::L1 || self.cuts() || self.drop == Drop::Ranked && rescale == Rescale::None;
        looks && self.parameters.terms.iter().any(|term| !term.is_whole())
    }

    fn prepare(&self, tensor: &Tensor<'_>, crew: Crew<'_>) -> Result<State> {
        let terms = &self.parameters.terms;
        let mut found: Vec<Found> = terms.iter().map(|term| Found::nothing(tensor, term)).collect();
        if self.cuts() {
            let counts: Vec<Vec<u64>> = terms.iter().map(|term| self.counts(term, tensor.elements)).collect();
            let scores = |tile: &Tile<'_, R>, each: &mut Each<'_, R>| {
                for (kind, (model, reference)) in self.ends().enumerate() {
                    each(kind, tile.input(model), reference.map(|reference| tile.input(reference)));
                }
            };
            for (found, cuts) in found.iter_mut().zip(largest(tensor, crew, &counts, &scores)?) {
                found.cut(&cuts);
            }
        }
        measure::<R>(self, tensor, crew, &mut found)?;
        Ok(Box::new(found))
    }

    fn tile(&self, tensor: &Tensor<'_>, state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<()> {
        let terms = &self.parameters.terms;
        let made: Vec<Found>;
        let found = match state.downcast_ref::<Vec<Found>>() {
            Some(found) => found,
            None => {
                made = terms.iter().map(|term| Found::nothing(tensor, term)).collect();
                &made
            }
        };
        let (mut few, mut many): ([Words; 4], Vec<Words>);
        let words = if terms.len() <= 4 {
            few = [[0; WORDS]; 4];
            &mut few[..terms.len()]
        } else {
            many = vec![[0; WORDS]; terms.len()];
            &mut many[..]
        };
        // What is not only dropped but changed one by one needs room.
        let mut changed: Vec<Option<Buffers<R>>> = Vec::new();
        if self.drop == Drop::Ranked {
            for (index, found) in found.iter().enumerate() {
                changed.push(found.changed(self, tensor, tile, index)?);
            }
        }
        let mut kept: Vec<Kept<'_, R>> = Vec::with_capacity(terms.len());
        for (index, ((term, found), words)) in terms.iter().zip(found).zip(words).enumerate() {
            let one = match changed.get(index).and_then(Option::as_ref) {
                Some(changed) => {
                    *words = [u64::MAX; WORDS];
                    Kept::whole(&changed[0], None, words)
                }
                None => found.kept(self, tile, index, words),
            };
            let expected = self.parameters.rescale == Rescale::Expectation && self.drop == Drop::Random && term.draws();
            let scale = if expected { 1.0 / term.density } else { found.scale };
            let (factor, weight) = (R::from_f64(term.weight * scale), R::from_f64(term.weight));
            kept.push(Kept { factor, weight, ..one });
        }
        let sum = match self.sum {
            Sum::Elected if self.parameters.normalize => Sum::ElectedMean,
            sum => sum,
        };
        add_up(tile.level, &kept, sum, out);
        Ok(())
    }
}
