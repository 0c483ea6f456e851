//! Methods that look at one element at a time: Consensus (2405.07813), EMR (2405.17461), RAM (2601.13572), NearSwap, and
//! passthrough with a factor.

use serde::Deserialize;

use super::difference::{deltas, Pair};
use super::method::{check_count, check_terms, Computes, Method, Parameters, State, Term};
use crate::error::{Error, Kind, Result};
use crate::kernels::combine::scale;
use crate::kernels::elementwise::{consensus, largest_agreeing, near, overlap_mean, shared_and_own, touched};
use crate::kernels::factor::{holds, Factor};
use crate::kernels::Real;
use crate::tensor::{Tensor, Tile};
use crate::threads::Threads;

fn one() -> f64 {
    1.0
}

fn pairs(terms: &[Term]) -> impl Iterator<Item = Pair> + '_ {
    terms.iter().map(|term| (term.model, term.reference))
}

/// Parameters; each method uses its own.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Elementwise {
    /// The models, in order.
    pub terms: Vec<Term>,
    /// Final factor.
    #[serde(default = "one")]
    pub lambda: f64,
    /// Consensus: how much of the rest δ has to outweigh.
    #[serde(default)]
    pub tall_lambda: f64,
    /// Consensus: models to which an element has to matter.
    #[serde(default)]
    pub k: u32,
    /// RAM: at or below this an element counts as unchanged.
    #[serde(default)]
    pub epsilon: f64,
    /// RAM+: strength of the scaling.
    #[serde(default)]
    pub r: f64,
    /// RAM+: cap of the overlap ratio.
    #[serde(default)]
    pub alpha: f64,
    /// NearSwap: distance up to which the other model is taken.
    #[serde(default)]
    pub t: f64,
}

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Rule {
    Consensus,
    Emr,
    Ram,
    RamPlus,
    NearSwap,
    Scale,
}

/// The parameters with their method.
#[derive(Clone, Debug)]
pub(crate) struct ElementwiseMethod {
    /// Parameters.
    pub parameters: Elementwise,
    /// Which of them.
    pub rule: Rule,
}

impl Parameters for Elementwise {
    type Variant = Rule;

    fn check(&self, variant: Rule, inputs: usize) -> Result<()> {
        let most = if matches!(variant, Rule::NearSwap | Rule::Scale) { 1 } else { usize::MAX };
        check_count(&self.terms, 1, most)?;
        let numbers = [self.lambda, self.tall_lambda, self.epsilon, self.r, self.alpha, self.t];
        if self.terms.is_empty() || numbers.iter().any(|x| !x.is_finite()) || self.alpha < 0.0 {
            return Err(Error::new(Kind::Plan, format!("parameters out of range: {self:?}")));
        }
        check_terms(&self.terms, inputs)
    }

    fn is_single(&self, rule: &Rule) -> bool {
        *rule != Rule::Scale || self.terms.iter().all(|term| holds::<f32>(term.weight))
    }

    fn method<R: Real>(&self, variant: Rule) -> Box<dyn Method<R>> {
        Box::new(ElementwiseMethod { parameters: self.clone(), rule: variant })
    }
}

impl<R: Real> Method<R> for ElementwiseMethod {
    fn computes(&self) -> Computes {
        if self.rule == Rule::Scale {
            Computes::Value
        } else {
            Computes::Step
        }
    }

    fn factor(&self) -> f64 {
        self.parameters.lambda
    }

    fn prepares(&self) -> bool {
        self.rule == Rule::RamPlus
    }

    fn value_of(&self) -> Option<&[Term]> {
        (self.rule == Rule::Scale).then_some(&self.parameters.terms[..])
    }

    /// RAM+: the factor of what each model alone changed, from how much of it others changed too.
    fn prepare(&self, tensor: &Tensor<'_>, threads: Threads<'_>) -> Result<State> {
        let p = &self.parameters;
        let (n, epsilon) = (p.terms.len(), R::from_f64(p.epsilon));
        let counts = tensor.tally::<R, Vec<(u64, u64)>, _, _>(
            threads,
            || vec![(0, 0); n],
            |counts, tile| {
                let all = deltas(tile, pairs(&p.terms));
                let slices: Vec<&[R]> = all.iter().map(Vec::as_slice).collect();
                let mut models = vec![R::ZERO; all[0].len()];
                touched(tile.level, &slices, epsilon, &mut models);
                for (delta, (shared, own)) in all.iter().zip(counts.iter_mut()) {
                    let more = shared_and_own(tile.level, delta, &models, epsilon);
                    (*shared, *own) = (*shared + more.0, *own + more.1);
                }
            },
        )?;
        let factor = |i: usize| {
            let (shared, own) = counts.iter().fold((0, 0), |(s, o), c| (s + c[i].0, o + c[i].1));
            let ratio = shared as f64 / (own as f64).max(p.epsilon);
            1.0 + p.r * ratio.clamp(0.0, p.alpha)
        };
        Ok(Box::new((0..n).map(factor).collect::<Vec<f64>>()))
    }

    fn tile(&self, _tensor: &Tensor<'_>, state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<()> {
        let p = &self.parameters;
        if self.rule == Rule::Scale {
            scale(tile.level, tile.input(p.terms[0].model), Factor::new(p.terms[0].weight), out);
            return Ok(());
        }
        let all = deltas(tile, pairs(&p.terms));
        let weights: Vec<R> = p.terms.iter().map(|term| R::from_f64(term.weight)).collect();
        let factors = state.downcast_ref::<Vec<f64>>();
        let factors: Vec<R> =
            (0..all.len()).map(|i| factors.map_or(R::ONE, |factors| R::from_f64(factors[i]))).collect();
        let (epsilon, tall, t) = (R::from_f64(p.epsilon), R::from_f64(p.tall_lambda), R::from_f64(p.t));
        let slices: Vec<&[R]> = all.iter().map(Vec::as_slice).collect();
        match self.rule {
            Rule::Consensus => consensus(tile.level, &slices, &weights, tall, R::from_f64(f64::from(p.k)), out),
            Rule::Emr => largest_agreeing(tile.level, &slices, out),
            Rule::Ram | Rule::RamPlus => overlap_mean(tile.level, &slices, &factors, epsilon, out),
            Rule::NearSwap => near(tile.level, slices[0], t, out),
            Rule::Scale => {}
        }
        Ok(())
    }
}
