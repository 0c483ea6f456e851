//! target + α·λ·Σ w·(model − reference): Ilharco et al., "Editing models with task arithmetic" (2212.04089); the
//! transfer of a reasoning vector (2509.01363) is the case of one term.

use serde::Deserialize;

use crate::error::Result;
use crate::kernels::combine::{add_scaled, scale, subtract};
use crate::kernels::Real;
use crate::op::{Computes, Method, State, Term, Tile};
use crate::tensor::Tensor;

/// Parameters of the operation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskArithmetic {
    /// What is added, in input order.
    pub terms: Vec<Term>,
    /// Final factor.
    #[serde(default = "one")]
    pub lambda: f64,
}

fn one() -> f64 {
    1.0
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

    fn tile(&self, tensor: &Tensor<'_>, _state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<bool> {
        let mut exact = true;
        let mut difference = [R::ZERO; crate::kernels::TILE];
        let n = out.len();
        if self.terms.is_empty() {
            out.fill(R::ZERO);
        }
        for (k, term) in self.terms.iter().enumerate() {
            let (model, weight) = (tile.input(term.model), R::from_f64(term.weight));
            let single = k == 0 && term.weight == 1.0;
            let delta: &[R] = match term.reference {
                Some(reference) if single => {
                    exact &= subtract(tile.level, model, tile.input(reference), out);
                    continue;
                }
                Some(reference) => {
                    exact &= subtract(tile.level, model, tile.input(reference), &mut difference[..n]);
                    &difference[..n]
                }
                None => {
                    exact &= !(R::IS_F32 && tensor.inputs[term.model].is_wider_than_f32());
                    model
                }
            };
            if k == 0 {
                scale(tile.level, delta, weight, out);
            } else {
                add_scaled(tile.level, delta, weight, out);
            }
        }
        Ok(exact)
    }
}
