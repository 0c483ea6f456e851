//! How a group is scaled: from numbers to codes and back.

use super::code::Round;

/// How a group is scaled: code = round(x / `divisor` + `shift`), value = (code − `zero`) · `scale`; of codes that are
/// counted from a bias, of what lies above that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scaling {
    /// What elements are divided by.
    pub divisor: f32,
    /// What is added before rounding.
    pub shift: f32,
    /// What is subtracted from a code.
    pub zero: f32,
    /// What that is multiplied by.
    pub scale: f32,
    /// What codes are counted from, where they are.
    pub bias: f32,
}

impl Scaling {
    /// By a scale as it is read, with the code that stands for zero. Where the scale is no number to divide by, every
    /// code is the one for zero.
    pub(crate) fn new(scale: f32, zero: f32) -> Self {
        let divisor = if scale.is_finite() && scale != 0.0 { scale } else { f32::INFINITY };
        // What is added where nothing is leaves the sign of zero alone.
        Scaling { divisor, shift: if zero == 0.0 { -0.0 } else { zero }, zero, scale, bias: 0.0 }
    }

    /// By a scale and a bias as they are read.
    pub(crate) fn on_bias(scale: f32, bias: f32) -> Self {
        Scaling { bias, ..Scaling::new(scale, 0.0) }
    }

    /// What of an element a code stands for.
    #[inline(always)]
    pub(super) fn above<C: Round>(&self, x: f32) -> f32 {
        if C::BIASED {
            x - self.bias
        } else {
            x
        }
    }
}
