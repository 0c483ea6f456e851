//! Stored bytes → compute type. Every conversion is exact; NaN payloads are kept where the wider type has them.
//!
//! Each function says whether it saw a value that is not finite, from an integer maximum over the bit patterns that
//! costs next to nothing compared with the conversion.

use super::dispatch::Level;
use super::real::Real;
use crate::dtype::Dtype;

/// Widens `bytes` (elements of `dtype`, little endian, any alignment) into `out`; true if all were finite.
///
/// # Panics
/// If `bytes` does not hold exactly `out.len()` elements or `dtype` has no values that are floats.
pub fn widen<R: Real>(level: Level, dtype: Dtype, bytes: &[u8], out: &mut [R]) -> bool {
    assert_eq!(bytes.len(), out.len() * dtype.size(), "whole elements");
    match dtype {
        Dtype::BF16 => bf16(level, bytes, out),
        Dtype::F16 => f16(level, bytes, out),
        Dtype::F32 => f32_(level, bytes, out),
        Dtype::F64 => f64_(level, bytes, out),
        Dtype::F8E4M3 => table(level, bytes, &E4M3, out),
        Dtype::F8E5M2 => table(level, bytes, &E5M2, out),
        Dtype::F8E8M0 => e8m0(level, bytes, out),
        other => panic!("arithmetic on {other}"),
    }
}

kernel! {
    fn bf16<R>(bytes: &[u8], out: &mut [R]) -> bool {
        let (pairs, _) = bytes.as_chunks::<2>();
        let mut top = 0u16;
        for (slot, pair) in out.iter_mut().zip(pairs) {
            let bits = u16::from_le_bytes(*pair);
            top = top.max(bits & 0x7FFF);
            *slot = R::from_f32(f32::from_bits(u32::from(bits) << 16));
        }
        top < 0x7F80
    }
}

kernel! {
    fn f16<R>(bytes: &[u8], out: &mut [R]) -> bool {
        let (pairs, _) = bytes.as_chunks::<2>();
        let mut top = 0u16;
        for (slot, pair) in out.iter_mut().zip(pairs) {
            let bits = u16::from_le_bytes(*pair);
            top = top.max(bits & 0x7FFF);
            *slot = R::from_f32(half_to_single(bits));
        }
        top < 0x7C00
    }
}

/// Rebias by a multiplication, which also turns subnormals into the normal numbers they are.
#[inline(always)]
fn half_to_single(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7FFF);
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((254 - 15) << 23);
    let special = (magnitude << 13) | 0x7F80_0000;
    let wide = if magnitude >= 0x7C00 { special } else { scaled.to_bits() };
    f32::from_bits(wide | u32::from(bits & 0x8000) << 16)
}

kernel! {
    fn f32_<R>(bytes: &[u8], out: &mut [R]) -> bool {
        let (words, _) = bytes.as_chunks::<4>();
        let mut top = 0u32;
        for (slot, word) in out.iter_mut().zip(words) {
            let bits = u32::from_le_bytes(*word);
            top = top.max(bits & 0x7FFF_FFFF);
            *slot = R::from_f32(f32::from_bits(bits));
        }
        top < 0x7F80_0000
    }
}

kernel! {
    fn f64_<R>(bytes: &[u8], out: &mut [R]) -> bool {
        let (words, _) = bytes.as_chunks::<8>();
        let mut top = 0u64;
        for (slot, word) in out.iter_mut().zip(words) {
            let bits = u64::from_le_bytes(*word);
            top = top.max(bits & 0x7FFF_FFFF_FFFF_FFFF);
            *slot = R::from_f64(f64::from_bits(bits));
        }
        top < 0x7FF0_0000_0000_0000
    }
}

kernel! {
    fn table<R>(bytes: &[u8], values: &[f32; 256], out: &mut [R]) -> bool {
        let mut finite = true;
        for (slot, byte) in out.iter_mut().zip(bytes) {
            let value = values[usize::from(*byte)];
            finite &= value.is_finite();
            *slot = R::from_f32(value);
        }
        finite
    }
}

kernel! {
    /// Powers of two, 2^(b − 127): the smallest is below the normal numbers of f32, all ones are NaN.
    fn e8m0<R>(bytes: &[u8], out: &mut [R]) -> bool {
        let mut top = 0u8;
        for (slot, byte) in out.iter_mut().zip(bytes) {
            top = top.max(*byte);
            let bits = match *byte {
                0 => 0x0040_0000,
                255 => 0x7FC0_0000,
                exponent => u32::from(exponent) << 23,
            };
            *slot = R::from_f32(f32::from_bits(bits));
        }
        top < 255
    }
}

static E4M3: [f32; 256] = eighth(4, 3, true);
static E5M2: [f32; 256] = eighth(5, 2, false);

/// All values of an 8-bit float; `only_nan`: no infinities, and NaN is the all-ones pattern alone (E4M3FN).
const fn eighth(exponent_bits: u32, mantissa_bits: u32, only_nan: bool) -> [f32; 256] {
    let mut values = [0.0f32; 256];
    let bias = (1u32 << (exponent_bits - 1)) - 1;
    let mut code = 0u32;
    while code < 256 {
        let magnitude = code & 0x7F;
        let exponent = magnitude >> mantissa_bits;
        let mantissa = magnitude & ((1 << mantissa_bits) - 1);
        let last = (1 << exponent_bits) - 1;
        let sign = (code >> 7) << 31;
        let bits = if only_nan && magnitude == 0x7F {
            0x7FC0_0000
        } else if !only_nan && exponent == last {
            0x7F80_0000 | (mantissa << (23 - mantissa_bits))
        } else if exponent > 0 {
            ((exponent + 127 - bias) << 23) | (mantissa << (23 - mantissa_bits))
        } else if mantissa > 0 {
            // mantissa × 2^(1 − bias − mantissa_bits), normal in f32: find its leading bit
            let lead = 31 - mantissa.leading_zeros();
            ((lead + 1 + 127 - bias - mantissa_bits) << 23) | ((mantissa << (23 - lead)) & 0x007F_FFFF)
        } else {
            0
        };
        values[code as usize] = f32::from_bits(bits | sign);
        code += 1;
    }
    values
}

kernel! {
    /// How many values are NaN or infinite.
    pub(crate) fn count_non_finite<R>(values: &[R]) -> u64 {
        values.iter().map(|x| u64::from(!x.is_finite())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_16_bit_pattern_at_every_level() {
        // Some of every exponent, and with them every kind, under Miri.
        let all: Vec<u16> = (0..=u16::MAX).step_by(if cfg!(miri) { 61 } else { 1 }).collect();
        let bytes: Vec<u8> = all.iter().copied().flat_map(u16::to_le_bytes).collect();
        for level in Level::available() {
            let (mut bf, mut hf) = (vec![0f32; all.len()], vec![0f32; all.len()]);
            widen(level, Dtype::BF16, &bytes, &mut bf);
            widen(level, Dtype::F16, &bytes, &mut hf);
            for (i, bits) in all.iter().enumerate() {
                assert_eq!(bf[i].to_bits(), u32::from(*bits) << 16);
                let (got, want) = (hf[i], half::f16::from_bits(*bits).to_f32());
                assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:04x} {got} {want}");
            }
        }
    }

    #[test]
    fn eight_bit_values_by_their_definition() {
        for (code, value) in E4M3.iter().enumerate() {
            let (s, e, m) = (code >> 7, (code >> 3) & 15, (code & 7) as f64);
            let sign = if s == 1 { -1.0 } else { 1.0 };
            let want = match (e, code & 0x7F) {
                (_, 0x7F) => f64::NAN,
                (0, _) => sign * m / 8.0 * 2f64.powi(-6),
                _ => sign * (1.0 + m / 8.0) * 2f64.powi(e as i32 - 7),
            };
            assert!(f64::from(*value) == want || value.is_nan() && want.is_nan(), "{code:02x}");
        }
        for (code, value) in E5M2.iter().enumerate() {
            let want = half::f16::from_bits((code as u16) << 8).to_f32();
            assert!(*value == want || value.is_nan() && want.is_nan(), "{code:02x}");
        }
    }

    #[test]
    fn powers_of_two_by_their_definition() {
        let bytes: Vec<u8> = (0..=255).collect();
        for level in Level::available() {
            let mut out = vec![0f64; 256];
            assert!(!widen(level, Dtype::F8E8M0, &bytes, &mut out));
            assert!(out[255].is_nan() && widen(level, Dtype::F8E8M0, &bytes[..255], &mut out[..255]));
            for (code, value) in out[..255].iter().enumerate() {
                assert_eq!(*value, 2f64.powi(code as i32 - 127));
            }
        }
    }

    #[test]
    fn non_finite_is_noticed_at_every_position_and_alignment() {
        for level in Level::available() {
            for (dtype, bad) in [
                (Dtype::BF16, half::bf16::INFINITY.to_le_bytes().to_vec()),
                (Dtype::F16, half::f16::NAN.to_le_bytes().to_vec()),
                (Dtype::F32, f32::NEG_INFINITY.to_le_bytes().to_vec()),
                (Dtype::F64, f64::NAN.to_le_bytes().to_vec()),
                (Dtype::F8E4M3, vec![0xFF]),
                (Dtype::F8E5M2, vec![0x7C]),
                (Dtype::F8E8M0, vec![0xFF]),
            ] {
                let size = dtype.size();
                for length in [1usize, 3, 17, 64, 131] {
                    let mut padded = vec![0u8; length * size + 1];
                    let mut out = vec![0f64; length];
                    assert!(widen(level, dtype, &padded[1..], &mut out));
                    for at in [0, length / 2, length - 1] {
                        padded[1 + at * size..1 + (at + 1) * size].copy_from_slice(&bad);
                        assert!(!widen(level, dtype, &padded[1..], &mut out), "{dtype} {length} {at}");
                        assert_eq!(count_non_finite(level, &out), 1);
                        padded[1 + at * size..1 + (at + 1) * size].fill(0);
                    }
                }
            }
        }
    }
}
