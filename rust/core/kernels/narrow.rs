//! Compute type → stored bytes, rounded once: to nearest even with subnormals kept, or stochastically.
//!
//! One method serves every format: values are first rounded to the format's grid (its spacing at that magnitude),
//! where they are exact, then re-encoded. Each function leaves the rounded values behind, so that what was stored can
//! be measured without reading it back, and says whether all of them are finite. NaN stays NaN, quiet, with the payload bits that fit, and never becomes an
//! infinity; the `vcvtneps2bf16` instruction is not used because it flushes subnormals.

use super::dispatch::Level;
use super::real::Real;
use crate::dtype::Dtype;

/// How to round.
#[derive(Clone, Copy, Debug)]
pub enum Rounding<'a> {
    /// To nearest, ties to even.
    Nearest,
    /// Up or down with probability by distance, from one uniform draw per element: unbiased.
    Stochastic(&'a [u32]),
}

/// Narrows `values` to `dtype` into `bytes` (little endian, any alignment); `values` then hold what was stored. True if
/// all of it is finite.
///
/// # Panics
/// If the lengths do not agree or `dtype` is not a float type.
pub fn narrow<R: Real>(level: Level, dtype: Dtype, values: &mut [R], rounding: Rounding<'_>, bytes: &mut [u8]) -> bool {
    assert_eq!(bytes.len(), values.len() * dtype.size(), "whole elements");
    if let Rounding::Stochastic(draws) = rounding {
        assert_eq!(draws.len(), values.len(), "one draw per element");
    }
    match (dtype, rounding) {
        (Dtype::BF16, Rounding::Nearest) => bf16(level, values, bytes),
        (Dtype::BF16, Rounding::Stochastic(draws)) => bf16_stochastic(level, values, draws, bytes),
        (Dtype::F16, Rounding::Nearest) => f16(level, values, bytes),
        (Dtype::F16, Rounding::Stochastic(draws)) => f16_stochastic(level, values, draws, bytes),
        (Dtype::F32, Rounding::Nearest) => f32_(level, values, bytes),
        (Dtype::F32, Rounding::Stochastic(draws)) => f32_stochastic(level, values, draws, bytes),
        (Dtype::F64, _) => f64_(level, values, bytes),
        (Dtype::F8E4M3, Rounding::Nearest) => e4m3(level, values, bytes),
        (Dtype::F8E4M3, Rounding::Stochastic(draws)) => e4m3_stochastic(level, values, draws, bytes),
        (Dtype::F8E5M2, Rounding::Nearest) => e5m2(level, values, bytes),
        (Dtype::F8E5M2, Rounding::Stochastic(draws)) => e5m2_stochastic(level, values, draws, bytes),
        (other, _) => panic!("arithmetic on {other}"),
    }
}

/// A binary format with `MANTISSA` stored bits, smallest normal exponent `MINIMUM`, largest finite value `LARGEST`.
trait Format {
    const MANTISSA: i32;
    const MINIMUM: i32;
    const LARGEST: f64;
}
struct Bf16;
struct F16;
struct F32;
struct E4M3;
struct E5M2;
impl Format for Bf16 {
    const MANTISSA: i32 = 7;
    const MINIMUM: i32 = -126;
    const LARGEST: f64 = 3.389_531_389_251_535_5e38;
}
impl Format for F16 {
    const MANTISSA: i32 = 10;
    const MINIMUM: i32 = -14;
    const LARGEST: f64 = 65504.0;
}
impl Format for F32 {
    const MANTISSA: i32 = 23;
    const MINIMUM: i32 = -126;
    const LARGEST: f64 = f32::MAX as f64;
}
impl Format for E4M3 {
    const MANTISSA: i32 = 3;
    const MINIMUM: i32 = -6;
    const LARGEST: f64 = 448.0;
}
impl Format for E5M2 {
    const MANTISSA: i32 = 2;
    const MINIMUM: i32 = -14;
    const LARGEST: f64 = 57344.0;
}

/// 2^`exponent` for exponents of normal f64 numbers.
#[inline(always)]
const fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// The spacing of the format's numbers at the magnitude of finite `x`.
#[inline(always)]
fn spacing<F: Format>(x: f64) -> f64 {
    let exponent = f64::from_bits(x.to_bits() & 0x7FF0_0000_0000_0000); // 2^⌊log2 |x|⌋, 0 for subnormal f64
    let floor = if exponent < power(F::MINIMUM) { power(F::MINIMUM) } else { exponent };
    floor * power(-F::MANTISSA)
}

/// `x` rounded to nearest even on the format's grid; beyond the largest value an infinity. NaN and infinities pass.
#[inline(always)]
fn nearest<F: Format>(x: f64) -> f64 {
    // Adding 1.5 × 2^52 spacings leaves exactly the grid's digits; the subtraction is exact.
    let magic = spacing::<F>(x) * 6_755_399_441_055_744.0;
    let rounded = f64::copysign((x + magic) - magic, x);
    let bounded = if rounded.abs() > F::LARGEST { f64::copysign(f64::INFINITY, x) } else { rounded };
    // Far beyond the format the magic number itself overflows.
    if x.abs() > 2.0 * F::LARGEST {
        f64::copysign(f64::INFINITY, x)
    } else if x.is_nan() {
        x
    } else {
        bounded
    }
}

/// `x` rounded down or up in magnitude on the format's grid, up with probability equal to the remainder; a value
/// between the largest number and the point where rounding to nearest overflows stays the largest number.
#[inline(always)]
fn stochastic<F: Format>(x: f64, draw: u32) -> f64 {
    let step = spacing::<F>(x);
    let below = (x.abs() / step).floor();
    let remainder = x.abs() / step - below;
    let up = f64::from(draw) < remainder * 4_294_967_296.0;
    let magnitude = (below + if up { 1.0 } else { 0.0 }) * step;
    let held = if magnitude > F::LARGEST { F::LARGEST } else { magnitude };
    if x.abs() <= F::LARGEST {
        f64::copysign(held, x)
    } else {
        nearest::<F>(x)
    }
}

/// Bits of a NaN or of an exactly representable `x` in a 16-bit format that is a shortened f32.
#[inline(always)]
fn bf16_bits(x: f32) -> u16 {
    let quiet = u32::from(x.is_nan()) << 22;
    ((x.to_bits() | quiet) >> 16) as u16
}

/// `x` rounded to nearest, as the lower half of the word: on the bit pattern, add half a unit in the last place, less one
/// where that is even.
#[inline(always)]
pub(super) fn nearest_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    if x.is_nan() {
        quiet
    } else {
        rounded
    }
}

/// Bits of a narrow format given by its exponent range: exact `x` only.
#[inline(always)]
fn small_bits<F: Format>(x: f64, infinity: u32, nan: u32) -> u32 {
    let single = x as f32;
    let bits = single.to_bits() & 0x7FFF_FFFF;
    let normal = (bits >> (23 - F::MANTISSA)).wrapping_sub(((127 + F::MINIMUM - 1) as u32) << F::MANTISSA);
    let subnormal = (x.abs() * power(F::MANTISSA - F::MINIMUM)) as u32;
    let finite = if x.abs() < power(F::MINIMUM) { subnormal } else { normal };
    let payload = (bits >> (23 - F::MANTISSA)) & ((1 << F::MANTISSA) - 1);
    if x.is_nan() {
        nan | payload
    } else if x.is_infinite() {
        infinity
    } else {
        finite
    }
}

kernel! {
    fn bf16<R>(values: &mut [R], bytes: &mut [u8]) -> bool {
        let mut finite = true;
        let (pairs, _) = bytes.as_chunks_mut::<2>();
        if R::IS_F32 {
            for (pair, value) in pairs.iter_mut().zip(values.iter_mut()) {
                let stored = nearest_bf16(value.to_f32());
                *pair = (stored as u16).to_le_bytes();
                *value = R::from_f32(f32::from_bits(stored << 16));
                finite &= stored & 0x7F80 != 0x7F80;
            }
        } else {
            for (pair, value) in pairs.iter_mut().zip(values.iter_mut()) {
                let x = nearest::<Bf16>(value.to_f64());
                *pair = bf16_bits(x as f32).to_le_bytes();
                *value = R::from_f64(x);
                finite &= x.is_finite();
            }
        }
        finite
    }
}

kernel! {
    fn bf16_stochastic<R>(values: &mut [R], draws: &[u32], bytes: &mut [u8]) -> bool {
        let mut finite = true;
        let (pairs, _) = bytes.as_chunks_mut::<2>();
        for ((pair, value), draw) in pairs.iter_mut().zip(values.iter_mut()).zip(draws) {
            let x = stochastic::<Bf16>(value.to_f64(), *draw);
            *pair = bf16_bits(x as f32).to_le_bytes();
            *value = R::from_f64(x);
            finite &= x.is_finite();
        }
        finite
    }
}

kernel! {
    fn f16<R>(values: &mut [R], bytes: &mut [u8]) -> bool {
        let mut finite = true;
        let (pairs, _) = bytes.as_chunks_mut::<2>();
        for (pair, value) in pairs.iter_mut().zip(values.iter_mut()) {
            let x = nearest::<F16>(value.to_f64());
            let sign = u16::from(x.is_sign_negative()) << 15;
            *pair = (small_bits::<F16>(x, 0x7C00, 0x7E00) as u16 | sign).to_le_bytes();
            *value = R::from_f64(x);
            finite &= x.is_finite();
        }
        finite
    }
}

kernel! {
    fn f16_stochastic<R>(values: &mut [R], draws: &[u32], bytes: &mut [u8]) -> bool {
        let mut finite = true;
        let (pairs, _) = bytes.as_chunks_mut::<2>();
        for ((pair, value), draw) in pairs.iter_mut().zip(values.iter_mut()).zip(draws) {
            let x = stochastic::<F16>(value.to_f64(), *draw);
            let sign = u16::from(x.is_sign_negative()) << 15;
            *pair = (small_bits::<F16>(x, 0x7C00, 0x7E00) as u16 | sign).to_le_bytes();
            *value = R::from_f64(x);
            finite &= x.is_finite();
        }
        finite
    }
}

kernel! {
    fn f32_<R>(values: &mut [R], bytes: &mut [u8]) -> bool {
        let mut finite = true;
        let (words, _) = bytes.as_chunks_mut::<4>();
        for (word, value) in words.iter_mut().zip(values.iter_mut()) {
            let x = value.to_f32();
            *word = x.to_le_bytes();
            *value = R::from_f32(x);
            finite &= x.is_finite();
        }
        finite
    }
}

kernel! {
    fn f32_stochastic<R>(values: &mut [R], draws: &[u32], bytes: &mut [u8]) -> bool {
        let mut finite = true;
        let (words, _) = bytes.as_chunks_mut::<4>();
        for ((word, value), draw) in words.iter_mut().zip(values.iter_mut()).zip(draws) {
            let x = stochastic::<F32>(value.to_f64(), *draw);
            *word = (x as f32).to_le_bytes();
            *value = R::from_f64(x);
            finite &= x.is_finite();
        }
        finite
    }
}

kernel! {
    fn f64_<R>(values: &mut [R], bytes: &mut [u8]) -> bool {
        let mut finite = true;
        let (words, _) = bytes.as_chunks_mut::<8>();
        for (word, value) in words.iter_mut().zip(values.iter_mut()) {
            *word = value.to_f64().to_le_bytes();
            finite &= value.is_finite();
        }
        finite
    }
}

/// E4M3FN has no infinity: an overflow is NaN, which the run then counts and names.
#[inline(always)]
fn e4m3_byte(x: f64) -> u8 {
    let sign = u8::from(x.is_sign_negative()) << 7;
    small_bits::<E4M3>(x, 0x7F, 0x7F) as u8 | sign
}

#[inline(always)]
fn e5m2_byte(x: f64) -> u8 {
    let sign = u8::from(x.is_sign_negative()) << 7;
    small_bits::<E5M2>(x, 0x7C, 0x7E) as u8 | sign
}

kernel! {
    fn e4m3<R>(values: &mut [R], bytes: &mut [u8]) -> bool {
        let mut finite = true;
        for (byte, value) in bytes.iter_mut().zip(values.iter_mut()) {
            let x = nearest::<E4M3>(value.to_f64());
            *byte = e4m3_byte(x);
            *value = R::from_f64(x);
            finite &= x.is_finite();
        }
        finite
    }
}

kernel! {
    fn e4m3_stochastic<R>(values: &mut [R], draws: &[u32], bytes: &mut [u8]) -> bool {
        let mut finite = true;
        for ((byte, value), draw) in bytes.iter_mut().zip(values.iter_mut()).zip(draws) {
            let x = stochastic::<E4M3>(value.to_f64(), *draw);
            *byte = e4m3_byte(x);
            *value = R::from_f64(x);
            finite &= x.is_finite();
        }
        finite
    }
}

kernel! {
    fn e5m2<R>(values: &mut [R], bytes: &mut [u8]) -> bool {
        let mut finite = true;
        for (byte, value) in bytes.iter_mut().zip(values.iter_mut()) {
            let x = nearest::<E5M2>(value.to_f64());
            *byte = e5m2_byte(x);
            *value = R::from_f64(x);
            finite &= x.is_finite();
        }
        finite
    }
}

kernel! {
    fn e5m2_stochastic<R>(values: &mut [R], draws: &[u32], bytes: &mut [u8]) -> bool {
        let mut finite = true;
        for ((byte, value), draw) in bytes.iter_mut().zip(values.iter_mut()).zip(draws) {
            let x = stochastic::<E5M2>(value.to_f64(), *draw);
            *byte = e5m2_byte(x);
            *value = R::from_f64(x);
            finite &= x.is_finite();
        }
        finite
    }
}
