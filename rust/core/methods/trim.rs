//! Methods that drop elements of each difference before they add them up: TIES (2306.01708), DARE (2311.03099), DELLA
//! (2406.11617), Breadcrumbs (2312.06795), and the dataless Localize-and-stitch (2408.13656).
//!
//! Each is a way to drop (by magnitude, at random, at random by rank, both pairs), a way to rescale what is left, and a
//! way to add up (a sum, a sum of those that agree with an elected sign, a mean of those that are left).

use super::difference::Loan;
use super::quantile::cut::Each;
use super::quantile::select::largest;
use crate::error::Result;
use crate::kernels::factor::Factor;
use crate::kernels::masked::Masked;
use crate::kernels::masked_sum::{add_up, Sum};
use crate::kernels::Real;
use crate::methods::method::{Computes, Method, State};
use crate::tensor::{Tensor, Tile};
use crate::threads::Threads;

mod by_rank;
mod coin;
mod dropped;
mod mask;
pub(crate) mod parameters;
mod ranks;

use dropped::{measure, Found, Words, WORDS};
use parameters::{Drop, Rescale, TrimMethod};

impl<R: Real> Method<R> for TrimMethod {
    fn computes(&self) -> Computes {
        Computes::Step
    }

    fn factor(&self) -> f64 {
        self.parameters.lambda
    }

    fn prepares(&self) -> bool {
        let rescale = self.parameters.rescale;
        let looks = rescale == Rescale::L1 || self.cuts() || self.drop == Drop::Ranked && rescale == Rescale::None;
        looks && self.parameters.terms.iter().any(|term| !term.is_whole())
    }

    fn prepare(&self, tensor: &Tensor<'_>, threads: Threads<'_>) -> Result<State> {
        let terms = &self.parameters.terms;
        let mut found: Vec<Found> = terms.iter().map(|term| Found::nothing(tensor, term)).collect();
        if self.cuts() {
            let counts: Vec<Vec<u64>> = terms.iter().map(|term| self.counts(term, tensor.elements)).collect();
            let scores = |tile: &Tile<'_, R>, each: &mut Each<'_, R>| {
                for (kind, (model, reference)) in self.pairs().enumerate() {
                    each(kind, tile.input(model), reference.map(|reference| tile.input(reference)));
                }
            };
            for (found, cuts) in found.iter_mut().zip(largest(tensor, threads, &counts, &scores)?) {
                found.cut(&cuts);
            }
        }
        measure::<R>(self, tensor, threads, &mut found)?;
        Ok(Box::new(found))
    }

    fn tile(&self, tensor: &Tensor<'_>, state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<()> {
        let terms = &self.parameters.terms;
        let made: Vec<Found>;
        let found = match state.downcast_ref::<Vec<Found>>() {
            Some(found) => found,
            None => {
                made = terms.iter().map(|term| Found::nothing(tensor, term)).collect();
                &made
            }
        };
        let (mut few, mut many): ([Words; 4], Vec<Words>);
        let words = if terms.len() <= 4 {
            few = [[0; WORDS]; 4];
            &mut few[..terms.len()]
        } else {
            many = vec![[0; WORDS]; terms.len()];
            &mut many[..]
        };
        // What is not only dropped but changed one by one needs room.
        let mut changed: Vec<Option<Loan<R>>> = Vec::new();
        if self.drop == Drop::Ranked {
            for (index, found) in found.iter().enumerate() {
                changed.push(found.changed(self, tensor, tile, index)?);
            }
        }
        let mut kept: Vec<Masked<'_, R>> = Vec::with_capacity(terms.len());
        for (index, ((term, found), words)) in terms.iter().zip(found).zip(words).enumerate() {
            let one = match changed.get(index).and_then(Option::as_ref) {
                Some(changed) => {
                    *words = [u64::MAX; WORDS];
                    Masked::whole(&changed[0], None, words)
                }
                None => found.kept(self, tile, index, words),
            };
            let expected = self.parameters.rescale == Rescale::Expectation && self.drop == Drop::Random && term.draws();
            let scale = if expected { 1.0 / term.density } else { found.scale };
            let (factor, weight) = (Factor::new(term.weight * scale), R::from_f64(term.weight));
            kept.push(Masked { factor, weight, ..one });
        }
        let sum = match self.sum {
            Sum::Elected if self.parameters.normalize => Sum::ElectedMean,
            sum => sum,
        };
        add_up(tile.level, &kept, sum, out);
        Ok(())
    }
}
