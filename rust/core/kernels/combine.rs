//! Elementwise combination of tiles: differences, weighted sums, and the final step onto the target.
//!
//! In f32 two things can cost more than the rounding to the output type. A factor that f32 does not hold, as 0.3, is off
//! by up to 2^-24 of itself, and where models are unrelated one product in some hundred stands so close to half way
//! between two bf16 numbers that this decides it: the step is then computed in f64. And a sum that cancels most of its
//! target, or whose parts are beyond f32. It is rare, and noticed here for the whole tile at once; the caller then
//! repeats such elements in f64. (A difference that
//! f32 does not hold, its operands more than 2^16 apart, is off by 2^-24 of itself, which without such a sum is less
//! than a thousandth of the output's last place.)

use super::factor::{holds, Factor};
use super::real::Real;

/// |out| below this share of |target| counts as cancellation: f32 then leaves fewer than twelve of the bits that
/// rounding to eight needs to be right.
pub(crate) const CANCELLED: f64 = 1.0 / 4096.0;

kernel! {
    /// `out = x − y`.
    pub fn difference<R>(x: &[R], y: &[R], out: &mut [R]) {
        for ((slot, x), y) in out.iter_mut().zip(x).zip(y) {
            *slot = *x - *y;
        }
    }
}

kernel! {
    /// `sum = weight · x`.
    pub fn scale<R>(x: &[R], weight: Factor<R>, sum: &mut [R]) {
        for (slot, a) in sum.iter_mut().zip(x) {
            *slot = weight.times(*a);
        }
    }
}

kernel! {
    /// `sum = weight · (x − y)`.
    pub fn scale_difference<R>(x: &[R], y: &[R], weight: R, sum: &mut [R]) {
        for ((slot, x), y) in sum.iter_mut().zip(x).zip(y) {
            *slot = weight * (*x - *y);
        }
    }
}

kernel! {
    /// `sum = sum + weight · (x − y)`, three roundings.
    pub fn add_difference<R>(x: &[R], y: &[R], weight: R, sum: &mut [R]) {
        for ((slot, x), y) in sum.iter_mut().zip(x).zip(y) {
            *slot += weight * (*x - *y);
        }
    }
}

kernel! {
    /// `sum = sum + weight · x`.
    pub fn add_scaled<R>(x: &[R], weight: Factor<R>, sum: &mut [R]) {
        for (slot, a) in sum.iter_mut().zip(x) {
            *slot += weight.times(*a);
        }
    }
}

kernel! {
    /// `sum = sum + factor · x`, with a factor that is of the compute type.
    pub fn add_product<R>(x: &[R], factor: R, sum: &mut [R]) {
        for (slot, a) in sum.iter_mut().zip(x) {
            *slot += factor * *a;
        }
    }
}

kernel! {
    /// `out = target + alpha · delta`, the target's own value (and sign of zero) where delta is zero or alpha is;
    /// true if no sum cancelled so far, or became so large, that it wants a second look. Where the compute type does
    /// not hold alpha, product and sum are f64's, rounded once.
    pub fn step<R>(target: &[R], delta: &[R], alpha: f64, rounding: Single, out: &mut [R]) -> bool {
        if alpha == 0.0 {
            out.copy_from_slice(target);
            return true;
        }
        if holds::<R>(alpha) {
            let alpha = R::from_f64(alpha);
            step_each(target, delta, |t, d| t + alpha * d, out)
        } else if rounding == Single::Odd {
            step_each(target, delta, |t, d| R::from_f32(odd(t.to_f64() + alpha * d.to_f64())), out)
        } else {
            step_each(target, delta, |t, d| R::from_f64(t.to_f64() + alpha * d.to_f64()), out)
        }
    }
}

#[inline(always)]
fn step_each<R: Real>(target: &[R], delta: &[R], sum: impl Fn(R, R) -> R, out: &mut [R]) -> bool {
    let mut again = 0u32;
    let share = R::from_f64(CANCELLED);
    for ((slot, t), d) in out.iter_mut().zip(target).zip(delta) {
        let (t, d) = (*t, *d);
        let (moved, still) = (sum(t, d), d == R::ZERO);
        if R::IS_F32 {
            again |= u32::from(((moved.abs() < t.abs() * share) | !moved.is_finite()) & !still);
        }
        *slot = if still { t } else { moved };
    }
    again == 0
}

/// One term of a weighted sum of differences, widened to f64: (x, y, weight), with no y where x is a vector already.
pub type Term<'a> = (&'a [f64], Option<&'a [f64]>, f64);

kernel! {
    /// The elements that f32 cannot do well, again in f64: where the sum cancelled, or became too large.
    pub fn step_again(target: &[f64], terms: &[Term<'_>], alpha: f64, rounding: Single, out: &mut [f32]) {
        if alpha == 0.0 {
            return;
        }
        for (i, slot) in out.iter_mut().enumerate() {
            let mut sum = 0f64;
            for (k, (x, y, weight)) in terms.iter().enumerate() {
                let term = weight * (x[i] - y.map_or(0.0, |y| y[i]));
                sum = if k == 0 { term } else { sum + term };
            }
            let small = f64::from(slot.abs()) < target[i].abs() * CANCELLED;
            if sum != 0.0 && (small || !slot.is_finite()) {
                let moved = target[i] + alpha * sum;
                *slot = if rounding == Single::Odd { odd(moved) } else { moved as f32 };
            }
        }
    }
}

/// How a sum in f64 becomes f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Single {
    /// To odd: it is rounded once more, to at most 22 bits.
    Odd,
    /// To the nearest: it is what goes on.
    Nearest,
}

/// f64 → f32 rounded to odd: a later rounding to at most 22 bits then gives what rounding the f64 at once would.
#[inline(always)]
pub fn odd(x: f64) -> f32 {
    let nearest = x as f32;
    let back = f64::from(nearest);
    let toward_zero = nearest.to_bits() - u32::from(back.abs() > x.abs());
    // Not `||`: a branch would keep the loops around it from becoming vectors.
    let kept = (back == x) | !nearest.is_finite();
    f32::from_bits(if kept { nearest.to_bits() } else { toward_zero | 1 })
}

kernel! {
    /// Where the target is the reference, α = 1 must give the donor bit for bit, also where the difference does not
    /// fit the compute type and where the donor is a negative zero. Zeros of unlike signs are not the same: there the
    /// step decides, as it does where the donor and the reference are not at hand.
    pub fn keep_donor<R>(target: &[R], donor: &[R], reference: &[R], out: &mut [R]) {
        for (((slot, t), d), r) in out.iter_mut().zip(target).zip(donor).zip(reference) {
            // Both read whatever the outcome: a vector can choose between them, not skip one.
            let (d, other) = (*d, *slot);
            *slot = if t.is_same(*r) { d } else { other };
        }
    }
}
