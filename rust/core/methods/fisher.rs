//! Σ w·F·model over Σ w·F, element by element: Matena and Raffel, "Merging models with Fisher-weighted averaging"
//! (2111.09832).
//!
//! Always in f64: importance is a mean of squared gradients, and its products with weights leave the range of f32.

use serde::Deserialize;

use super::difference::Loan;
use super::importance::{check_weighed, Weighed};
use super::method::{Computes, Method, Parameters, State};
use crate::error::Result;
use crate::kernels::combine::{add_scaled, scale};
use crate::kernels::factor::Factor;
use crate::kernels::importance::{count_zero, divide, fill_zero, weigh};
use crate::kernels::Real;
use crate::tensor::{Tensor, Tile};

/// Parameters of the operation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fisher {
    /// Whole models with their maps.
    pub terms: Vec<Weighed>,
}

impl Parameters for Fisher {
    type Variant = ();

    fn check(&self, (): (), inputs: usize) -> Result<()> {
        check_weighed(&self.terms, inputs)
    }

    fn is_single(&self, (): &()) -> bool {
        false
    }

    fn method<R: Real>(&self, (): ()) -> Box<dyn Method<R>> {
        Box::new(self.clone())
    }
}

impl Fisher {
    /// The mean by the weights alone.
    fn mean<R: Real>(&self, tile: &Tile<'_, R>, out: &mut [R]) {
        let total: f64 = self.terms.iter().map(|term| term.weight).sum();
        for (k, term) in self.terms.iter().enumerate() {
            let share = Factor::new(term.weight / total);
            match k {
                0 => scale(tile.level, tile.input(term.model), share, out),
                _ => add_scaled(tile.level, tile.input(term.model), share, out),
            }
        }
    }
}

impl<R: Real> Method<R> for Fisher {
    fn computes(&self) -> Computes {
        Computes::Value
    }

    fn unweighted(&self, tile: &Tile<'_, R>) -> u64 {
        let n = tile.input(self.terms[0].model).len();
        let weighs = |term: &&Weighed| term.weight != 0.0 && term.default_importance != Some(0.0);
        let mut maps = Vec::with_capacity(self.terms.len());
        for term in self.terms.iter().filter(weighs) {
            match term.importance.map(|index| tile.input(index)) {
                // one map without zeros weighs everything
                Some(map) if count_zero(tile.level, map) > 0 => maps.push(map),
                _ => return 0,
            }
        }
        let total = Loan::one(n, |out| {
            out.fill(R::ZERO);
            maps.iter().for_each(|map| add_scaled(tile.level, map, Factor::one(), out));
        });
        count_zero(tile.level, &total[0])
    }

    fn tile(&self, tensor: &Tensor<'_>, _state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<()> {
        let mut total = Loan::one(out.len(), |_| ());
        for (k, term) in self.terms.iter().enumerate() {
            let (mut own, weight) = (None, R::from_f64(term.weight));
            let map = term.map(tile, &mut own);
            let is_negative = weigh(tile.level, tile.input(term.model), map, weight, k == 0, out, &mut total[0]);
            term.hold(tensor, tile, is_negative)?;
        }
        if divide(tile.level, &total[0], out) > 0 {
            let mean = Loan::one(out.len(), |mean| self.mean(tile, mean));
            fill_zero(tile.level, &total[0], &mean[0], out);
        }
        Ok(())
    }
}
