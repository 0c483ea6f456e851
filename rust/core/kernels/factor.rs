//! A factor with more digits than the narrow compute type holds.
//!
//! 0.3 as f32 is 4·10⁻⁸ of itself too large. A product with few digits (ten units times 0.3) often stands half way
//! between two bf16 numbers, and that much decides it. Where a result is nothing but a sum of such products, it is
//! computed in f64 instead ([`holds`]). Elsewhere the factor is the sum of two numbers, exact to 48 bits, and such a
//! product comes out as if the factor were decimal, for one more multiplication and addition.

use super::real::Real;

/// Share of the factor that stands for nothing: no sum is moved by it, but infinity times it is infinity.
const NOTHING: f64 = 1.0 / (1u64 << 60) as f64;

/// Whether the compute type holds a factor with all of its digits.
#[inline(always)]
pub fn holds<R: Real>(factor: f64) -> bool {
    R::from_f64(factor).to_f64() == factor
}

/// A factor of tiles of compute type `R`.
#[derive(Clone, Copy, Debug)]
pub struct Factor<R> {
    /// The factor rounded towards zero.
    high: R,
    /// The rest, of the same sign: what one product makes infinite or a negative zero, the sum of both leaves so.
    low: R,
}

impl<R: Real> Factor<R> {
    /// One.
    pub fn one() -> Self {
        Factor::new(1.0)
    }

    /// `x`, exact to 48 bits in f32, and all of it in f64.
    pub fn new(x: f64) -> Self {
        let nearest = R::from_f64(x);
        let high = if nearest.to_f64().abs() > x.abs() { toward_zero(nearest) } else { nearest };
        let rest = x - high.to_f64();
        let low = if rest == 0.0 { x * NOTHING } else { rest };
        Factor { high, low: R::from_f64(low) }
    }

    /// Whether one multiplication gives all products.
    pub(crate) fn is_single(self) -> bool {
        !R::IS_F32 || R::from_f64(self.high.to_f64() * NOTHING) == self.low
    }

    /// The product, rounded three times at most, and once where it has few digits.
    #[inline(always)]
    pub fn times(self, x: R) -> R {
        self.product::<false>(x)
    }

    /// The same, of which the caller may say that the factor is a [single](Factor::is_single) number.
    #[inline(always)]
    pub(crate) fn product<const SINGLE: bool>(self, x: R) -> R {
        if R::IS_F32 && !SINGLE {
            self.high * x + self.low * x
        } else {
            self.high * x
        }
    }
}

/// The next number of smaller magnitude.
fn toward_zero<R: Real>(x: R) -> R {
    if x > R::ZERO {
        x.next_down()
    } else {
        -(-x).next_down()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_not_finite_or_has_a_sign_keeps_it() {
        for factor in [1.0, 0.5, 0.3, -0.3, -2.0, 1e-30] {
            let (narrow, wide) = (Factor::<f32>::new(factor), Factor::<f64>::new(factor));
            for x in [f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e-45, -1e-45] {
                let want = factor as f32 * x;
                assert_eq!(narrow.times(x).to_bits(), want.to_bits(), "{factor} {x}");
                assert_eq!(wide.times(f64::from(x)).to_bits(), (factor * f64::from(x)).to_bits());
            }
            assert!(narrow.times(f32::NAN).is_nan());
        }
        assert!(holds::<f32>(0.5) && !holds::<f32>(0.3) && holds::<f64>(0.3));
        assert!(!holds::<f32>(1e-46) && !holds::<f32>(1e39));
    }

    proptest! {
        /// A product of a decimal factor and a number of tens, half the digits of f32, is the decimal product.
        #[test]
        fn decimal_products_are_exact(tenths in -100i32..100, tens in -1600i32..1600, power in -60i32..60) {
            let scale = 2f32.powi(power);
            let x = 10.0 * tens as f32 * scale;
            let want = tenths as f32 * tens as f32 * scale;
            prop_assert_eq!(Factor::<f32>::new(f64::from(tenths) / 10.0).times(x), want);
        }

        /// Within one unit of the product of float64; with a factor that f32 holds, its product.
        #[test]
        fn products_are_those_of_float64(factor in -4.0..4.0f64, x in -4.0..4.0f32) {
            let exact = factor * f64::from(x);
            let unit = 2f64.powi(exact.abs().log2().floor().max(-126.0) as i32 - 23);
            prop_assert!((f64::from(Factor::<f32>::new(factor).times(x)) - exact).abs() <= unit);
            let single = factor as f32;
            prop_assert_eq!(Factor::<f32>::new(f64::from(single)).times(x).to_bits(), (single * x).to_bits());
        }
    }
}
