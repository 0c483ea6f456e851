//! Methods whose result is a weighted sum of whole tensors, with weights that depend on their norms and angles: SLERP,
//! NuSLERP, Multi-SLERP, the Karcher mean and Model Stock (2403.19522).
//!
//! All of them live in the span of their inputs, so one pass that takes the inner products of every pair is all they
//! need: the rest, iterations included, happens on the coefficients.

use serde::Deserialize;

use super::difference::{deltas, rows, views, Pair};
use super::method::{check_count, check_terms, Computes, Method, Parameters, State, Term};
use crate::error::{Error, Kind, Result};
use crate::kernels::combine::{add_scaled, scale};
use crate::kernels::factor::Factor;
use crate::kernels::stats::add_pairs;
use crate::kernels::Real;
use crate::tensor::{Tensor, Tile};
use crate::threads::Threads;

/// Parameters of all five; each uses its own.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Gram {
    /// The models, in order.
    pub terms: Vec<Term>,
    /// Position of the base, if the result is a step from it.
    #[serde(default)]
    pub base: Option<usize>,
    /// SLERP: 0 is the first, 1 the second.
    #[serde(default)]
    pub t: f64,
    /// NuSLERP: the tensor as one vector.
    #[serde(default = "yes")]
    pub flatten: bool,
    /// NuSLERP, not flattened: along the first dimension.
    #[serde(default)]
    pub row_wise: bool,
    /// Multi-SLERP: keeps divisions finite.
    #[serde(default = "tiny")]
    pub eps: f64,
    /// Karcher: most iterations.
    #[serde(default)]
    pub max_iter: u32,
    /// Karcher: least step.
    #[serde(default)]
    pub tol: f64,
    /// Model Stock: one t per row.
    #[serde(default)]
    pub filter_wise: bool,
}

fn yes() -> bool {
    true
}

fn tiny() -> f64 {
    1e-8
}

/// Which of the five.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Shape {
    Slerp,
    NuSlerp,
    MultiSlerp,
    Karcher,
    ModelStock,
}

/// The parameters with their method.
#[derive(Clone, Debug)]
pub(crate) struct GramMethod {
    /// Parameters.
    pub parameters: Gram,
    /// Which of the five.
    pub shape: Shape,
}

/// What is one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Groups {
    Whole,
    Rows,
    Columns,
}

/// Coefficients per group, group after group.
struct Coefficients {
    groups: Groups,
    length: u64,
    values: Vec<f64>,
}

/// Inner products of n vectors; symmetric.
struct Products<'a> {
    n: usize,
    values: &'a [f64],
}

impl Products<'_> {
    fn at(&self, i: usize, j: usize) -> f64 {
        let (i, j) = (i.min(j), i.max(j));
        self.values[i * self.n - i * (i + 1) / 2 + j]
    }

    fn norm(&self, i: usize) -> f64 {
        self.at(i, i).sqrt()
    }

    /// Inner product of two combinations.
    fn between(&self, a: &[f64], b: &[f64]) -> f64 {
        let mut sum = 0.0;
        for (i, x) in a.iter().enumerate() {
            for (j, y) in b.iter().enumerate() {
                sum += x * y * self.at(i, j);
            }
        }
        sum
    }
}

impl Parameters for Gram {
    type Variant = Shape;

    fn check(&self, variant: Shape, inputs: usize) -> Result<()> {
        let (least, most) = match variant {
            Shape::Slerp | Shape::NuSlerp => (2, 2),
            Shape::ModelStock => (2, usize::MAX),
            Shape::MultiSlerp | Shape::Karcher => (1, usize::MAX),
        };
        check_count(&self.terms, least, most)?;
        let numbers = [self.t, self.eps, self.tol];
        if self.terms.is_empty() || self.base.is_some_and(|base| base != 0) || numbers.iter().any(|x| !x.is_finite()) {
            return Err(Error::new(Kind::Plan, format!("parameters out of range: {self:?}")));
        }
        check_terms(&self.terms, inputs)
    }

    fn method<R: Real>(&self, variant: Shape) -> Box<dyn Method<R>> {
        Box::new(GramMethod { parameters: self.clone(), shape: variant })
    }
}

impl GramMethod {
    fn pairs(&self) -> impl Iterator<Item = Pair> + Clone + '_ {
        self.parameters.terms.iter().map(|term| (term.model, term.reference))
    }

    fn groups(&self, tensor: &Tensor<'_>) -> Groups {
        let matrix = tensor.shape.len() >= 2;
        let p = &self.parameters;
        match self.shape {
            Shape::NuSlerp if !p.flatten && matrix && p.row_wise => Groups::Columns,
            Shape::NuSlerp if !p.flatten && matrix => Groups::Rows,
            Shape::ModelStock if p.filter_wise && matrix => Groups::Rows,
            _ => Groups::Whole,
        }
    }

    /// The inner products of each group.
    fn products<R: Real>(
        &self,
        tensor: &Tensor<'_>,
        threads: Threads<'_>,
        groups: Groups,
        length: u64,
    ) -> Result<Vec<f64>> {
        let n = self.parameters.terms.len();
        let size = n * (n + 1) / 2;
        match groups {
            Groups::Whole => {
                let chunks = tensor.fold::<R, Vec<f64>, _, _>(
                    threads,
                    |_| vec![0.0; size],
                    |sums, tile| {
                        add_pairs(tile.level, &views(tile, self.pairs(), &mut None), sums);
                    },
                )?;
                Ok((0..size).map(|k| chunks.iter().map(|sums| sums[k]).sum()).collect())
            }
            Groups::Rows => {
                let each = |_, inputs: &[Vec<R>]| {
                    let tile = Tile { level: tensor.level, first: 0, inputs };
                    let mut sums = vec![0.0; size];
                    add_pairs(tensor.level, &views(&tile, self.pairs(), &mut None), &mut sums);
                    sums
                };
                Ok(tensor.rows::<R, _, _>(threads, length, each)?.into_iter().flatten().collect())
            }
            Groups::Columns => {
                let chunks = tensor.fold::<R, Vec<f64>, _, _>(
                    threads,
                    |_| vec![0.0; size * length as usize],
                    |sums, tile| {
                        let all = deltas(tile, self.pairs());
                        #[allow(clippy::needless_range_loop)] // an index into several rows at once
                        for e in 0..tile.inputs.first().map_or(0, Vec::len) {
                            let at = ((tile.first + e as u64) % length) as usize * size;
                            let pairs = (0..n).flat_map(|i| (i..n).map(move |j| (i, j)));
                            for (sum, (i, j)) in sums[at..].iter_mut().zip(pairs) {
                                *sum += all[i][e].to_f64() * all[j][e].to_f64();
                            }
                        }
                    },
                )?;
                let mut total = vec![0.0; size * length as usize];
                for chunk in chunks {
                    total.iter_mut().zip(chunk).for_each(|(total, sum)| *total += sum);
                }
                Ok(total)
            }
        }
    }

    /// The weights of the terms in one group.
    fn coefficients(&self, products: &Products<'_>, name: &str) -> Result<Vec<f64>> {
        let p = &self.parameters;
        let weights: Vec<f64> = p.terms.iter().map(|term| term.weight).collect();
        Ok(match self.shape {
            Shape::Slerp => slerp(products, p.t),
            Shape::NuSlerp => nuslerp(products, weights[1] / (weights[0] + weights[1])),
            Shape::MultiSlerp => return multislerp(products, &weights, p.eps, name),
            Shape::Karcher => karcher(products, p.max_iter, p.tol),
            Shape::ModelStock => model_stock(products),
        })
    }
}

fn slerp(products: &Products<'_>, t: f64) -> Vec<f64> {
    let norm = |i| if products.norm(i) > 1e-8 { products.norm(i) } else { 1.0 };
    let cosine = (products.at(0, 1) / (norm(0) * norm(1))).clamp(-1.0, 1.0);
    if cosine.abs() > 0.9995 {
        return vec![1.0 - t, t];
    }
    let angle = libm::acos(cosine);
    let sine = libm::sin(angle);
    vec![libm::sin((1.0 - t) * angle) / sine, libm::sin(t * angle) / sine]
}

fn nuslerp(products: &Products<'_>, t: f64) -> Vec<f64> {
    let norm = |i| products.norm(i).max(1e-7);
    let cosine = (products.at(0, 1) / (norm(0) * norm(1))).clamp(-1.0, 1.0);
    if 1.0 - cosine * cosine <= 1e-16 {
        return vec![1.0 - t, t];
    }
    let angle = libm::acos(cosine);
    let sine = libm::sin(angle);
    vec![libm::sin((1.0 - t) * angle) / sine, libm::sin(t * angle) / sine]
}

/// The weighted sum of the tangent vectors at the weighted mean vanishes, as the mean's own part is all there is of it:
/// what is left is the direction of the mean, times the weighted mean norm.
fn multislerp(products: &Products<'_>, weights: &[f64], eps: f64, name: &str) -> Result<Vec<f64>> {
    let n = products.n;
    if n == 1 {
        return Ok(vec![1.0]);
    }
    let unit: Vec<f64> = (0..n).map(|i| weights[i] / (products.norm(i) + eps)).collect();
    let mean = products.between(&unit, &unit).max(0.0).sqrt();
    if mean < eps {
        if n == 2 {
            return Ok(weights.to_vec());
        }
        let message =
            format!("`{}`: the weighted unit tensors cancel, so they have no mean direction", name.escape_debug());
        return Err(Error::new(Kind::Plan, message).hint("change the weights, or merge this tensor with `linear`"));
    }
    let norm: f64 = (0..n).map(|i| weights[i] * products.norm(i)).sum();
    Ok(unit.iter().map(|c| c / mean * norm).collect())
}

/// The mean on the sphere by steps along the mean tangent, all inputs equally weighted; tensors of no length have no
/// direction, but count in the mean norm.
fn karcher(products: &Products<'_>, max_iter: u32, tol: f64) -> Vec<f64> {
    let n = products.n;
    if n == 1 {
        return vec![1.0];
    }
    let norms: Vec<f64> = (0..n).map(|i| products.norm(i)).collect();
    let valid: Vec<usize> = (0..n).filter(|i| norms[*i] > tol).collect();
    if valid.is_empty() {
        return vec![0.0; n];
    }
    let weight = 1.0 / valid.len() as f64;
    // Coefficients of the inputs themselves, not of their unit tensors.
    let unit = |i: usize| {
        let mut c = vec![0.0; n];
        c[i] = 1.0 / norms[i];
        c
    };
    let mut mean: Vec<f64> = (0..n).map(|i| if valid.contains(&i) { weight / norms[i] } else { 0.0 }).collect();
    let length = |c: &[f64]| products.between(c, c).max(0.0).sqrt();
    let start = length(&mean);
    mean = if start < tol { unit(valid[0]) } else { mean.iter().map(|c| c / start).collect() };
    for _ in 0..max_iter {
        let mut tangent = vec![0.0; n];
        for &i in &valid {
            let u = unit(i);
            let cosine = products.between(&mean, &u).clamp(-1.0, 1.0);
            let angle = libm::acos(cosine);
            if angle < tol {
                continue;
            }
            let factor = weight * angle / libm::sin(angle);
            for k in 0..n {
                tangent[k] += factor * (u[k] - cosine * mean[k]);
            }
        }
        let step = length(&tangent);
        if step < tol {
            break;
        }
        for k in 0..n {
            mean[k] = libm::cos(step) * mean[k] + libm::sin(step) * tangent[k] / step;
        }
        let size = length(&mean);
        if size > tol {
            mean.iter_mut().for_each(|c| *c /= size);
        }
    }
    let scale = norms.iter().sum::<f64>() / n as f64;
    mean.iter().map(|c| c * scale).collect()
}

fn model_stock(products: &Products<'_>) -> Vec<f64> {
    let n = products.n;
    let pairs: Vec<(usize, usize)> = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).collect();
    let cosine = |(i, j): &(usize, usize)| {
        (products.at(*i, *j) / (products.norm(*i) * products.norm(*j)).max(1e-6)).clamp(-1.0, 1.0)
    };
    let mean = pairs.iter().map(cosine).sum::<f64>() / pairs.len().max(1) as f64;
    let count = n as f64;
    let divisor = 1.0 + (count - 1.0) * mean;
    let t = if divisor.abs() < 1e-6 { 0.0 } else { count * mean / divisor };
    vec![t / count; n]
}

impl<R: Real> Method<R> for GramMethod {
    fn computes(&self) -> Computes {
        match self.shape {
            Shape::ModelStock => Computes::Step,
            _ if self.parameters.base.is_some() => Computes::Step,
            _ => Computes::Value,
        }
    }

    fn prepares(&self) -> bool {
        true
    }

    fn prepare(&self, tensor: &Tensor<'_>, threads: Threads<'_>) -> Result<State> {
        let groups = self.groups(tensor);
        let length = rows(tensor.shape).1.max(1);
        let products = self.products::<R>(tensor, threads, groups, length)?;
        let n = self.parameters.terms.len();
        let mut values = Vec::with_capacity(products.len() / (n * (n + 1) / 2) * n);
        for group in products.chunks(n * (n + 1) / 2) {
            values.extend(self.coefficients(&Products { n, values: group }, tensor.name)?);
        }
        Ok(Box::new(Coefficients { groups, length, values }))
    }

    fn tile(&self, _tensor: &Tensor<'_>, state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<()> {
        let Some(found) = state.downcast_ref::<Coefficients>() else {
            return Err(Error::new(Kind::Engine, "a tile before the look at its tensor"));
        };
        let mut own = None;
        let all = views(tile, self.pairs(), &mut own);
        let n = all.len();
        match found.groups {
            Groups::Whole => {
                for (k, (delta, c)) in all.iter().zip(&found.values).enumerate() {
                    match k {
                        0 => scale(tile.level, delta, Factor::new(*c), out),
                        _ => add_scaled(tile.level, delta, Factor::new(*c), out),
                    }
                }
            }
            Groups::Rows | Groups::Columns => {
                for (e, slot) in out.iter_mut().enumerate() {
                    let element = tile.first + e as u64;
                    let group =
                        if found.groups == Groups::Rows { element / found.length } else { element % found.length };
                    let c = &found.values[group as usize * n..(group as usize + 1) * n];
                    let mut sum = R::ZERO;
                    for (delta, c) in all.iter().zip(c) {
                        sum += Factor::new(*c).times(delta[e]);
                    }
                    *slot = sum;
                }
            }
        }
        Ok(())
    }
}
