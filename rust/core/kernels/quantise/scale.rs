//! Scales as they are stored.

use super::code::{Round, E4M3};
use crate::dtype::Dtype;
use crate::kernels::narrow::{narrow, nearest_bf16, Rounding};
use crate::kernels::widen::widen;
use crate::kernels::Level;

/// The type that scales are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScaleType {
    F32,
    BF16,
    F16,
    /// A power of two: the exponent alone.
    E8M0,
    /// Of groups of sixteen, under a global scale.
    E4M3,
}

/// The bits of NaN among exponents.
const NO_EXPONENT: u32 = 255;

impl ScaleType {
    /// The type that a header names, if scales can have it.
    pub(crate) fn of(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F32 => ScaleType::F32,
            Dtype::BF16 => ScaleType::BF16,
            Dtype::F16 => ScaleType::F16,
            Dtype::U8 | Dtype::F8E8M0 => ScaleType::E8M0,
            Dtype::F8E4M3 => ScaleType::E4M3,
            _ => return None,
        })
    }

    /// Bytes of one.
    pub(crate) fn size(self) -> usize {
        match self {
            ScaleType::F32 => 4,
            ScaleType::BF16 | ScaleType::F16 => 2,
            ScaleType::E8M0 | ScaleType::E4M3 => 1,
        }
    }

    /// The number that stored bits are.
    pub(crate) fn value(self, bits: u32) -> f32 {
        match self {
            ScaleType::F32 => f32::from_bits(bits),
            ScaleType::BF16 => f32::from_bits(bits << 16),
            ScaleType::F16 => wide(Dtype::F16, &(bits as u16).to_le_bytes()),
            ScaleType::E4M3 => wide(Dtype::F8E4M3, &[bits as u8]),
            ScaleType::E8M0 => match bits {
                0 => f32::from_bits(1 << 22),
                NO_EXPONENT => f32::NAN,
                exponent => f32::from_bits(exponent << 23),
            },
        }
    }

    /// The nearest that can be stored to a number that is not negative; of powers of two, the next one up.
    pub(crate) fn bits(self, scale: f32) -> u32 {
        match self {
            ScaleType::F32 => scale.to_bits(),
            ScaleType::BF16 => nearest_bf16(scale),
            ScaleType::F16 => u32::from(u16::from_le_bytes(short(Dtype::F16, scale))),
            ScaleType::E8M0 => up(scale.to_bits()),
            ScaleType::E4M3 => E4M3.nearest(scale).1,
        }
    }

    /// Rounds a number to the type, for tools that compute in it.
    pub(crate) fn round(self, x: f32) -> f32 {
        match self {
            ScaleType::BF16 => f32::from_bits(nearest_bf16(x) << 16),
            ScaleType::F16 => wide(Dtype::F16, &short(Dtype::F16, x)),
            ScaleType::F32 | ScaleType::E8M0 | ScaleType::E4M3 => x,
        }
    }

    /// The largest bits of a number.
    pub(crate) fn most(self) -> u32 {
        match self {
            ScaleType::F32 => f32::MAX.to_bits(),
            ScaleType::BF16 => 0x7F7F,
            ScaleType::F16 => 0x7BFF,
            ScaleType::E8M0 => 254,
            ScaleType::E4M3 => 0x7E,
        }
    }

    /// The bit of the sign, of those that can be negative.
    pub(crate) fn sign(self) -> u32 {
        match self {
            ScaleType::F32 => 1 << 31,
            ScaleType::BF16 | ScaleType::F16 => 1 << 15,
            ScaleType::E8M0 | ScaleType::E4M3 => 0,
        }
    }

    /// What 1 is followed by, less 1: of the type that a tool computes in.
    pub(crate) fn epsilon(self) -> f32 {
        match self {
            ScaleType::BF16 => 0.007_812_5,
            ScaleType::F16 => 0.000_976_562_5,
            ScaleType::F32 | ScaleType::E8M0 | ScaleType::E4M3 => f32::EPSILON,
        }
    }

    /// Bits as they are stored.
    pub(crate) fn store(self, bits: u32, bytes: &mut [u8]) {
        bytes.copy_from_slice(&bits.to_le_bytes()[..self.size()]);
    }

    /// Stored bits.
    pub(crate) fn load(self, bytes: &[u8]) -> u32 {
        let mut word = [0; 4];
        word[..self.size()].copy_from_slice(bytes);
        u32::from_le_bytes(word)
    }
}

/// The exponent of the next power of two up from a positive number, in bits; 0 for none.
pub(super) fn up(bits: u32) -> u32 {
    (bits.saturating_add(0x7F_FFFF) >> 23).min(254)
}

fn short(dtype: Dtype, x: f32) -> [u8; 2] {
    let mut bytes = [0; 2];
    narrow(Level::SCALAR, dtype, &mut [x], Rounding::Nearest, &mut bytes);
    bytes
}

fn wide(dtype: Dtype, bytes: &[u8]) -> f32 {
    let mut out = [0f32];
    widen(Level::SCALAR, dtype, bytes, &mut out);
    out[0]
}
