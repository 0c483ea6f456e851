//! Sensitivity-aware resolving (2606.18521), for the sparse differences that reinforcement learning leaves: where
//! several models changed an element, the one to which it matters most keeps its change; what each has then is trimmed
//! by magnitude and rescaled.

use serde::Deserialize;

use super::difference::{deltas, Loan};
use super::importance::{check_weighed, Weighed};
use super::method::{Computes, Method, Parameters, State};
use super::quantile::cut::{Cut, Each};
use super::quantile::select::largest_shares;
use super::trim::parameters::Rescale;
use crate::error::{Error, Kind, Result};
use crate::kernels::combine::{add_scaled, scale};
use crate::kernels::factor::Factor;
use crate::kernels::importance::{challenge, duel, keep_won, Best};
use crate::kernels::Real;
use crate::tensor::{Tensor, Tile};
use crate::threads::{lock, Threads};

/// Parameters of the operation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sar {
    /// The models with their maps, in order.
    pub terms: Vec<Weighed>,
    /// Up to this magnitude an element has not changed.
    #[serde(default)]
    pub epsilon: f64,
    /// How to rescale what is kept.
    #[serde(default)]
    pub rescale: Rescale,
    /// Final factor.
    #[serde(default = "one")]
    pub lambda: f64,
}

fn one() -> f64 {
    1.0
}

/// What the look at the whole tensor found out about one term.
#[derive(Clone, Copy)]
struct Found {
    cut: Cut,
    scale: f64,
}

impl Parameters for Sar {
    type Variant = ();

    fn check(&self, (): (), inputs: usize) -> Result<()> {
        if !(self.epsilon.is_finite() && self.epsilon >= 0.0 && self.lambda.is_finite()) {
            return Err(Error::new(Kind::Plan, format!("parameters out of range: {self:?}")));
        }
        check_weighed(&self.terms, inputs)
    }

    fn method<R: Real>(&self, (): ()) -> Box<dyn Method<R>> {
        Box::new(self.clone())
    }
}

impl Sar {
    /// What each model keeps of its difference after the arbitration.
    ///
    /// # Errors
    /// Something in a map is below zero.
    fn won<R: Real>(&self, tensor: &Tensor<'_>, tile: &Tile<'_, R>) -> Result<Loan<R>> {
        let mut all = deltas(tile, self.terms.iter().map(Weighed::pair));
        let epsilon = R::from_f64(self.epsilon);
        if let ([first, second], [one, other]) = (&self.terms[..], &mut all[..]) {
            let (mut own, mut others) = (None, None);
            let maps = (first.map(tile, &mut own), second.map(tile, &mut others));
            let negative = duel(tile.level, maps, epsilon, one, other);
            first.hold(tensor, tile, negative.0)?;
            second.hold(tensor, tile, negative.1)?;
            return Ok(all);
        }
        let (n, none) = (all[0].len(), R::from_f64(-1.0));
        let mut term = Loan::one(n, |out| out.fill(none));
        let mut importance = Loan::one(n, |out| out.fill(none));
        let mut size = Loan::one(n, |out| out.fill(R::ZERO));
        for (k, (each, delta)) in self.terms.iter().zip(all.iter()).enumerate() {
            let mut own = None;
            let map = each.importance(tensor, tile, &mut own)?;
            let mut best = Best { term: &mut term[0], importance: &mut importance[0], size: &mut size[0] };
            challenge(tile.level, delta, map, R::from_f64(k as f64), epsilon, &mut best);
        }
        for (k, delta) in all.iter_mut().enumerate() {
            keep_won(tile.level, &term[0], R::from_f64(k as f64), delta);
        }
        Ok(all)
    }

    fn trims(&self) -> bool {
        self.terms.iter().any(|term| term.density < 1.0)
    }
}

impl<R: Real> Method<R> for Sar {
    fn computes(&self) -> Computes {
        Computes::Step
    }

    fn factor(&self) -> f64 {
        self.lambda
    }

    fn prepares(&self) -> bool {
        self.trims()
    }

    fn prepare(&self, tensor: &Tensor<'_>, threads: Threads<'_>) -> Result<State> {
        let failed = std::sync::Mutex::new(None);
        let scores = |tile: &Tile<'_, R>, each: &mut Each<'_, R>| match self.won(tensor, tile) {
            Ok(all) => all.iter().enumerate().for_each(|(kind, delta)| each(kind, delta, None)),
            Err(error) => {
                lock(&failed).get_or_insert(error);
                // what is found is thrown away, and something has to be
                self.terms.iter().enumerate().for_each(|(kind, term)| each(kind, tile.input(term.model), None));
            }
        };
        let shares: Vec<f64> = self.terms.iter().map(|term| term.density).collect();
        let answers = largest_shares(tensor, threads, &shares, self.rescale == Rescale::L1, &scores)?;
        let found = answers.iter().zip(&shares).map(|(answer, share)| {
            let scale = match self.rescale {
                Rescale::Expectation if *share > 0.0 => 1.0 / share,
                Rescale::L1 if answer.norms.1 > 0.0 => answer.norms.0 / answer.norms.1,
                _ => 1.0,
            };
            Found { cut: answer.cut, scale }
        });
        let found: Vec<Found> = found.collect();
        let failed = lock(&failed).take();
        failed.map_or_else(|| Ok(Box::new(found) as State), Err)
    }

    fn tile(&self, tensor: &Tensor<'_>, state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<()> {
        let mut all = self.won(tensor, tile)?;
        let found = state.downcast_ref::<Vec<Found>>();
        for (k, (term, delta)) in self.terms.iter().zip(all.iter_mut()).enumerate() {
            let mut factor = term.weight;
            if let Some(found) = found.and_then(|found| found.get(k)) {
                keep(&found.cut, tile, delta);
                factor *= found.scale;
            }
            match k {
                0 => scale(tile.level, delta, Factor::new(factor), out),
                _ => add_scaled(tile.level, delta, Factor::new(factor), out),
            }
        }
        Ok(())
    }
}

/// Sets to zero what the cut does not keep of a tile's difference.
fn keep<R: Real>(cut: &Cut, tile: &Tile<'_, R>, delta: &mut [R]) {
    let sizes = Loan::one(delta.len(), |out| out.iter_mut().zip(&*delta).for_each(|(out, x)| *out = x.abs()));
    cut.keep_by(tile.level, tile.first, &sizes[0], delta);
}
