//! Coefficients of the inputs, from their norms and angles.

use crate::error::{shown, Error, Kind, Result};

/// Inner products of n vectors; symmetric.
pub(super) struct Products<'a> {
    pub n: usize,
    pub values: &'a [f64],
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

pub(super) fn slerp(products: &Products<'_>, t: f64) -> Vec<f64> {
    let norm = |i| if products.norm(i) > 1e-8 { products.norm(i) } else { 1.0 };
    let cosine = (products.at(0, 1) / (norm(0) * norm(1))).clamp(-1.0, 1.0);
    if cosine.abs() > 0.9995 {
        return vec![1.0 - t, t];
    }
    let angle = libm::acos(cosine);
    let sine = libm::sin(angle);
    vec![libm::sin((1.0 - t) * angle) / sine, libm::sin(t * angle) / sine]
}

pub(super) fn nuslerp(products: &Products<'_>, t: f64) -> Vec<f64> {
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
pub(super) fn multislerp(products: &Products<'_>, weights: &[f64], eps: f64, name: &str) -> Result<Vec<f64>> {
    let n = products.n;
    if n == 1 {
        return Ok(vec![1.0]);
    }
    let unit: Vec<f64> = (0..n).map(|i| weights[i] / (products.norm(i) + eps)).collect();
    let mean = products.between(&unit, &unit).max(0.0).sqrt();
    if mean < eps {
        // Of tensors that are all zero the sum is zero whatever the weights.
        if n == 2 || (0..n).all(|i| products.norm(i) == 0.0) {
            return Ok(weights.to_vec());
        }
        let message = format!("`{}`: the weighted unit tensors cancel, so they have no mean direction", shown(name));
        return Err(Error::new(Kind::Plan, message).hint("change the weights, or merge this tensor with `linear`"));
    }
    let norm: f64 = (0..n).map(|i| weights[i] * products.norm(i)).sum();
    Ok(unit.iter().map(|c| c / mean * norm).collect())
}

/// Angles this close to π are π: a cosine of f64 tells no nearer ones apart.
const OPPOSITE: f64 = 1e-7;

/// The mean on the sphere by steps along the mean tangent, all inputs equally weighted; tensors of no length have no
/// direction, but count in the mean norm. To the point opposite of the mean leads every direction: it has no tangent,
/// and the mean stays between the others.
pub(super) fn karcher(products: &Products<'_>, max_iter: u32, tol: f64) -> Vec<f64> {
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
    mean = if start <= tol { unit(valid[0]) } else { mean.iter().map(|c| c / start).collect() };
    for _ in 0..max_iter {
        let mut tangent = vec![0.0; n];
        for &i in &valid {
            let u = unit(i);
            let cosine = products.between(&mean, &u).clamp(-1.0, 1.0);
            let angle = libm::acos(cosine);
            if angle < tol || std::f64::consts::PI - angle < OPPOSITE {
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

pub(super) fn model_stock(products: &Products<'_>) -> Vec<f64> {
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
