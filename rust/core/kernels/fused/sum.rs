//! A weighted sum from stored bf16 to stored bf16 in one loop, with every value still in a register.

use super::lanes::{odd_normal, INFINITE};
use crate::kernels::factor::Factor;
use crate::kernels::real::{Real, LANES};

/// weight · model, stored in bf16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredFactor<'a, R> {
    /// The model.
    pub model: &'a [u8],
    /// Its weight.
    pub weight: Factor<R>,
}

/// Most terms of such a sum.
pub(crate) const SUMMANDS: usize = 6;

/// Words of two elements that are looked at together.
const WORDS: usize = 2 * LANES;

/// Their bytes.
const BYTES: usize = 4 * WORDS;

kernel! {
    /// `bytes = bf16(Σ weight · model)`, what [`scale`](crate::kernels::combine::scale),
    /// [`add_scaled`](crate::kernels::combine::add_scaled) and [`narrow`](crate::kernels::narrow::narrow) do one after
    /// the other. False, with anything in `bytes`, where there are no terms or more than [`SUMMANDS`], a result is not
    /// finite, or one is too small for this way: that wants the long one.
    pub(crate) fn sum_stored_bf16<R>(terms: &[StoredFactor<'_, R>], bytes: &mut [u8]) -> bool {
        match terms {
            [a] => all(&[*a], bytes),
            [a, b] => all(&[*a, *b], bytes),
            [a, b, c] => all(&[*a, *b, *c], bytes),
            [a, b, c, d] => all(&[*a, *b, *c, *d], bytes),
            [a, b, c, d, e] => all(&[*a, *b, *c, *d, *e], bytes),
            [a, b, c, d, e, f] => all(&[*a, *b, *c, *d, *e, *f], bytes),
            _ => false,
        }
    }
}

/// What is found of the results, in lanes.
#[derive(Default)]
struct Found {
    /// The bits of the largest magnitude.
    most: [u32; LANES],
    /// Not zero where a result is a subnormal number.
    small: [u32; LANES],
}

#[inline(always)]
fn all<R: Real, const N: usize>(terms: &[StoredFactor<'_, R>; N], bytes: &mut [u8]) -> bool {
    let mut found = Found::default();
    let weights: [Factor<R>; N] = std::array::from_fn(|k| terms[k].weight);
    let (whole, rest) = bytes.as_chunks_mut::<BYTES>();
    for (at, out) in whole.iter_mut().enumerate() {
        let models: [&[u8; BYTES]; N] = std::array::from_fn(|k| &terms[k].model.as_chunks().0[at]);
        group(&models, &weights, &mut found, out);
    }
    if !rest.is_empty() {
        // Padded with zeros.
        let (done, mut padded, mut out) = (BYTES * whole.len(), [[0; BYTES]; N], [0; BYTES]);
        for (padded, term) in padded.iter_mut().zip(terms) {
            padded[..rest.len()].copy_from_slice(&term.model[done..]);
        }
        group(&padded.each_ref(), &weights, &mut found, &mut out);
        rest.copy_from_slice(&out[..rest.len()]);
    }
    let most = found.most.iter().fold(0, |most, x| most.max(*x));
    most < INFINITE && found.small.iter().all(|small| *small == 0)
}

#[inline(always)]
fn group<R: Real, const N: usize>(
    models: &[&[u8; BYTES]; N],
    weights: &[Factor<R>; N],
    found: &mut Found,
    out: &mut [u8; BYTES],
) {
    let word = |bytes: &[u8; BYTES], at: usize| u32::from_le_bytes(bytes.as_chunks::<4>().0[at]);
    let halves = |word: u32| [word << 16, word & 0xFFFF_0000].map(|bits| R::from_f32(f32::from_bits(bits)));
    for i in 0..WORDS / LANES {
        for lane in 0..LANES {
            let at = i * LANES + lane;
            let mut sums = halves(word(models[0], at)).map(|x| weights[0].times(x));
            for k in 1..N {
                let x = halves(word(models[k], at));
                for half in 0..2 {
                    sums[half] += weights[k].times(x[half]);
                }
            }
            let mut rounded = [0; 2];
            for half in 0..2 {
                let single = if R::IS_F32 { sums[half].to_f32() } else { odd_normal(sums[half].to_f64()) };
                let bits = single.to_bits();
                let magnitude = bits & 0x7FFF_FFFF;
                found.most[lane] = found.most[lane].max(magnitude);
                if !R::IS_F32 {
                    found.small[lane] |= u32::from(magnitude.wrapping_sub(1) < 0x007F_FFFF);
                }
                // To nearest, ties to even; what is not a number is seen in `most`.
                rounded[half] = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000;
            }
            out.as_chunks_mut::<4>().0[at] = (rounded[0] >> 16 | rounded[1]).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dtype::Dtype;
    use crate::kernels::combine::{add_scaled, scale};
    use crate::kernels::narrow::{narrow, Rounding};
    use crate::kernels::Level;

    /// The sum by the kernels that do one thing each: its bytes, and whether they are finite.
    fn long<R: Real>(level: Level, models: &[Vec<u16>], weights: &[f64]) -> (Vec<u8>, bool) {
        let n = models[0].len();
        let (mut sum, mut bytes) = (vec![R::ZERO; n], vec![0; 2 * n]);
        for (k, (model, weight)) in models.iter().zip(weights).enumerate() {
            let values: Vec<R> = model.iter().map(|x| R::from_f32(f32::from_bits(u32::from(*x) << 16))).collect();
            let add = if k == 0 { scale } else { add_scaled };
            add(level, &values, Factor::new(*weight), &mut sum);
        }
        let finite = narrow(level, Dtype::BF16, &mut sum, Rounding::Nearest, &mut bytes);
        (bytes, finite)
    }

    fn short<R: Real>(level: Level, models: &[Vec<u16>], weights: &[f64]) -> Option<Vec<u8>> {
        let stored: Vec<Vec<u8>> =
            models.iter().map(|model| model.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let factor = |(model, weight): (&'_ Vec<u8>, &f64)| (model.clone(), Factor::new(*weight));
        let kept: Vec<(Vec<u8>, Factor<R>)> = stored.iter().zip(weights).map(factor).collect();
        let terms: Vec<StoredFactor<'_, R>> =
            kept.iter().map(|(model, weight)| StoredFactor { model, weight: *weight }).collect();
        let mut bytes = vec![0; 2 * models[0].len()];
        sum_stored_bf16(level, &terms, &mut bytes).then_some(bytes)
    }

    fn check<R: Real>(models: &[Vec<u16>], weights: &[f64]) {
        for level in Level::available() {
            let (want, finite) = long::<R>(level, models, weights);
            match short::<R>(level, models, weights) {
                Some(found) => assert!(finite && found == want, "{} {weights:?}", level.name()),
                // Else some result is not finite, or is a subnormal number where f64 is rounded.
                None => assert!(!finite || !R::IS_F32, "{} {weights:?}", level.name()),
            }
        }
    }

    #[test]
    fn nothing_is_no_sum() {
        for level in Level::available() {
            assert!(!sum_stored_bf16::<f32>(level, &[], &mut [0; 6]));
        }
    }

    #[test]
    fn ordinary_sums_take_the_short_way() {
        let models = vec![(0..300).map(|i| 0x3C00 + i).collect::<Vec<u16>>(); 3];
        for level in Level::available() {
            assert!(short::<f64>(level, &models, &[0.4, 0.3, 0.3]).is_some());
            assert!(short::<f32>(level, &models, &[0.5, 0.25, 0.25]).is_some());
        }
    }

    proptest! {
        /// Over all bit patterns, and over values near each other.
        #[test]
        fn the_short_way_is_the_long_way(
            bits in prop::collection::vec((any::<u16>(), any::<u16>(), any::<u16>()), 1..300),
            near in any::<bool>(),
            count in 1usize..4,
            weights in prop::collection::vec(prop_oneof![Just(0.4), Just(0.3), Just(1.0), Just(0.0), -2.0..2.0f64], 3),
        ) {
            let one = |x: u16| if near { 0x3C00 | x & 0x81FF } else { x };
            let model = |k: usize| bits.iter().map(|b| one([b.0, b.1, b.2][k])).collect::<Vec<u16>>();
            let models: Vec<Vec<u16>> = (0..count).map(model).collect();
            check::<f64>(&models, &weights[..count]);
            let single: Vec<f64> = weights[..count].iter().map(|weight| f64::from(*weight as f32)).collect();
            check::<f32>(&models, &single);
        }
    }
}
