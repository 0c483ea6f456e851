//! Σ w·model, divided by Σ w if normalised: Wortsman et al., "Model soups" (2203.05482).

use serde::Deserialize;

use super::method::{check_count, check_terms, Computes, Method, Parameters, State, Term};
use crate::error::Result;
use crate::kernels::combine::{add_scaled, scale};
use crate::kernels::factor::{holds, Factor};
use crate::kernels::Real;
use crate::tensor::{Tensor, Tile};

/// Parameters of the operation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Linear {
    /// Inputs and weights; references do not occur.
    pub terms: Vec<Term>,
    /// Divide by the sum of the weights.
    #[serde(default)]
    pub normalize: bool,
}

impl Linear {
    /// The terms, their weights divided as asked.
    fn weighted(&self) -> impl Iterator<Item = Term> + '_ {
        let total: f64 = if self.normalize { self.terms.iter().map(|term| term.weight).sum() } else { 1.0 };
        self.terms.iter().map(move |term| Term { weight: term.weight / total, ..*term })
    }
}

/// The terms, their weights as they are applied.
struct Sum(Vec<Term>);

impl Parameters for Linear {
    type Variant = ();

    fn check(&self, (): (), inputs: usize) -> Result<()> {
        check_count(&self.terms, 1, usize::MAX)?;
        check_terms(&self.terms, inputs)
    }

    fn is_single(&self, (): &()) -> bool {
        self.weighted().all(|term| holds::<f32>(term.weight))
    }

    fn method<R: Real>(&self, (): ()) -> Box<dyn Method<R>> {
        Box::new(Sum(self.weighted().collect()))
    }
}

impl<R: Real> Method<R> for Sum {
    fn computes(&self) -> Computes {
        Computes::Value
    }

    fn tile(&self, _tensor: &Tensor<'_>, _state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<()> {
        for (k, term) in self.0.iter().enumerate() {
            let weight = Factor::new(term.weight);
            if k == 0 {
                scale(tile.level, tile.input(term.model), weight, out);
            } else {
                add_scaled(tile.level, tile.input(term.model), weight, out);
            }
        }
        Ok(())
    }

    fn value_of(&self) -> Option<&[Term]> {
        Some(&self.0)
    }
}
