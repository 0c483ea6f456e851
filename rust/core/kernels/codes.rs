//! Stored codes of a few bits → f32, and scales onto them.

use super::dispatch::Level;
use crate::dtype::Dtype;

/// The values of codes that are numbers by themselves.
///
/// # Panics
/// If `dtype` is neither `I8` nor an 8-bit float.
pub fn widen_codes(level: Level, dtype: Dtype, codes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F8E4M3 => e4m3(level, codes, out),
        Dtype::F8E5M2 => e5m2(level, codes, out),
        Dtype::I8 => i8_(level, codes, out),
        other => panic!("codes of {other}"),
    }
}

/// On the bit pattern: the exponent is moved to its place in f32. Below the normal numbers, the value is a multiple of
/// the smallest one.
#[inline(always)]
fn e4m3_value(code: u8) -> f32 {
    let (sign, magnitude) = (u32::from(code & 0x80) << 24, u32::from(code & 0x7F));
    let normal = (magnitude << 20) + (120 << 23);
    let small = (magnitude as i32 as f32 * (1.0 / 512.0)).to_bits();
    let finite = if magnitude < 8 { small } else { normal };
    let bits = if magnitude == 0x7F { 0x7FC0_0000 } else { finite };
    f32::from_bits(bits | sign)
}

kernel! {
    fn e4m3(codes: &[u8], out: &mut [f32]) {
        for (slot, code) in out.iter_mut().zip(codes) {
            *slot = e4m3_value(*code);
        }
    }
}

kernel! {
    /// The same for the other kind; an exponent of all ones stays one.
    fn e5m2(codes: &[u8], out: &mut [f32]) {
        for (slot, code) in out.iter_mut().zip(codes) {
            let (sign, magnitude) = (u32::from(code & 0x80) << 24, u32::from(code & 0x7F));
            let normal = (magnitude << 21) + (112 << 23);
            let small = (magnitude as i32 as f32 * (1.0 / 65536.0)).to_bits();
            let finite = if magnitude < 4 { small } else { normal };
            let bits = if magnitude >= 0x7C { 0x7F80_0000 | magnitude << 21 } else { finite };
            *slot = f32::from_bits(bits | sign);
        }
    }
}

kernel! {
    fn i8_(codes: &[u8], out: &mut [f32]) {
        for (slot, code) in out.iter_mut().zip(codes) {
            *slot = f32::from(*code as i8);
        }
    }
}

kernel! {
    /// Four-bit floats, in bits 0 to 3 of each code: 0, ½, 1, 1½, 2, 3, 4, 6, and the same below zero.
    pub fn e2m1(codes: &[u8], out: &mut [f32]) {
        for (slot, code) in out.iter_mut().zip(codes) {
            let (sign, m) = (u32::from(code & 8) << 28, i32::from(code & 7));
            // Twice the value: 0, 1, 2, 3, then in steps of two, then of four.
            let twice = m.max(2 * m - 4).max(4 * m - 16);
            *slot = f32::from_bits((twice as f32 * 0.5).to_bits() | sign);
        }
    }
}

/// Codes that are numbers by themselves, times the scales of their runs, as [`multiply_runs`].
///
/// # Panics
/// As [`widen_codes`].
pub fn scaled_runs(
    level: Level,
    dtype: Dtype,
    codes: &[u8],
    scales: &[f32],
    run: (usize, usize),
    out: &mut [f32],
) -> bool {
    if dtype == Dtype::F8E4M3 {
        return scaled_e4m3(level, codes, scales, run, out);
    }
    widen_codes(level, dtype, codes, out);
    multiply_runs(level, scales, run, out)
}

kernel! {
    /// What most models have, in one loop.
    pub fn scaled_e4m3(codes: &[u8], scales: &[f32], run: (usize, usize), out: &mut [f32]) -> bool {
        let mut top = 0u32;
        let (mut at, mut take) = (0, run.1 - run.0);
        for scale in scales {
            let end = at + take.min(out.len() - at);
            for (slot, code) in out[at..end].iter_mut().zip(&codes[at..end]) {
                let x = e4m3_value(*code) * scale;
                top = top.max(x.to_bits() & 0x7FFF_FFFF);
                *slot = x;
            }
            (at, take) = (end, run.1);
        }
        top < 0x7F80_0000
    }
}

kernel! {
    /// Codes into a table of 16 values.
    pub fn looked_up(codes: &[u8], table: &[f32; 16], out: &mut [f32]) {
        for (slot, code) in out.iter_mut().zip(codes) {
            *slot = table[usize::from(code & 15)];
        }
    }
}

/// Integers of `bits` bits, one after the other from the lowest bit of the first byte on, from integer `first` on.
pub fn fields(level: Level, bits: u32, bytes: &[u8], first: usize, out: &mut [u8]) {
    match bits {
        8 => out.copy_from_slice(&bytes[first..first + out.len()]),
        4 => nibbles(level, bytes, first, false, out),
        _ => any_fields(level, bits, bytes, first, out),
    }
}

kernel! {
    /// Codes of four bits from code `first` on, the low half of each byte first, or the high one.
    pub fn nibbles(bytes: &[u8], first: usize, high: bool, out: &mut [u8]) {
        let turn = if high { 4 } else { 0 };
        let (mut out, mut bytes) = (out, &bytes[first / 2..]);
        if first % 2 == 1 {
            let Some((slot, rest)) = out.split_first_mut() else { return };
            (*slot, out, bytes) = (bytes[0].rotate_left(turn) >> 4, rest, &bytes[1..]);
        }
        let (pairs, last) = out.as_chunks_mut::<2>();
        for (pair, byte) in pairs.iter_mut().zip(bytes) {
            let byte = byte.rotate_left(turn);
            *pair = [byte & 15, byte >> 4];
        }
        if let [slot] = last {
            *slot = bytes[pairs.len()].rotate_left(turn) & 15;
        }
    }
}

kernel! {
    fn any_fields(bits: u32, bytes: &[u8], first: usize, out: &mut [u8]) {
        let mask = (1u16 << bits) - 1;
        for (index, slot) in out.iter_mut().enumerate() {
            let bit = (first + index) * bits as usize;
            let next = bytes.get(bit / 8 + 1).copied().unwrap_or(0);
            let pair = u16::from(bytes[bit / 8]) | u16::from(next) << 8;
            *slot = ((pair >> (bit % 8)) & mask) as u8;
        }
    }
}

kernel! {
    /// `(code − zero) · scale` in runs of `run.1` codes, the first without its first `run.0`; true if all are finite.
    pub fn from_zero_in_runs(codes: &[u8], zeros: &[f32], scales: &[f32], run: (usize, usize), out: &mut [f32]) -> bool {
        let mut top = 0u32;
        let (mut at, mut take) = (0, run.1 - run.0);
        for (zero, scale) in zeros.iter().zip(scales) {
            let end = at + take.min(out.len() - at);
            for (slot, code) in out[at..end].iter_mut().zip(&codes[at..end]) {
                *slot = (f32::from(*code) - zero) * scale;
                top = top.max(slot.to_bits() & 0x7FFF_FFFF);
            }
            (at, take) = (end, run.1);
        }
        top < 0x7F80_0000
    }
}

kernel! {
    /// The same, each code with a zero and a scale of its own.
    pub fn from_zero_by_column(codes: &[u8], zeros: &[f32], scales: &[f32], out: &mut [f32]) -> bool {
        let mut top = 0u32;
        for (((slot, code), zero), scale) in out.iter_mut().zip(codes).zip(zeros).zip(scales) {
            *slot = (f32::from(*code) - zero) * scale;
            top = top.max(slot.to_bits() & 0x7FFF_FFFF);
        }
        top < 0x7F80_0000
    }
}

kernel! {
    /// `code · scale + bias` in runs, as [`from_zero_in_runs`].
    pub fn onto_bias_in_runs(codes: &[u8], biases: &[f32], scales: &[f32], run: (usize, usize), out: &mut [f32]) -> bool {
        let mut top = 0u32;
        let (mut at, mut take) = (0, run.1 - run.0);
        for (bias, scale) in biases.iter().zip(scales) {
            let end = at + take.min(out.len() - at);
            for (slot, code) in out[at..end].iter_mut().zip(&codes[at..end]) {
                *slot = f32::from(*code) * scale + bias;
                top = top.max(slot.to_bits() & 0x7FFF_FFFF);
            }
            (at, take) = (end, run.1);
        }
        top < 0x7F80_0000
    }
}

kernel! {
    /// Every run of `run.1` values times its scale, the first run without its first `run.0` values; true if all products
    /// are finite.
    pub fn multiply_runs(scales: &[f32], run: (usize, usize), out: &mut [f32]) -> bool {
        let mut top = 0u32;
        let (mut rest, mut take) = (out, run.1 - run.0);
        for scale in scales {
            let (now, later) = rest.split_at_mut(take.min(rest.len()));
            for x in now {
                *x *= scale;
                top = top.max(x.to_bits() & 0x7FFF_FFFF);
            }
            (rest, take) = (later, run.1);
        }
        top < 0x7F80_0000
    }
}

kernel! {
    /// Every value times the same factor; true if all products are finite.
    pub fn multiply_all(factor: f32, out: &mut [f32]) -> bool {
        let mut top = 0u32;
        for x in out {
            *x *= factor;
            top = top.max(x.to_bits() & 0x7FFF_FFFF);
        }
        top < 0x7F80_0000
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::widen::widen;

    #[test]
    fn every_code_at_every_level() {
        let codes: Vec<u8> = (0..=255).collect();
        for level in Level::available() {
            let mut out = vec![0f32; 256];
            for dtype in [Dtype::F8E4M3, Dtype::F8E5M2] {
                let mut want = vec![0f32; 256];
                widen(level, dtype, &codes, &mut want);
                widen_codes(level, dtype, &codes, &mut out);
                let bits = |all: &[f32]| all.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&out), bits(&want), "{dtype} {}", level.name());
            }
            widen_codes(level, Dtype::I8, &codes, &mut out);
            assert!(out.iter().zip(&codes).all(|(x, code)| *x == f32::from(*code as i8)));
            e2m1(level, &codes[..16], &mut out[..16]);
            for (x, want) in out.iter().zip([0.0f32, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]) {
                assert_eq!(x.to_bits(), want.to_bits());
            }
            assert!((0..8).all(|i| out[8 + i].to_bits() == out[i].to_bits() | 1 << 31));
        }
    }

    #[test]
    fn runs_begin_and_end_anywhere() {
        for level in Level::available() {
            for (n, skip, run) in [(1usize, 0usize, 1usize), (5, 2, 3), (512, 100, 128), (130, 127, 128), (40, 7, 50)] {
                let scales: Vec<f32> = (0..(skip + n).div_ceil(run)).map(|i| i as f32 + 0.5).collect();
                let mut out: Vec<f32> = (0..n).map(|i| i as f32).collect();
                assert!(multiply_runs(level, &scales, (skip, run), &mut out));
                for (i, x) in out.iter().enumerate() {
                    assert_eq!(*x, i as f32 * (((skip + i) / run) as f32 + 0.5));
                }
                out[n - 1] = f32::MAX;
                assert!(!multiply_runs(level, &vec![2.0; scales.len()], (skip, run), &mut out));
            }
        }
    }
}
