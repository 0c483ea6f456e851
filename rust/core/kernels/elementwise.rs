//! What is decided element by element across several models: elections, overlaps, variances.

use super::real::Real;

/// Sets every element of `$out` to `$each`, in which `$x` holds that element of every slice and `$w` the slices'
/// weights. Written out for up to four slices, as a loop over a slice of slices makes no vectors.
macro_rules! across {
    ($all:ident, $weights:ident, $out:ident, |$x:ident, $w:ident| $each:expr) => {
        match $all.len() {
            1 => across!(1, $all, $weights, $out, |$x, $w| $each),
            2 => across!(2, $all, $weights, $out, |$x, $w| $each),
            3 => across!(3, $all, $weights, $out, |$x, $w| $each),
            4 => across!(4, $all, $weights, $out, |$x, $w| $each),
            n => {
                let ($w, mut $x) = ($weights, vec![R::ZERO; n]);
                for (i, slot) in $out.iter_mut().enumerate() {
                    $x.iter_mut().zip($all).for_each(|(x, slice)| *x = slice[i]);
                    *slot = $each;
                }
            }
        }
    };
    ($n:literal, $all:ident, $weights:ident, $out:ident, |$x:ident, $w:ident| $each:expr) => {{
        let length = $out.len();
        let slices: [&[R]; $n] = std::array::from_fn(|k| &$all[k][..length]);
        let $w: [R; $n] = std::array::from_fn(|k| $weights[k]);
        for (i, slot) in $out.iter_mut().enumerate() {
            let $x: [R; $n] = std::array::from_fn(|k| slices[k][i]);
            *slot = $each;
        }
    }};
    ($all:ident, $out:ident, |$x:ident| $each:expr) => {{
        let none = vec![R::ZERO; $all.len()];
        across!($all, none, $out, |$x, _w| $each)
    }};
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

kernel! {
    /// SCE: Σ of those w·δ for which δ has the sign of Σ δ (zero counts as +), over the Σ of their weights, which is
    /// taken as at least `least`.
    pub fn elect_unweighted<R>(deltas: &[&[R]], weights: &[R], least: R, out: &mut [R]) {
        across!(deltas, weights, out, |x, weights| {
            let mut total = R::ZERO;
            x.iter().for_each(|delta| total += *delta);
            let positive = total >= R::ZERO;
            let (mut sum, mut divisor) = (R::ZERO, R::ZERO);
            for (delta, weight) in x.iter().zip(weights.iter()) {
                let agrees = (positive & (*delta > R::ZERO)) | (!positive & (*delta < R::ZERO));
                sum += only(agrees, *weight * *delta);
                divisor += only(agrees, *weight);
            }
            sum / if divisor > least { divisor } else { least }
        });
    }
}

kernel! {
    /// The variance across models, over their number.
    pub fn variance<R>(deltas: &[&[R]], out: &mut [R]) {
        let count = R::from_f64(deltas.len() as f64);
        across!(deltas, out, |x| {
            let mut mean = R::ZERO;
            x.iter().for_each(|delta| mean += *delta);
            mean = mean / count;
            let mut sum = R::ZERO;
            x.iter().for_each(|delta| sum += (*delta - mean) * (*delta - mean));
            sum / count
        });
    }
}

kernel! {
    /// Consensus: Σ w·δ where at least `k` models' δ outweighs `share` of what the sum is without it, else zero.
    pub(crate) fn consensus<R>(deltas: &[&[R]], weights: &[R], share: R, k: R, out: &mut [R]) {
        across!(deltas, weights, out, |x, weights| {
            let (mut sum, mut count) = (R::ZERO, R::ZERO);
            for (delta, weight) in x.iter().zip(weights.iter()) {
                sum += *weight * *delta;
            }
            for delta in x.iter() {
                count += only(delta.abs() >= share * (sum - *delta).abs(), R::ONE);
            }
            only(count >= k, sum)
        });
    }
}

kernel! {
    /// EMR: the largest of the δ that have the sign of their sum.
    pub fn largest_agreeing<R>(deltas: &[&[R]], out: &mut [R]) {
        across!(deltas, out, |x| {
            let mut sum = R::ZERO;
            x.iter().for_each(|delta| sum += *delta);
            let mut most = R::ZERO;
            for delta in x.iter() {
                let agrees = ((*delta > R::ZERO) & (sum > R::ZERO)) | ((*delta < R::ZERO) & (sum < R::ZERO));
                most = if agrees & (delta.abs() > most.abs()) { *delta } else { most };
            }
            most
        });
    }
}

kernel! {
    /// RAM: the mean of the δ above `epsilon`; one that is alone is multiplied by its factor instead.
    pub fn overlap_mean<R>(deltas: &[&[R]], factors: &[R], epsilon: R, out: &mut [R]) {
        across!(deltas, factors, out, |x, factors| {
            let mut touched = R::ZERO;
            x.iter().for_each(|delta| touched += only(delta.abs() > epsilon, R::ONE));
            let mut sum = R::ZERO;
            for (delta, factor) in x.iter().zip(factors.iter()) {
                let term = if touched == R::ONE { *factor * *delta } else { *delta };
                sum += only(delta.abs() > epsilon, term);
            }
            sum / if touched > R::ONE { touched } else { R::ONE }
        });
    }
}

kernel! {
    /// How many of the δ are above `epsilon`.
    pub fn touched<R>(deltas: &[&[R]], epsilon: R, out: &mut [R]) {
        across!(deltas, out, |x| {
            let mut touched = R::ZERO;
            x.iter().for_each(|delta| touched += only(delta.abs() > epsilon, R::ONE));
            touched
        });
    }
}

kernel! {
    /// Elements of δ above `epsilon`: those that others touched too, and those that it alone did.
    pub(crate) fn shared_and_own<R>(delta: &[R], touched: &[R], epsilon: R) -> (u64, u64) {
        let (mut shared, mut own) = (0u32, 0u32);
        for (delta, touched) in delta.iter().zip(touched) {
            let counts = u32::from(delta.abs() > epsilon);
            shared += counts & u32::from(*touched > R::ONE);
            own += counts & u32::from(*touched <= R::ONE);
        }
        (u64::from(shared), u64::from(own))
    }
}

kernel! {
    /// NearSwap: δ, less where it is longer than `t`; distances below a millionth count as that.
    pub fn near<R>(delta: &[R], t: R, out: &mut [R]) {
        let floor = R::from_f64(1e-6);
        for (slot, delta) in out.iter_mut().zip(delta) {
            let share = t / if delta.abs() > floor { delta.abs() } else { floor };
            *slot = (if share > R::ONE { R::ONE } else { share }) * *delta;
        }
    }
}
