//! The numbers that codes stand for, and rounding to them: elementwise, without a branch, as [`super::group`] wants it.

/// What a code stands for before its scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Code {
    /// Eight bits, up to 448, no infinity.
    E4M3,
    /// Eight bits, up to 57344.
    E5M2,
    /// Four bits: 0, ½, 1, 1½, 2, 3, 4, 6.
    E2M1,
    /// Integers of so many bits, two's complement.
    Signed(u32),
    /// Integers of so many bits, stored with half their range added.
    Offset(u32),
    /// Integers of so many bits, from zero on, counted from a bias of their group.
    Unsigned(u32),
}

impl Code {
    /// The largest number.
    pub(crate) fn top(self) -> f32 {
        match self {
            Code::E4M3 => 448.0,
            Code::E5M2 => 57344.0,
            Code::E2M1 => 6.0,
            Code::Signed(bits) | Code::Offset(bits) => (half(bits) - 1) as f32,
            Code::Unsigned(bits) => ((1u32 << bits) - 1) as f32,
        }
    }

    /// The magnitude of the smallest.
    pub(crate) fn bottom(self) -> f32 {
        match self {
            Code::Signed(bits) | Code::Offset(bits) => half(bits) as f32,
            Code::Unsigned(_) => 0.0,
            float => float.top(),
        }
    }

    /// Bits of a code.
    pub(crate) fn bits(self) -> u32 {
        match self {
            Code::E4M3 | Code::E5M2 => 8,
            Code::E2M1 => 4,
            Code::Signed(bits) | Code::Offset(bits) | Code::Unsigned(bits) => bits,
        }
    }

    /// Whether codes are counted from a bias.
    pub(crate) fn is_biased(self) -> bool {
        matches!(self, Code::Unsigned(_))
    }
}

/// Half of the range of integers of so many bits.
pub(crate) fn half(bits: u32) -> i32 {
    1 << (bits - 1)
}

/// Rounding of one element: the number, and the code that stands for it.
pub(super) trait Round: Copy {
    /// Whether codes are counted from a bias.
    const BIASED: bool = false;

    /// To nearest, ties to even, at most the largest number.
    fn nearest(self, y: f32) -> (f32, u32);

    /// Down or up, with a probability by the distance.
    fn drawn(self, y: f32, draw: u32) -> (f32, u32);
}

/// A float with `MANTISSA` stored bits and the smallest normal exponent `MINIMUM`; whether it has a code for NaN.
#[derive(Clone, Copy)]
pub(super) struct Small<const MANTISSA: u32, const MINIMUM: i32, const NAN: bool> {
    pub top: f32,
}

pub(super) const E4M3: Small<3, -6, true> = Small { top: 448.0 };
pub(super) const E5M2: Small<2, -14, true> = Small { top: 57344.0 };
pub(super) const E2M1: Small<1, 0, false> = Small { top: 6.0 };

/// Integers, clamped, and what is added to one where it is stored.
#[derive(Clone, Copy)]
pub(super) struct Integer {
    low: f32,
    high: f32,
    added: i32,
}

impl Integer {
    pub(super) fn new(bits: u32, added: bool) -> Self {
        let half = half(bits);
        Integer { low: -half as f32, high: (half - 1) as f32, added: if added { half } else { 0 } }
    }

    #[inline(always)]
    fn clamped(self, y: f32) -> f32 {
        let y = if y > self.high { self.high } else { y };
        let y = if y < self.low { self.low } else { y };
        // There is no code for NaN.
        if y.is_nan() {
            0.0
        } else {
            y
        }
    }
}

/// Integers from zero on, counted from a bias.
#[derive(Clone, Copy)]
pub(super) struct Unsigned(Integer);

impl Unsigned {
    pub(super) fn new(bits: u32) -> Self {
        Unsigned(Integer { low: 0.0, high: Code::Unsigned(bits).top(), added: 0 })
    }
}

impl<const MANTISSA: u32, const MINIMUM: i32, const NAN: bool> Small<MANTISSA, MINIMUM, NAN> {
    const SHIFT: u32 = 23 - MANTISSA;
    /// From where the sign is in f32 to where it is in a code: of eight bits, or with a single mantissa bit of four.
    const SIGN: u32 = if MANTISSA == 1 { 28 } else { 24 };
    /// Bits of the smallest normal number.
    const NORMAL: u32 = ((127 + MINIMUM) as u32) << 23;
    /// A number whose neighbours are as far apart as the numbers below the normal ones.
    const MAGIC: u32 = ((127 + 23 + MINIMUM - MANTISSA as i32) as u32) << 23;

    #[inline(always)]
    fn clamped(self, y: f32) -> f32 {
        let y = if y > self.top { self.top } else { y };
        if y < -self.top {
            -self.top
        } else {
            y
        }
    }
}

impl<const MANTISSA: u32, const MINIMUM: i32, const NAN: bool> Round for Small<MANTISSA, MINIMUM, NAN> {
    #[inline(always)]
    fn nearest(self, y: f32) -> (f32, u32) {
        let bits = self.clamped(y).to_bits();
        let (sign, magnitude) = (bits & 0x8000_0000, bits & 0x7FFF_FFFF);
        let shift = Self::SHIFT;
        let rounded = magnitude.wrapping_add(((1 << (shift - 1)) - 1) + ((magnitude >> shift) & 1)) >> shift;
        let normal = rounded.wrapping_sub(((126 + MINIMUM) as u32) << MANTISSA);
        let magic = f32::from_bits(Self::MAGIC);
        let sum = f32::from_bits(magnitude) + magic;
        let small = sum.to_bits().wrapping_sub(Self::MAGIC);
        let is_small = magnitude < Self::NORMAL;
        let code = if is_small { small } else { normal };
        let value = if is_small { (sum - magic).to_bits() } else { rounded << shift };
        let code = code | (sign >> Self::SIGN);
        let is_nan = magnitude > 0x7F80_0000;
        if NAN {
            (if is_nan { y } else { f32::from_bits(value | sign) }, if is_nan { code | 0x7F } else { code })
        } else {
            (if is_nan { 0.0 } else { f32::from_bits(value | sign) }, if is_nan { 0 } else { code })
        }
    }

    #[inline(always)]
    fn drawn(self, y: f32, draw: u32) -> (f32, u32) {
        let y = self.clamped(y);
        let magnitude = y.to_bits() & 0x7FFF_FFFF;
        let exponent = (magnitude & 0x7F80_0000).max(Self::NORMAL);
        // Powers of two: exact.
        let step = f32::from_bits(exponent - (MANTISSA << 23));
        let count = f32::from_bits(magnitude) * f32::from_bits((254 << 23) - step.to_bits());
        let below = count.floor();
        let up = chance(draw) < count - below;
        let value = (below + if up { 1.0 } else { 0.0 }) * step;
        self.nearest(if y.is_nan() { y } else { f32::copysign(value, y) })
    }
}

impl Round for Integer {
    #[inline(always)]
    fn nearest(self, y: f32) -> (f32, u32) {
        const MAGIC: f32 = 12_582_912.0;
        let sum = self.clamped(y) + MAGIC;
        let integer = (sum.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
        (sum - MAGIC, integer.wrapping_add(self.added) as u32)
    }

    #[inline(always)]
    fn drawn(self, y: f32, draw: u32) -> (f32, u32) {
        let y = self.clamped(y);
        let below = y.floor();
        let up = chance(draw) < y - below;
        self.nearest(below + if up { 1.0 } else { 0.0 })
    }
}

impl Round for Unsigned {
    const BIASED: bool = true;

    #[inline(always)]
    fn nearest(self, y: f32) -> (f32, u32) {
        self.0.nearest(y)
    }

    #[inline(always)]
    fn drawn(self, y: f32, draw: u32) -> (f32, u32) {
        self.0.drawn(y, draw)
    }
}

/// Uniform in [0, 1), of 24 bits.
#[inline(always)]
fn chance(draw: u32) -> f32 {
    ((draw >> 8) as i32) as f32 * (1.0 / 16_777_216.0)
}
