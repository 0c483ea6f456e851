//! Elementwise combination of tiles: differences, weighted sums, and the final step onto the target.
//!
//! In f32 one thing can cost more than the rounding to the output type: a sum that cancels most of its target. It is
//! rare, and noticed here for the whole tile at once; the caller then repeats such elements in f64. (A difference that
//! f32 does not hold, its operands more than 2^16 apart, is off by 2^-24 of itself, which without such a sum is less
//! than a thousandth of the output's last place.)

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
    pub fn scale<R>(x: &[R], weight: R, sum: &mut [R]) {
        for (slot, a) in sum.iter_mut().zip(x) {
            *slot = weight * *a;
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
    /// `sum = sum + weight · x`, two roundings.
    pub fn add_scaled<R>(x: &[R], weight: R, sum: &mut [R]) {
        for (slot, a) in sum.iter_mut().zip(x) {
            *slot += weight * *a;
        }
    }
}

kernel! {
    /// `out = target + alpha · delta`, the target's own value (and sign of zero) where delta is zero or alpha is;
    /// true if no sum cancelled so far that it wants a second look.
    pub fn step<R>(target: &[R], delta: &[R], alpha: R, out: &mut [R]) -> bool {
        let mut cancelled = 0u32;
        let share = R::from_f64(CANCELLED);
        for ((slot, t), d) in out.iter_mut().zip(target).zip(delta) {
            let (t, d) = (*t, *d);
            let moved = t + alpha * d;
            let still = d == R::ZERO || alpha == R::ZERO;
            if R::IS_F32 {
                cancelled |= u32::from(moved.abs() < t.abs() * share && !still);
            }
            *slot = if still { t } else { moved };
        }
        cancelled == 0
    }
}

/// One term of a weighted sum of differences, widened to f64: (x, y, weight), with no y where x is a vector already.
pub type Term<'a> = (&'a [f64], Option<&'a [f64]>, f64);

kernel! {
    /// The elements that f32 cannot do well, again in f64: where the sum cancelled.
    pub fn step_again(target: &[f64], terms: &[Term<'_>], alpha: f64, out: &mut [f32]) {
        if alpha == 0.0 {
            return;
        }
        for (i, slot) in out.iter_mut().enumerate() {
            let mut sum = 0f64;
            for (k, (x, y, weight)) in terms.iter().enumerate() {
                let term = weight * (x[i] - y.map_or(0.0, |y| y[i]));
                sum = if k == 0 { term } else { sum + term };
            }
            if sum != 0.0 && f64::from(slot.abs()) < target[i].abs() * CANCELLED {
                *slot = odd(target[i] + alpha * sum);
            }
        }
    }
}

/// f64 → f32 rounded to odd: a later rounding to at most 22 bits then gives what rounding the f64 at once would.
#[inline(always)]
pub fn odd(x: f64) -> f32 {
    let nearest = x as f32;
    if !nearest.is_finite() || f64::from(nearest) == x {
        return nearest;
    }
    let bits = nearest.to_bits();
    let toward_zero = if f64::from(nearest).abs() > x.abs() { bits - 1 } else { bits };
    f32::from_bits(toward_zero | 1)
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
