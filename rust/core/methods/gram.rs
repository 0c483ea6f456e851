//! Methods whose result is a weighted sum of whole tensors, with weights that depend on their norms and angles: SLERP,
//! NuSLERP, Multi-SLERP, the Karcher mean and Model Stock (2403.19522).
//!
//! All of them live in the span of their inputs, so one pass that takes the inner products of every pair is all they
//! need: the rest, iterations included, happens on the coefficients.

mod coefficients;
mod groups;

use serde::Deserialize;

use self::coefficients::{karcher, model_stock, multislerp, nuslerp, slerp, Products};
use self::groups::{pairs_of, Along, Groups};
use super::difference::{views, Pair};
use super::method::{check_count, check_terms, Computes, Method, Parameters, State, Term};
use crate::error::{Error, Kind, Result};
use crate::kernels::combine::{add_scaled, scale};
use crate::kernels::factor::Factor;
use crate::kernels::Real;
use crate::tensor::{Tensor, Tile};
use crate::threads::Threads;

/// Parameters of all five; each uses its own.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Gram {
    /// The models, in order.
    pub terms: Vec<Term>,
    /// Position of the base, if the result is a step from it.
    #[serde(default)]
    pub base: Option<usize>,
    /// SLERP: 0 is the first, 1 the second.
    #[serde(default)]
    pub t: f64,
    /// NuSLERP: the tensor as one vector.
    #[serde(default = "yes")]
    pub flatten: bool,
    /// NuSLERP, not flattened: along the first dimension instead of the last.
    #[serde(default)]
    pub row_wise: bool,
    /// Multi-SLERP: keeps divisions finite.
    #[serde(default = "tiny")]
    pub eps: f64,
    /// Karcher: most iterations.
    #[serde(default)]
    pub max_iter: u32,
    /// Karcher: least step.
    #[serde(default)]
    pub tol: f64,
    /// Model Stock: one t per row.
    #[serde(default)]
    pub filter_wise: bool,
}

fn yes() -> bool {
    true
}

fn tiny() -> f64 {
    1e-8
}

/// Which of the five.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Shape {
    Slerp,
    NuSlerp,
    MultiSlerp,
    Karcher,
    ModelStock,
}

/// The parameters with their method.
#[derive(Clone, Debug)]
pub(crate) struct GramMethod {
    /// Parameters.
    pub parameters: Gram,
    /// Which of the five.
    pub shape: Shape,
}

/// Coefficients of a tensor's groups, group after group; none where a tile finds its own.
struct Coefficients<R> {
    values: Vec<Factor<R>>,
}

impl Parameters for Gram {
    type Variant = Shape;

    fn check(&self, variant: Shape, inputs: usize) -> Result<()> {
        let (least, most) = match variant {
            Shape::Slerp | Shape::NuSlerp => (2, 2),
            Shape::ModelStock => (2, usize::MAX),
            Shape::MultiSlerp | Shape::Karcher => (1, usize::MAX),
        };
        check_count(&self.terms, least, most)?;
        let numbers = [self.t, self.eps, self.tol];
        if self.terms.is_empty() || self.base.is_some_and(|base| base != 0) || numbers.iter().any(|x| !x.is_finite()) {
            return Err(Error::new(Kind::Plan, format!("parameters out of range: {self:?}")));
        }
        check_terms(&self.terms, inputs)
    }

    fn method<R: Real>(&self, variant: Shape) -> Box<dyn Method<R>> {
        Box::new(GramMethod { parameters: self.clone(), shape: variant })
    }
}

impl GramMethod {
    fn pairs(&self) -> impl Iterator<Item = Pair> + Clone + '_ {
        self.parameters.terms.iter().map(|term| (term.model, term.reference))
    }

    fn groups(&self, shape: &[u64]) -> Groups {
        let p = &self.parameters;
        let along = match self.shape {
            Shape::NuSlerp if !p.flatten && p.row_wise => Along::Columns,
            Shape::NuSlerp if !p.flatten => Along::Rows,
            Shape::ModelStock if p.filter_wise => Along::Rows,
            _ => Along::Whole,
        };
        Groups::of(shape, along)
    }

    fn factors<R: Real>(&self, sums: &[f64], name: &str) -> Result<Vec<Factor<R>>> {
        let n = self.parameters.terms.len();
        let mut factors = Vec::with_capacity(sums.len() / pairs_of(n) * n);
        for group in sums.chunks(pairs_of(n)) {
            factors.extend(self.coefficients(&Products { n, values: group }, name)?.into_iter().map(Factor::new));
        }
        Ok(factors)
    }

    /// The weights of the terms in one group.
    fn coefficients(&self, products: &Products<'_>, name: &str) -> Result<Vec<f64>> {
        let p = &self.parameters;
        let weights: Vec<f64> = p.terms.iter().map(|term| term.weight).collect();
        Ok(match self.shape {
            Shape::Slerp => slerp(products, p.t),
            Shape::NuSlerp => nuslerp(products, weights[1] / (weights[0] + weights[1])),
            Shape::MultiSlerp => return multislerp(products, &weights, p.eps, name),
            Shape::Karcher => karcher(products, p.max_iter, p.tol),
            Shape::ModelStock => model_stock(products),
        })
    }
}

impl<R: Real> Method<R> for GramMethod {
    fn computes(&self) -> Computes {
        match self.shape {
            Shape::ModelStock => Computes::Step,
            _ if self.parameters.base.is_some() => Computes::Step,
            _ => Computes::Value,
        }
    }

    fn prepares(&self) -> bool {
        true
    }

    fn keeps(&self, shape: &[u64]) -> u64 {
        let groups = self.groups(shape);
        let kept = if groups.are_short() { 0 } else { groups.count };
        kept.saturating_mul((self.parameters.terms.len() * size_of::<Factor<R>>()) as u64)
    }

    fn prepare(&self, tensor: &Tensor<'_>, threads: Threads<'_>) -> Result<State> {
        let (groups, pairs): (Groups, Vec<Pair>) = (self.groups(tensor.shape), self.pairs().collect());
        let values = match groups.along {
            _ if groups.are_short() => Vec::new(),
            Along::Whole => self.factors::<R>(&groups::whole::<R>(tensor, threads, &pairs)?, tensor.name)?,
            Along::Rows => {
                self.factors::<R>(&groups::rows::<R>(tensor, threads, groups.length, &pairs)?, tensor.name)?
            }
            Along::Columns => {
                let finish = |sums: Vec<f64>| self.factors::<R>(&sums, tensor.name);
                groups::columns::<R, _>(tensor, threads, groups.count, &pairs, finish)?.concat()
            }
        };
        Ok(Box::new(Coefficients { values }))
    }

    fn tile(&self, tensor: &Tensor<'_>, state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<()> {
        let Some(found) = state.downcast_ref::<Coefficients<R>>() else {
            return Err(Error::new(Kind::Engine, "a tile before the look at its tensor"));
        };
        let (groups, mut own) = (self.groups(tensor.shape), None);
        let all = views(tile, self.pairs(), &mut own);
        let n = all.len();
        if groups.along == Along::Whole {
            for (k, (delta, c)) in all.iter().zip(&found.values).enumerate() {
                match k {
                    0 => scale(tile.level, delta, *c, out),
                    _ => add_scaled(tile.level, delta, *c, out),
                }
            }
            return Ok(());
        }
        let mut add_up = |range: std::ops::Range<usize>, first: u64, factors: &[Factor<R>]| {
            for e in range {
                let at = (groups.index(tile.first + e as u64) - first) as usize * n;
                let mut sum = R::ZERO;
                for (delta, c) in all.iter().zip(&factors[at..at + n]) {
                    sum += c.times(delta[e]);
                }
                out[e] = sum;
            }
        };
        if !groups.are_short() {
            add_up(0..tile.inputs[0].len(), 0, &found.values);
            return Ok(());
        }
        let pairs: Vec<Pair> = self.pairs().collect();
        for range in groups.runs(tile.first, tile.inputs[0].len()) {
            let (first, sums) = groups.sums::<R>(tensor, tile.first, &range, &pairs)?;
            add_up(range, first, &self.factors::<R>(&sums, tensor.name)?);
        }
        Ok(())
    }
}
