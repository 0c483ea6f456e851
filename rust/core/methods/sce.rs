//! SCE of FuseChat (2408.07990): select positions by variance, weigh models by their mean square there, erase minority
//! signs.

use serde::Deserialize;

use super::difference::{deltas, Loan, Pair};
use super::method::{check_count, check_terms, Computes, Method, Parameters, State, Term};
use super::quantile::cut::{Cut, Each};
use super::quantile::select::largest_shares;
use crate::error::Result;
use crate::kernels::elementwise::{elect_unweighted, variance};
use crate::kernels::stats::dot;
use crate::kernels::{Level, Real};
use crate::tensor::{Tensor, Tile};
use crate::threads::Threads;

/// Parameters of the operation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sce {
    /// The models, in order.
    pub terms: Vec<Term>,
    /// Share of the positions of non-zero variance that is kept.
    pub select_topk: f64,
}

/// What the look at the whole tensor found.
struct Found {
    cut: Cut,
    weights: Vec<f64>,
}

impl Sce {
    fn pairs(&self) -> impl Iterator<Item = Pair> + '_ {
        self.terms.iter().map(|term| (term.model, term.reference))
    }

    fn selects(&self) -> bool {
        self.select_topk < 1.0
    }
}

/// The variance across models of every element, over their number.
fn variances<R: Real>(level: Level, all: &[Vec<R>]) -> Loan<R> {
    let slices: Vec<&[R]> = all.iter().map(Vec::as_slice).collect();
    Loan::one(slices.first().map_or(0, |slice| slice.len()), |out| variance(level, &slices, out))
}

/// Sets everything that the cut does not keep to zero.
fn select<R: Real>(cut: &Cut, tile: &Tile<'_, R>, all: &mut [Vec<R>]) {
    let scores = variances(tile.level, all);
    all.iter_mut().for_each(|delta| cut.keep_by(tile.level, tile.first, &scores[0], delta));
}

impl Parameters for Sce {
    type Variant = ();

    fn check(&self, (): (), inputs: usize) -> Result<()> {
        check_count(&self.terms, 1, usize::MAX)?;
        check_terms(&self.terms, inputs)
    }

    fn method<R: Real>(&self, (): ()) -> Box<dyn Method<R>> {
        Box::new(self.clone())
    }
}

impl<R: Real> Method<R> for Sce {
    fn computes(&self) -> Computes {
        Computes::Step
    }

    fn prepares(&self) -> bool {
        true
    }

    fn prepare(&self, tensor: &Tensor<'_>, threads: Threads<'_>) -> Result<State> {
        let mut cut = Cut::ALL;
        if self.selects() {
            let scores = |tile: &Tile<'_, R>, each: &mut Each<'_, R>| {
                each(0, &variances(tile.level, &deltas(tile, self.pairs()))[0], None);
            };
            cut = largest_shares(tensor, threads, &[self.select_topk], false, &scores)?[0].cut;
        }
        let n = self.terms.len();
        let chunks = tensor.fold::<R, Vec<f64>, _, _>(
            threads,
            |_| vec![0.0; n],
            |sums, tile| {
                let mut all = deltas(tile, self.pairs());
                if self.selects() {
                    select(&cut, tile, &mut all);
                }
                sums.iter_mut().zip(all.iter()).for_each(|(sum, delta)| *sum += dot(tile.level, delta, delta));
            },
        )?;
        let squares: Vec<f64> =
            (0..n).map(|i| chunks.iter().map(|sums| sums[i]).sum::<f64>() / tensor.elements.max(1) as f64).collect();
        let total: f64 = squares.iter().sum();
        // As small as that, mergekit weighs all models alike.
        let weights =
            if total.abs() < 1e-6 { vec![1.0 / n as f64; n] } else { squares.iter().map(|s| s / total).collect() };
        Ok(Box::new(Found { cut, weights }))
    }

    fn tile(&self, _tensor: &Tensor<'_>, state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<()> {
        let mut all = deltas(tile, self.pairs());
        let whole = Found { cut: Cut::ALL, weights: vec![0.0; all.len()] };
        let found = state.downcast_ref::<Found>().unwrap_or(&whole);
        if self.selects() {
            select(&found.cut, tile, &mut all);
        }
        let weights: Vec<R> = found.weights.iter().map(|w| R::from_f64(*w)).collect();
        let slices: Vec<&[R]> = all.iter().map(Vec::as_slice).collect();
        elect_unweighted(tile.level, &slices, &weights, R::from_f64(1e-6), out);
        Ok(())
    }
}
