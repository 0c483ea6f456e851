//! target + α·λ·Σ w·(model − reference): Ilharco et al., "Editing models with task arithmetic" (2212.04089); the
//! transfer of a reasoning vector (2509.01363) is the case of one term.

use serde::Deserialize;

use super::difference::weighted_sum;
use super::method::{check_terms, Computes, Method, Parameters, State, Term};
use crate::error::Result;
use crate::kernels::factor::holds;
use crate::kernels::Real;
use crate::tensor::{Tensor, Tile};

/// Parameters of the operation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TaskArithmetic {
    /// What is added, in input order.
    pub terms: Vec<Term>,
    /// Final factor.
    #[serde(default = "one")]
    pub lambda: f64,
}

fn one() -> f64 {
    1.0
}

impl Parameters for TaskArithmetic {
    type Variant = ();

    fn check(&self, (): (), inputs: usize) -> Result<()> {
        check_terms(&self.terms, inputs)
    }

    fn is_single(&self, (): &()) -> bool {
        self.terms.iter().all(|term| holds::<f32>(term.weight))
    }

    fn method<R: Real>(&self, (): ()) -> Box<dyn Method<R>> {
        Box::new(self.clone())
    }
}

impl<R: Real> Method<R> for TaskArithmetic {
    fn computes(&self) -> Computes {
        Computes::Step
    }

    fn factor(&self) -> f64 {
        self.lambda
    }

    fn sum_of(&self) -> Option<&[Term]> {
        Some(&self.terms)
    }

    fn tile(&self, _tensor: &Tensor<'_>, _state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<()> {
        weighted_sum(tile, &self.terms, out);
        Ok(())
    }
}
