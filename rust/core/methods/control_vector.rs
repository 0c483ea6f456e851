//! Controls for a transfer: a random vector of the same norm, and the vector's own elements in another order. What the
//! vector carries, these must not.

use serde::Deserialize;

use super::difference::{cached, deltas, read_deltas, Pair};
use super::method::{Computes, Method, Parameters, State};
use crate::error::{Error, Kind, Result};
use crate::kernels::normal::normal;
use crate::kernels::philox::{fill, Stream};
use crate::kernels::stats::dot;
use crate::kernels::Real;
use crate::tensor::{Tensor, Tile};
use crate::threads::Threads;

/// The vector that the control is made of.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ControlTerm {
    /// Position of the donor, or of the vector.
    pub model: usize,
    /// Position of the reference.
    pub reference: Option<usize>,
    /// Factor.
    pub weight: f64,
    /// Which random numbers it draws.
    #[serde(default)]
    pub stream: u64,
}

/// Parameters of both.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ControlVector {
    /// One vector.
    pub terms: Vec<ControlTerm>,
    /// Final factor.
    #[serde(default = "one")]
    pub lambda: f64,
}

fn one() -> f64 {
    1.0
}

/// How a control is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// Of Gaussian draws.
    Drawn,
    /// Of the vector's own elements in another order.
    Permuted,
}

/// The parameters with their kind.
#[derive(Clone, Debug)]
pub(crate) struct ControlMethod {
    /// Parameters.
    pub parameters: ControlVector,
    /// How it is made.
    pub made: Made,
}

/// Elements that are shuffled together, and elements that stay neighbours until then: a group is made of blocks from
/// all over the tensor.
const GROUP: u64 = 1 << 16;
const BLOCK: u64 = 1 << 10;

impl Parameters for ControlVector {
    type Variant = Made;

    fn check(&self, _variant: Made, inputs: usize) -> Result<()> {
        match self.terms[..] {
            [term] if term.model < inputs && term.reference.is_none_or(|r| r < inputs) && term.weight.is_finite() => {
                Ok(())
            }
            _ => Err(Error::new(Kind::Plan, "a control is made of one vector")),
        }
    }

    fn method<R: Real>(&self, variant: Made) -> Box<dyn Method<R>> {
        Box::new(ControlMethod { parameters: self.clone(), made: variant })
    }
}

impl ControlMethod {
    fn pairs(&self) -> Pair {
        (self.parameters.terms[0].model, self.parameters.terms[0].reference)
    }

    fn stream(&self, tensor: &Tensor<'_>, purpose: &str) -> Stream {
        Stream::new(tensor.seed, &format!("{purpose} {}", self.parameters.terms[0].stream), tensor.name)
    }

    fn gaussian<R: Real>(&self, tensor: &Tensor<'_>, tile: &Tile<'_, R>, out: &mut [R]) {
        let mut draws = vec![0; out.len()];
        fill(tile.level, &self.stream(tensor, "gaussian"), tile.first, &mut draws);
        for (slot, draw) in out.iter_mut().zip(draws) {
            *slot = R::from_f64(normal(draw));
        }
    }

    /// The elements of one group in their new order.
    fn group<R: Real>(&self, tensor: &Tensor<'_>, group: u64) -> Result<Vec<f64>> {
        let blocks = tensor.elements.div_ceil(BLOCK);
        // The last block may be short, so it keeps its place among the blocks; within its group it is shuffled too.
        let whole = tensor.elements / BLOCK;
        let places = Permutation::new(&self.stream(tensor, "permute blocks"), tensor, whole);
        let mut values = Vec::with_capacity(GROUP as usize);
        for block in group * (GROUP / BLOCK)..((group + 1) * (GROUP / BLOCK)).min(blocks) {
            let from = if block < whole { places.at(block) } else { block };
            let range = from * BLOCK..((from + 1) * BLOCK).min(tensor.elements);
            values.extend(read_deltas::<R>(tensor, range, self.pairs())?.into_iter().map(Real::to_f64));
        }
        let mut draws = vec![0; values.len()];
        fill(tensor.level, &self.stream(tensor, "permute elements"), group * GROUP, &mut draws);
        for i in (1..values.len()).rev() {
            let j = (u64::from(draws[i]) * (i as u64 + 1)) >> 32;
            values.swap(i, j as usize);
        }
        Ok(values)
    }
}

/// A permutation of 0..n without a table: a Feistel network on the next even number of bits, walked until it lands
/// inside.
struct Permutation {
    keys: [u32; 6],
    half: u32,
    n: u64,
}

impl Permutation {
    fn new(stream: &Stream, tensor: &Tensor<'_>, n: u64) -> Self {
        let mut keys = [0; 6];
        fill(tensor.level, stream, 0, &mut keys);
        let bits = 64 - n.max(2).saturating_sub(1).leading_zeros();
        Permutation { keys, half: bits.div_ceil(2), n }
    }

    fn at(&self, index: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let mut x = index;
        loop {
            let (mut left, mut right) = (x >> self.half, x & mask);
            for key in self.keys {
                let mut mixed = (right ^ u64::from(key)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                mixed ^= mixed >> 29;
                mixed = mixed.wrapping_mul(0xBF58_476D_1CE4_E5B9);
                (left, right) = (right, left ^ ((mixed >> 32) & mask));
            }
            x = left << self.half | right;
            if x < self.n {
                return x;
            }
        }
    }
}

impl<R: Real> Method<R> for ControlMethod {
    fn computes(&self) -> Computes {
        Computes::Step
    }

    fn factor(&self) -> f64 {
        self.parameters.lambda * self.parameters.terms[0].weight
    }

    fn prepares(&self) -> bool {
        self.made == Made::Drawn
    }

    fn prepare(&self, tensor: &Tensor<'_>, threads: Threads<'_>) -> Result<State> {
        let chunks = tensor.fold::<R, (f64, f64), _, _>(
            threads,
            |_| (0.0, 0.0),
            |sums, tile| {
                let delta = &deltas(tile, std::iter::once(self.pairs()))[0];
                sums.0 += dot(tile.level, delta, delta);
                let mut drawn = vec![R::ZERO; delta.len()];
                self.gaussian(tensor, tile, &mut drawn);
                sums.1 += dot(tile.level, &drawn, &drawn);
            },
        )?;
        let (vector, drawn) = chunks.iter().fold((0.0, 0.0), |(v, d), sums| (v + sums.0, d + sums.1));
        Ok(Box::new(if drawn > 0.0 { (vector / drawn).sqrt() } else { 0.0 }))
    }

    fn tile(&self, tensor: &Tensor<'_>, state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<()> {
        if self.made == Made::Drawn {
            let scale = R::from_f64(state.downcast_ref::<f64>().copied().unwrap_or(0.0));
            self.gaussian(tensor, tile, out);
            out.iter_mut().for_each(|x| *x = *x * scale);
            return Ok(());
        }
        let mut done = 0;
        while done < out.len() {
            let element = tile.first + done as u64;
            let (group, at) = (element / GROUP, (element % GROUP) as usize);
            let take = (out.len() - done).min(GROUP as usize - at);
            let slots = &mut out[done..done + take];
            cached(
                (tensor.id, 0, 1, group),
                || self.group::<R>(tensor, group),
                |values| {
                    slots.iter_mut().zip(&values[at..]).for_each(|(slot, value)| *slot = R::from_f64(*value));
                },
            )?;
            done += take;
        }
        Ok(())
    }
}
