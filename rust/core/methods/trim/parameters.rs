//! What a method of this family is given: its models, how elements are dropped, how the rest is scaled and added up.

use serde::Deserialize;

use crate::error::{Error, Kind, Result};
use crate::kernels::masked::Masked;
use crate::kernels::masked_sum::Sum;
use crate::kernels::Real;
use crate::methods::difference::Pair;
use crate::methods::method::{Method, Parameters};
use crate::tensor::Tile;

/// Which elements are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drop {
    /// The smallest in magnitude.
    Smallest,
    /// Any, with the same probability.
    Random,
    /// Any, with a probability that falls with the rank in the row.
    Ranked,
    /// The largest and the smallest.
    Outliers,
}

/// How what is left of a difference is scaled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Rescale {
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
pub(crate) struct TrimTerm {
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
pub(crate) struct Trim {
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
pub(crate) struct TrimMethod {
    /// Parameters.
    pub parameters: Trim,
    /// What is dropped.
    pub drop: Drop,
    /// How the rest is added up.
    pub sum: Sum,
}

impl Parameters for Trim {
    type Variant = (Drop, Sum);

    fn check(&self, _variant: (Drop, Sum), inputs: usize) -> Result<()> {
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

    fn method<R: Real>(&self, variant: (Drop, Sum)) -> Box<dyn Method<R>> {
        let (drop, sum) = variant;
        Box::new(TrimMethod { parameters: self.clone(), drop, sum })
    }
}

impl TrimTerm {
    /// Where its difference comes from.
    pub(crate) fn pairs(&self) -> Pair {
        (self.model, self.reference)
    }

    /// Its difference in a tile, with the bits of what is kept.
    pub(crate) fn whole<'a, R: Real>(&self, tile: &'a Tile<'_, R>, words: &'a [u64]) -> Masked<'a, R> {
        Masked::whole(tile.input(self.model), self.reference.map(|reference| tile.input(reference)), words)
    }

    /// Whether it is left as it is.
    pub(crate) fn is_whole(&self) -> bool {
        self.density >= 1.0
    }

    /// Whether a random drop leaves something of it and takes something.
    pub(crate) fn draws(&self) -> bool {
        self.density > 0.0 && !self.is_whole()
    }

    /// Of being kept, by the rank in a row of `n` > 1 elements.
    pub(crate) fn probability(&self, rank: usize, n: usize) -> f64 {
        (self.density - self.epsilon) + 2.0 * self.epsilon * (rank as f64 / (n - 1) as f64)
    }
}

impl TrimMethod {
    /// Where the differences come from.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = Pair> + '_ {
        self.parameters.terms.iter().map(TrimTerm::pairs)
    }

    /// Whether what goes is found by magnitude.
    pub(crate) fn cuts(&self) -> bool {
        matches!(self.drop, Drop::Smallest | Drop::Outliers)
    }

    /// How many of the largest of a term are kept at first, and how many of those go again.
    pub(crate) fn counts(&self, term: &TrimTerm, n: u64) -> Vec<u64> {
        let kept = (term.density * n as f64) as u64;
        match (term.is_whole(), self.drop) {
            (true, _) => vec![n],
            (false, Drop::Outliers) => {
                // Fewer of the largest go where density asks for them.
                let top = ((term.gamma * n as f64) as u64).min(n - kept);
                vec![top + kept, top]
            }
            _ => vec![kept],
        }
    }
}
