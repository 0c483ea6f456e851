//! How tools choose the scale of a group.

use serde::Deserialize;

use super::code::Code;
use super::scale::{up, ScaleType};
use super::scaling::Scaling;
use super::seen::Seen;

/// A rule as a plan names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Rule {
    /// None: the target's scale alone.
    Own,
    /// Magnitude over the largest code.
    #[serde(rename = "amax_448")]
    Amax448,
    /// The same through a reciprocal, by which elements are multiplied: transformers.
    #[serde(rename = "amax_448_reciprocal")]
    Amax448Reciprocal,
    /// The same, up to the next power of two.
    Ue8m0,
    /// The same in the scales' type: compressed-tensors.
    #[serde(rename = "ct_448")]
    Ct448,
    /// Magnitude over the largest integer.
    #[serde(rename = "amax_127")]
    Amax127,
    /// Magnitude over half the range, in the scales' type: compressed-tensors.
    #[serde(rename = "ct_127")]
    Ct127,
    /// Magnitude over the largest integer.
    #[serde(rename = "amax_7")]
    Amax7,
    /// What is needed above zero or below it.
    Pair,
    /// Magnitude over half the range, or range over range with a zero point, in the scales' type: compressed-tensors.
    Ct,
    /// Powers of two: compressed-tensors.
    MxCt,
    /// Powers of two, down: the magnitude may be clamped.
    MxFloor,
    /// Powers of two, up.
    MxCeil,
    /// Powers of two, by the nearest magnitude.
    MxEven,
    /// Powers of two, up from the magnitude over the largest code.
    MxRceil,
    /// Under a global scale.
    Nvfp4,
    /// From the edge that is farther from zero to the other, with zero among the numbers: MLX.
    Mlx,
}

/// A scale made for a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fresh {
    /// As it is stored.
    pub bits: u32,
    /// The code that stands for zero.
    pub zero: f32,
    /// What elements are multiplied by, where the rule does not divide by the scale.
    pub reciprocal: Option<f32>,
    /// What codes are counted from, as it is stored.
    pub bias: u32,
}

impl Fresh {
    /// A scale as it is stored.
    pub(crate) fn new(bits: u32, zero: f32) -> Self {
        Fresh { bits, zero, reciprocal: None, bias: 0 }
    }
}

/// What a rule needs to know besides the group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// The rule.
    pub rule: Rule,
    /// The codes.
    pub code: Code,
    /// The scales.
    pub scales: ScaleType,
    /// The biases, where there are any.
    pub biases: ScaleType,
    /// Scales are multiplied, or divided, by a number for the whole tensor.
    pub global: Option<Global>,
    /// Whether zero has a code of its own in each group.
    pub zeros: bool,
    /// The type in which the rule's own tool computes: that of the numbers.
    pub tool: ScaleType,
    /// The scale may not be so small that an element is clamped: what is rounded by draws would be off on average.
    pub covering: bool,
}

/// A number for the whole tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Global {
    /// Scale = stored · this.
    Times(f32),
    /// Scale = stored / this.
    Over(f32),
}

/// Magnitudes below this count as this much: DeepSeek.
const LEAST: f32 = 1e-4;

/// No scale is smaller: MLX.
const EPSILON: f32 = 1e-7;

impl Setting {
    /// The scale that stored bits are.
    pub(crate) fn scale(&self, bits: u32) -> f32 {
        let stored = self.scales.value(bits);
        match self.global {
            None => stored,
            Some(Global::Times(global)) => stored * global,
            Some(Global::Over(global)) => stored / global,
        }
    }

    /// How a group is encoded under a scale.
    pub(crate) fn scaling(&self, fresh: &Fresh) -> Scaling {
        let scale = self.scale(fresh.bits);
        if self.code.is_biased() {
            return Scaling::on_bias(scale, self.biases.value(fresh.bias));
        }
        Scaling::new(scale, fresh.zero)
    }

    /// The scale of a group by the rule; none where there is no rule.
    pub(crate) fn fresh(&self, seen: &Seen) -> Option<Fresh> {
        let mut fresh = self.by_rule(seen)?;
        if self.code.is_biased() {
            return Some(fresh);
        }
        let most = self.scales.most();
        // A group that is not zero has a scale that is not, and any has one that is finite.
        let least = u32::from(seen.amax() > 0.0 && self.scales != ScaleType::E8M0);
        fresh.bits = fresh.bits.clamp(least, most);
        if self.covering && !self.zeros {
            while fresh.bits < most && !self.covers(&Fresh { zero: 0.0, ..fresh }, seen) {
                (fresh.bits, fresh.reciprocal) = (fresh.bits + 1, None);
            }
        }
        Some(fresh)
    }

    /// Whether no element is clamped under a scale.
    pub(crate) fn covers(&self, fresh: &Fresh, seen: &Seen) -> bool {
        let Scaling { scale, zero, bias, .. } = self.scaling(fresh);
        if self.code.is_biased() {
            let end = self.code.top() * scale + bias;
            return seen.range.is_none_or(|[low, high]| bias.min(end) <= low && high <= bias.max(end));
        }
        let scale = scale.abs();
        let (top, bottom) = (self.code.top() - zero, self.code.bottom() + zero);
        seen.high <= top * scale && seen.low <= bottom * scale
    }

    fn by_rule(&self, seen: &Seen) -> Option<Fresh> {
        let (amax, top, scales) = (seen.amax(), self.code.top(), self.scales);
        let plain = |scale: f32| Some(Fresh::new(scales.bits(scale), 0.0));
        let exponent = |bits: u32| {
            let bits = if scales == ScaleType::E8M0 { bits } else { (bits.max(1)) << 23 };
            let bits = if scales == ScaleType::E8M0 { bits } else { scales.bits(f32::from_bits(bits)) };
            Some(Fresh::new(bits, 0.0))
        };
        // The exponent of the largest code.
        let largest = (top.to_bits() >> 23) - 127;
        let bits = amax.to_bits();
        match self.rule {
            Rule::Own => None,
            Rule::Amax448 => plain(amax.max(if amax > 0.0 { 0.0 } else { LEAST }) / top),
            Rule::Amax127 | Rule::Amax7 => plain(if amax > 0.0 { amax / top } else { 1.0 }),
            Rule::Amax448Reciprocal => {
                let reciprocal = reciprocal(amax, top);
                let reciprocal = reciprocal.filter(|r| r.is_finite());
                let scale = reciprocal.map_or(amax / top, |r| 1.0 / r);
                let reciprocal = reciprocal.filter(|_| scales == ScaleType::F32);
                Some(Fresh { reciprocal, ..Fresh::new(scales.bits(scale), 0.0) })
            }
            Rule::Ue8m0 => {
                let scale = reciprocal(amax, top).filter(|r| r.is_finite()).map_or(amax / top, |r| 1.0 / r);
                exponent(up(scale.max(f32::MIN_POSITIVE).to_bits()))
            }
            Rule::Ct448 => plain(self.or_epsilon(self.tool.round(amax / top))),
            Rule::Ct127 => plain(self.or_epsilon(self.tool.round(amax / self.middle()))),
            Rule::Ct if self.zeros => Some(self.range(seen)),
            Rule::Ct => plain(self.or_epsilon(self.tool.round(amax / self.middle()))),
            Rule::Pair => {
                let scale = (seen.high / top).max(seen.low / self.code.bottom());
                plain(if scale > 0.0 { scale } else { 1.0 })
            }
            Rule::MxCt if amax == 0.0 => exponent(0),
            // The offset is that of four-bit floats.
            Rule::MxCt => exponent((bits.saturating_add(1 << 21) >> 23).saturating_sub(if self.code == Code::E2M1 {
                2
            } else {
                8
            })),
            Rule::MxFloor => exponent((bits >> 23).saturating_sub(largest)),
            Rule::MxCeil if self.code == Code::E2M1 => exponent(up((amax / top).to_bits())),
            Rule::MxCeil => exponent(up(bits).saturating_sub(largest)),
            Rule::MxEven => exponent((bits.saturating_add(1 << 19) >> 23).saturating_sub(largest)),
            Rule::MxRceil => exponent(up((amax * (1.0 / top)).to_bits())),
            Rule::Nvfp4 => Some(self.under_global(amax)),
            Rule::Mlx => Some(self.on_bias(seen)),
        }
    }

    /// A scale, of either sign, and a bias: codes are counted from the edge that is farther from zero, and one of them
    /// stands for zero if that edge is at least half a step away.
    fn on_bias(&self, seen: &Seen) -> Fresh {
        let ([low, high], top) = (seen.range.unwrap_or([0.0; 2]), self.code.top());
        let is_low = low.abs() > high.abs();
        let (edge, sign) = if is_low { (low, 1.0) } else { (high, -1.0) };
        let width = high - low;
        // It may not be finite where the edges are.
        let step = if width.is_finite() { width / top } else { high / top - low / top };
        let step = step.max(EPSILON) * sign;
        let count = (edge / step).round_ties_even();
        let (scale, bias) = if count == 0.0 { (step, 0.0) } else { (edge / count, edge) };
        let made = |scale: f32, bias: f32| Fresh {
            bias: nearest(self.biases, bias),
            ..Fresh::new(nearest(self.scales, scale), 0.0)
        };
        let mut fresh = made(scale, bias);
        if !self.covering || self.covers(&fresh, seen) {
            return fresh;
        }
        fresh = made(step, edge);
        if self.biases.value(fresh.bias).abs() < edge.abs() {
            fresh.bias += 1;
        }
        while fresh.bits & !self.scales.sign() < self.scales.most() && !self.covers(&fresh, seen) {
            fresh.bits += 1;
        }
        fresh
    }

    /// Half the range of the integers.
    fn middle(&self) -> f32 {
        self.code.top() + 0.5
    }

    fn or_epsilon(&self, scale: f32) -> f32 {
        if scale == 0.0 {
            self.tool.epsilon()
        } else {
            scale
        }
    }

    fn under_global(&self, amax: f32) -> Fresh {
        let sixth = self.tool.round(amax / self.code.top());
        let (scale, if_zero) = match self.global {
            None => (amax / self.code.top(), 0.0),
            Some(Global::Times(global)) => (amax / (self.code.top() * global), 1.0),
            Some(Global::Over(global)) => (global * sixth, 0.125),
        };
        let bits = self.scales.bits(scale);
        Fresh::new(if bits == 0 { self.scales.bits(if_zero) } else { bits }, 0.0)
    }

    /// From the smallest to the largest number, with zero among them.
    fn range(&self, seen: &Seen) -> Fresh {
        let (fl, steps) = (|x: f32| self.tool.round(x), self.code.top() + self.code.bottom());
        let scale = self.or_epsilon(fl(fl(seen.high + seen.low) / steps));
        let zero = fl(-self.code.bottom() - fl(-seen.low / scale)).clamp(-self.code.bottom(), self.code.top());
        Fresh::new(self.scales.bits(scale), zero.round_ties_even())
    }

    /// How a group is encoded under a scale made for it, as the rule's own tool does: elements to be rounded, where
    /// those are not quotients of a division in f32, are put into `x`.
    pub(crate) fn quotients(&self, fresh: &Fresh, x: &mut [f32]) -> Scaling {
        let plain = self.scaling(fresh);
        let fl = |x: f32| self.tool.round(x);
        let in_type = matches!(self.rule, Rule::Ct448 | Rule::Ct127 | Rule::Ct);
        if let Some(reciprocal) = fresh.reciprocal {
            x.iter_mut().for_each(|x| *x *= reciprocal);
        } else if in_type && self.tool != ScaleType::F32 {
            x.iter_mut().for_each(|x| *x = fl(fl(*x / plain.divisor) + plain.shift));
        } else {
            return plain;
        }
        Scaling { divisor: 1.0, shift: -0.0, ..plain }
    }
}

/// The bits of the nearest finite number of either sign.
fn nearest(kind: ScaleType, x: f32) -> u32 {
    let bits = kind.bits(x);
    bits & kind.sign() | (bits & !kind.sign()).min(kind.most())
}

/// fl(fl(1/amax) · top); 1 for zero.
fn reciprocal(amax: f32, top: f32) -> Option<f32> {
    Some(if amax > 0.0 { 1.0 / amax * top } else { 1.0 })
}
