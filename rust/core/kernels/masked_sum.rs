//! Differences of which only some elements are kept, and their sum in one loop over the models as they are. (A kernel
//! for each step, which this replaced, took 1.4 times as long for two models cut by magnitude, all in the cache.)

use super::factor::Factor;
use super::masked::{Masked, BITS, BOTH, MANY, SIZE};
use super::real::{Real, LANES};

/// How kept elements are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// Σ f·δ.
    Plain,
    /// Σ f·δ over those whose sign is that of Σ f·δ (zero counts as +).
    Elected,
    /// The same over the Σ of their weights.
    ElectedMean,
    /// Σ f·δ over how many are left.
    Mean,
}

kernel! {
    /// Adds up what is kept of a tile.
    pub fn add_up<R>(terms: &[Masked<'_, R>], sum: Sum, out: &mut [R]) {
        let by = terms.first().map_or(BITS, Masked::by);
        let by = if terms.iter().all(|term| term.by() == by) { by } else { BOTH };
        // A factor of two parts is a multiplication and an addition more for every product; most weights are of one part.
        let single = R::IS_F32 && terms.iter().all(|term| term.factor.is_single());
        macro_rules! of {
            ($n:literal) => {
                match terms.first_chunk::<$n>() {
                    Some(terms) if by == BITS && single => all::<R, $n, BITS, true>(terms, sum, out),
                    Some(terms) if by == BITS => all::<R, $n, BITS, false>(terms, sum, out),
                    Some(terms) if by == SIZE && single => all::<R, $n, SIZE, true>(terms, sum, out),
                    Some(terms) if by == SIZE => all::<R, $n, SIZE, false>(terms, sum, out),
                    Some(terms) => all::<R, $n, BOTH, false>(terms, sum, out),
                    None => {}
                }
            };
        }
        match terms.len() {
            0 => out.fill(R::ZERO),
            1 => of!(1),
            2 => of!(2),
            3 => of!(3),
            4 => of!(4),
            n => {
                let (mut x, factors) = (vec![R::ZERO; n], terms.iter().map(|term| (term.factor, term.weight)));
                let factors: Vec<(Factor<R>, R)> = factors.collect();
                for (i, out) in out.iter_mut().enumerate() {
                    for (x, term) in x.iter_mut().zip(terms) {
                        let delta = term.reference.map_or(term.model[i], |reference| term.model[i] - reference[i]);
                        *x = term.keep::<BOTH>(delta, (term.words[i / 64] >> (i / 32 % 2 * 32)) as u32, i % 32);
                    }
                    *out = one::<R, false>(&x, &factors, sum, &[R::ONE; 8]);
                }
            }
        }
    }
}

#[inline(always)]
fn all<R: Real, const N: usize, const BY: u8, const SINGLE: bool>(terms: &[Masked<'_, R>; N], sum: Sum, out: &mut [R]) {
    let zeros = [R::ZERO; MANY];
    let mut models = [&zeros; N];
    let mut references = [&zeros; N];
    let mut words = [0u64; N];
    let shares = shares(terms);
    let (whole, rest) = out.as_chunks_mut::<MANY>();
    let groups = whole.len();
    for (at, out) in whole.iter_mut().enumerate() {
        for k in 0..N {
            models[k] = &terms[k].model.as_chunks().0[at];
            references[k] = match terms[k].reference {
                Some(reference) => &reference.as_chunks().0[at],
                None => &zeros,
            };
            words[k] = terms[k].words[at];
        }
        group::<R, N, BY, SINGLE>(terms, (&models, &references, &words), (sum, &shares), out);
    }
    if !rest.is_empty() {
        let mut padded = [[[R::ZERO; MANY]; N]; 2];
        for k in 0..N {
            let (model, reference) = (&terms[k].model[groups * MANY..], terms[k].reference);
            padded[0][k][..model.len()].copy_from_slice(model);
            if let Some(reference) = reference {
                padded[1][k][..model.len()].copy_from_slice(&reference[groups * MANY..]);
            }
            words[k] = terms[k].words[groups];
        }
        for k in 0..N {
            (models[k], references[k]) = (&padded[0][k], &padded[1][k]);
        }
        let mut last = zeros;
        group::<R, N, BY, SINGLE>(terms, (&models, &references, &words), (sum, &shares), &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

#[inline(always)]
fn group<R: Real, const N: usize, const BY: u8, const SINGLE: bool>(
    terms: &[Masked<'_, R>; N],
    (models, references, words): (&[&[R; MANY]; N], &[&[R; MANY]; N], &[u64; N]),
    (sum, shares): (Sum, &Shares<R>),
    out: &mut [R; MANY],
) {
    let mut factors = [(Factor::one(), R::ZERO); N];
    for k in 0..N {
        factors[k] = (terms[k].factor, terms[k].weight);
    }
    macro_rules! lanes {
        ($sum:expr) => {
            for at in 0..MANY / LANES {
                let mut bits = [0u32; N];
                for k in 0..N {
                    bits[k] = (words[k] >> (at * LANES)) as u32;
                }
                for lane in 0..LANES {
                    let i = at * LANES + lane;
                    let mut x = [R::ZERO; N];
                    for k in 0..N {
                        x[k] = terms[k].keep::<BY>(models[k][i] - references[k][i], bits[k], lane);
                    }
                    out[i] = one::<R, SINGLE>(&x, &factors, $sum, shares);
                }
            }
        };
    }
    // One loop each, without a choice in it.
    match sum {
        Sum::Plain => lanes!(Sum::Plain),
        Sum::Elected => lanes!(Sum::Elected),
        Sum::ElectedMean => lanes!(Sum::ElectedMean),
        Sum::Mean => lanes!(Sum::Mean),
    }
}

/// What a sum is multiplied by instead of dividing it by weights, by which of at most three terms take part, a bit for
/// each: a division for every element takes as long as all the rest.
type Shares<R> = [R; 8];

#[inline(always)]
fn shares<R: Real>(terms: &[Masked<'_, R>]) -> Shares<R> {
    let mut shares = [R::ONE; 8];
    for (taken, share) in shares.iter_mut().enumerate().filter(|(taken, _)| *taken < 1 << terms.len().min(3)) {
        let mut divisor = R::ZERO;
        terms.iter().take(3).enumerate().for_each(|(k, term)| divisor += only(taken >> k & 1 == 1, term.weight));
        *share = R::ONE / if divisor != R::ZERO { divisor } else { R::ONE };
    }
    shares
}

/// The sum for one element, of which `x` is kept and multiplied by the first of its `factors`; the second is its weight.
#[inline(always)]
fn one<R: Real, const SINGLE: bool>(x: &[R], factors: &[(Factor<R>, R)], sum: Sum, shares: &Shares<R>) -> R {
    let n = x.len();
    let mut total = factors[0].0.product::<SINGLE>(x[0]);
    for k in 1..n {
        total += factors[k].0.product::<SINGLE>(x[k]);
    }
    if sum == Sum::Plain {
        return total;
    }
    let mut divisor = R::ZERO;
    if sum == Sum::Mean {
        x.iter().for_each(|x| divisor += only(*x != R::ZERO, R::ONE));
        return total / if divisor > R::ONE { divisor } else { R::ONE };
    }
    let positive = total >= R::ZERO;
    let agrees = |term: R| (positive & (term > R::ZERO)) | (!positive & (term < R::ZERO));
    let mut elected = R::ZERO;
    for k in 0..n {
        let term = factors[k].0.product::<SINGLE>(x[k]);
        elected += only(agrees(term), term);
    }
    if sum == Sum::Elected {
        return elected;
    }
    if n <= 3 {
        // The last term decides between the halves, and so on.
        let mut shares = *shares;
        for k in (0..n).rev() {
            let taken = agrees(factors[k].0.product::<SINGLE>(x[k]));
            for i in 0..1 << k {
                shares[i] = if taken { shares[i + (1 << k)] } else { shares[i] };
            }
        }
        return elected * shares[0];
    }
    for k in 0..n {
        divisor += only(agrees(factors[k].0.product::<SINGLE>(x[k])), factors[k].1);
    }
    elected / if divisor != R::ZERO { divisor } else { R::ONE }
}

/// `x` where `condition` holds, else zero.
#[inline(always)]
fn only<R: Real>(condition: bool, x: R) -> R {
    if condition {
        x
    } else {
        R::ZERO
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::l1_norms::{add_norms, add_stored_norms, Norms};
    use crate::kernels::Level;

    proptest! {
        /// Against one element after the other.
        #[test]
        fn one_loop_is_one_element_after_the_other(
            count in 1usize..6,
            n in 0usize..200,
            seed in any::<u64>(),
            cuts in 0usize..3,
            sum in prop_oneof![Just(Sum::Plain), Just(Sum::Elected), Just(Sum::ElectedMean), Just(Sum::Mean)],
        ) {
            let mut state = seed | 1;
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            };
            let mut list = |n: usize| -> Vec<f32> { (0..n).map(|_| (next() % 9) as f32 - 4.0).collect() };
            let models: Vec<Vec<f32>> = (0..count).map(|_| list(n)).collect();
            let references: Vec<Vec<f32>> = (0..count).map(|_| list(n)).collect();
            let words: Vec<Vec<u64>> = (0..count)
                .map(|k| (0..4).map(|_| if cuts == 1 && k != 4 { u64::MAX } else { next() }).collect())
                .collect();
            let factors: Vec<f32> = (0..count).map(|_| (next() % 7) as f32 / 3.0 - 1.0).collect();
            let terms: Vec<Masked<'_, f32>> = (0..count).map(|k| {
                let reference = (k % 3 != 1).then_some(references[k].as_slice());
                let whole = Masked::whole(&models[k], reference, &words[k]);
                let (low, high) = match cuts {
                    0 => (whole.low, whole.high),
                    1 => (1.0, f32::INFINITY),
                    _ => (1.0, [3.0, f32::INFINITY][k % 2]),
                };
                Masked { low, high, factor: Factor::new(f64::from(factors[k])), weight: factors[k] + 0.5, ..whole }
            }).collect();
            let delta = |term: &Masked<'_, f32>, i: usize| term.model[i] - term.reference.map_or(0.0, |r| r[i]);
            let left = |term: &Masked<'_, f32>, i: usize| {
                let (d, bit) = (delta(term, i), term.words[i / 64] >> (i % 64) & 1 == 1);
                if bit && d.abs() > term.low && d.abs() <= term.high { d } else { 0.0 }
            };
            for level in Level::available() {
                let mut out = vec![9f32; n];
                add_up(level, &terms, sum, &mut out);
                for (i, out) in out.iter().enumerate() {
                    let x: Vec<f32> = terms.iter().map(|term| term.factor.times(left(term, i))).collect();
                    let total: f32 = x.iter().sum();
                    let agrees = |x: &f32| if total >= 0.0 { *x > 0.0 } else { *x < 0.0 };
                    let elected: f32 = x.iter().filter(|x| agrees(x)).sum();
                    let weights: f32 =
                        terms.iter().zip(&x).filter(|(_, x)| agrees(x)).map(|(term, _)| term.weight).sum();
                    let many = terms.iter().filter(|term| left(term, i) != 0.0).count().max(1);
                    let want = match sum {
                        Sum::Plain => total,
                        Sum::Elected => elected,
                        Sum::ElectedMean => elected / if weights == 0.0 { 1.0 } else { weights },
                        Sum::Mean => total / many as f32,
                    };
                    prop_assert!((*out - want).abs() <= 1e-6 * want.abs(), "{} {} {:?}", level.name(), i, sum);
                }
                for (k, term) in terms.iter().enumerate() {
                    let stored = |x: &[f32]| -> Vec<u8> {
                        x.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect()
                    };
                    let whole = Masked { words: &words[k], ..Masked::whole(term.model, term.reference, term.words) };
                    let (mut plain, mut short) = (Norms::default(), Norms::default());
                    add_norms(level, &whole, &mut plain);
                    let (model, reference) = (stored(term.model), term.reference.map(stored));
                    prop_assert!(add_stored_norms(level, &model, reference.as_deref(), &words[k], &mut short));
                    prop_assert_eq!(plain.sums(), short.sums());
                    if n > 0 {
                        let mut infinite = model.clone();
                        infinite[2 * n - 2..].copy_from_slice(&[0x80, 0xFF]);
                        prop_assert!(!add_stored_norms(level, &infinite, None, &words[k], &mut short.clone()));
                        prop_assert!(!add_stored_norms(level, &model, Some(&infinite), &words[k], &mut short));
                    }
                    let mut norms = Norms::default();
                    add_norms(level, term, &mut norms);
                    add_norms(level, term, &mut norms);
                    let all: f64 = (0..n).map(|i| f64::from(delta(term, i).abs())).sum();
                    let kept: f64 = (0..n).map(|i| f64::from(left(term, i).abs())).sum();
                    prop_assert_eq!(norms.sums(), (2.0 * all, 2.0 * kept));
                }
            }
        }
    }
}
