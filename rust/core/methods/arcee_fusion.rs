//! Arcee Fusion: the changes of one model that matter most, by magnitude times the divergence of the row's softmax.
//! The quantiles of importance are exact.

use serde::Deserialize;

use super::difference::{deltas, rows, Loan, Pair};
use super::method::{check_count, check_terms, Computes, Method, Parameters, State, Term};
use super::quantile::cut::Each;
use super::quantile::select::largest;
use crate::error::{Error, Kind, Result};
use crate::kernels::Real;
use crate::tensor::{Tensor, Tile};
use crate::threads::Threads;

/// Parameters of the operation: one model against the base.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ArceeFusion {
    /// The model.
    pub terms: Vec<Term>,
}

/// Divergence of every row, and the importance from which on changes are taken.
struct Found {
    length: u64,
    divergence: Vec<f64>,
    threshold: f64,
}

const EPSILON: f64 = 1e-8;

/// Largest value, and Σ exp(x − largest).
fn softmax<R: Real>(row: &[R]) -> (f64, f64) {
    let most = row.iter().fold(f64::NEG_INFINITY, |most, x| most.max(x.to_f64()));
    (most, row.iter().map(|x| libm::exp(x.to_f64() - most)).sum())
}

/// Σ p·ln(p/q) of the softmax of two rows.
fn divergence<R: Real>(model: &[R], base: &[R]) -> f64 {
    let ((high, sum), (base_high, base_sum)) = (softmax(model), softmax(base));
    let each = |(x, y): (&R, &R)| {
        let p = libm::exp(x.to_f64() - high) / sum + EPSILON;
        let q = libm::exp(y.to_f64() - base_high) / base_sum + EPSILON;
        p * libm::log(p / q)
    };
    model.iter().zip(base).map(each).sum()
}

impl ArceeFusion {
    fn pairs(&self) -> impl Iterator<Item = Pair> + '_ {
        self.terms.iter().map(|term| (term.model, term.reference))
    }

    /// |δ| times the row's divergence.
    fn importance<R: Real>(&self, tile: &Tile<'_, R>, length: u64, rows: &[f64]) -> Loan<R> {
        let mut scores = deltas(tile, self.pairs());
        for (e, x) in scores[0].iter_mut().enumerate() {
            let row = (tile.first + e as u64) / length;
            *x = R::from_f64(x.to_f64().abs() * rows[row as usize].max(0.0));
        }
        scores
    }
}

impl Parameters for ArceeFusion {
    type Variant = ();

    fn check(&self, (): (), inputs: usize) -> Result<()> {
        check_count(&self.terms, 1, 1)?;
        check_terms(&self.terms, inputs)
    }

    fn method<R: Real>(&self, (): ()) -> Box<dyn Method<R>> {
        Box::new(self.clone())
    }
}

impl<R: Real> Method<R> for ArceeFusion {
    fn computes(&self) -> Computes {
        Computes::Step
    }

    fn prepares(&self) -> bool {
        true
    }

    fn prepare(&self, tensor: &Tensor<'_>, threads: Threads<'_>) -> Result<State> {
        let length = rows(tensor.shape).1.max(1);
        let model = self.terms[0].model;
        let divergence =
            tensor.rows::<R, f64, _>(threads, length, |_, inputs| divergence(&inputs[model], &inputs[0]))?;
        let n = tensor.elements;
        // The element at place ⌊q·(n − 1)⌋ in ascending order is the last of the n − ⌊q·(n − 1)⌋ largest.
        let count = |q: f64| n - (q * (n - 1) as f64) as u64;
        let counts = vec![vec![count(0.25), count(0.5), count(0.75)]];
        let scores = |tile: &Tile<'_, R>, each: &mut Each<'_, R>| {
            each(0, &self.importance(tile, length, &divergence)[0], None);
        };
        let mut cuts = largest(tensor, threads, &counts, &scores)?.swap_remove(0);
        if cuts[0].threshold < 0.0 {
            // All are kept: the threshold is the smallest, which one element less than all also finds, or zero.
            cuts[0].threshold = 0.0;
        }
        let threshold = cuts[1].threshold + 1.5 * (cuts[2].threshold - cuts[0].threshold);
        Ok(Box::new(Found { length, divergence, threshold }))
    }

    fn tile(&self, _tensor: &Tensor<'_>, state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<()> {
        let Some(found) = state.downcast_ref::<Found>() else {
            return Err(Error::new(Kind::Engine, "a tile before the look at its tensor"));
        };
        let scores = self.importance(tile, found.length, &found.divergence);
        let delta = deltas(tile, self.pairs());
        let threshold = R::from_f64(found.threshold);
        for ((slot, score), delta) in out.iter_mut().zip(&scores[0]).zip(&delta[0]) {
            *slot = if *score >= threshold { *delta } else { R::ZERO };
        }
        Ok(())
    }
}
