//! A model with Gaussian noise on its weights, times a factor: w·(x + σ·n). Experts of a mixture that begin as copies
//! of one model are told apart by it.

use serde::Deserialize;

use super::method::{check_count, check_terms, Computes, Method, Parameters, State, Term};
use crate::error::{Error, Kind, Result};
use crate::kernels::normal::normal;
use crate::kernels::philox::{fill, Stream};
use crate::kernels::Real;
use crate::tensor::{Tensor, Tile};

/// Parameters of the operation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Noised {
    /// The model and the factor; no reference.
    pub terms: Vec<Term>,
    /// Standard deviation of the noise, in units of the weights.
    pub deviation: f64,
}

impl Parameters for Noised {
    type Variant = ();

    fn check(&self, (): (), inputs: usize) -> Result<()> {
        check_count(&self.terms, 1, 1)?;
        if !self.deviation.is_finite() {
            return Err(Error::new(Kind::Plan, format!("deviation {}", self.deviation)));
        }
        check_terms(&self.terms, inputs)
    }

    fn is_single(&self, (): &()) -> bool {
        false // the sum is rounded once, in the type of the output
    }

    fn method<R: Real>(&self, (): ()) -> Box<dyn Method<R>> {
        Box::new(self.clone())
    }
}

impl<R: Real> Method<R> for Noised {
    fn computes(&self) -> Computes {
        Computes::Value
    }

    /// The draws follow from the seed and the name of the output tensor: every expert has its own.
    fn tile(&self, tensor: &Tensor<'_>, _state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<()> {
        let mut draws = vec![0; out.len()];
        fill(tile.level, &Stream::new(tensor.seed, "noise", tensor.name), tile.first, &mut draws);
        let (term, deviation) = (self.terms[0], R::from_f64(self.deviation));
        let weight = R::from_f64(term.weight);
        for ((slot, x), draw) in out.iter_mut().zip(tile.input(term.model)).zip(draws) {
            *slot = (*x + deviation * R::from_f64(normal(draw))) * weight;
        }
        Ok(())
    }
}
