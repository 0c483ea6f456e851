//! One row of groups at a time: what they hold, how far the codes under a scale are off, and the codes.
//!
//! A row begins with the first element of a group; the last group may be short.

use super::code::{Code, Integer, Round, E2M1, E4M3, E5M2};
use crate::kernels::real::LANES;

/// Elements whose errors are added in f32 before f64 takes over.
const RUN: usize = 128;

/// What a group holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    /// The largest finite number, or 0.
    pub high: f32,
    /// The largest finite magnitude of a number below zero, or 0.
    pub low: f32,
    /// Some element is not, bit for bit, what the target has.
    pub changed: bool,
    /// Elements that are not finite.
    pub non_finite: u32,
}

impl Seen {
    /// The largest finite magnitude.
    pub(crate) fn amax(&self) -> f32 {
        self.high.max(self.low)
    }

    /// Adds what another part of the group holds.
    pub(crate) fn merge(&mut self, other: &Seen) {
        self.high = self.high.max(other.high);
        self.low = self.low.max(other.low);
        self.changed |= other.changed;
        self.non_finite += other.non_finite;
    }
}

/// How a group is scaled: code = round(x / `divisor` + `shift`), value = (code − `zero`) · `scale`.
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
}

impl Scaling {
    /// By a scale as it is read, with the code that stands for zero. Where the scale is no number to divide by, every
    /// code is the one for zero.
    pub(crate) fn new(scale: f32, zero: f32) -> Self {
        let divisor = if scale.is_finite() && scale != 0.0 { scale } else { f32::INFINITY };
        Scaling { divisor, shift: zero, zero, scale }
    }
}

/// Calls a function for each [`LANES`] elements of a slice, and for the rest, padded with zeros.
macro_rules! sixteen {
    ($x:expr, |$at:ident, $lanes:ident| $body:block) => {{
        let (whole, rest) = $x.as_chunks::<LANES>();
        for (index, $lanes) in whole.iter().enumerate() {
            let $at = index * LANES;
            $body
        }
        if !rest.is_empty() {
            let mut padded = [0f32; LANES];
            padded[..rest.len()].copy_from_slice(rest);
            let ($at, $lanes) = (whole.len() * LANES, &padded);
            $body
        }
    }};
}

kernel! {
    /// Adds to `seen` what the groups of `wide` elements hold; `target` is what they would be unchanged.
    pub(crate) fn look(x: &[f32], target: &[f32], wide: usize, seen: &mut [Seen]) {
        for ((x, t), seen) in x.chunks(wide).zip(target.chunks(wide)).zip(seen) {
            let (mut high, mut low) = ([0f32; LANES], [0f32; LANES]);
            let (mut other, mut bad) = ([0u32; LANES], [0u32; LANES]);
            let mut add = |x: &[f32; LANES], t: &[f32; LANES]| {
                for lane in 0..LANES {
                    let finite = x[lane].abs() < f32::INFINITY;
                    let value = if finite { x[lane] } else { 0.0 };
                    high[lane] = if value > high[lane] { value } else { high[lane] };
                    low[lane] = if -value > low[lane] { -value } else { low[lane] };
                    other[lane] |= x[lane].to_bits() ^ t[lane].to_bits();
                    bad[lane] += u32::from(!finite);
                }
            };
            let (whole, rest) = x.as_chunks::<LANES>();
            let (whole_t, rest_t) = t.as_chunks::<LANES>();
            for (x, t) in whole.iter().zip(whole_t) {
                add(x, t);
            }
            if !rest.is_empty() {
                let (mut x, mut t) = ([0f32; LANES], [0f32; LANES]);
                x[..rest.len()].copy_from_slice(rest);
                t[..rest.len()].copy_from_slice(rest_t);
                add(&x, &t);
            }
            seen.merge(&Seen {
                high: high.iter().fold(0.0, |a: f32, b| a.max(*b)),
                low: low.iter().fold(0.0, |a: f32, b| a.max(*b)),
                changed: other.iter().fold(0, |a, b| a | b) != 0,
                non_finite: bad.iter().sum(),
            });
        }
    }
}

kernel! {
    /// Adds to `sums` the squared errors of each group under either of its two scalings; a group without them is left
    /// out. Elements that are not finite do not count.
    pub(crate) fn errors(
        code: Code,
        x: &[f32],
        wide: usize,
        scalings: &[Option<[Scaling; 2]>],
        sums: &mut [[f64; 2]],
    ) {
        match code {
            Code::E4M3 => errors_of(E4M3, x, wide, scalings, sums),
            Code::E5M2 => errors_of(E5M2, x, wide, scalings, sums),
            Code::E2M1 => errors_of(E2M1, x, wide, scalings, sums),
            Code::Signed(bits) | Code::Offset(bits) => {
                errors_of(Integer::new(bits, false), x, wide, scalings, sums);
            }
        }
    }
}

#[inline(always)]
fn errors_of<C: Round>(
    code: C,
    x: &[f32],
    wide: usize,
    scalings: &[Option<[Scaling; 2]>],
    sums: &mut [[f64; 2]],
) {
    for ((x, scalings), sums) in x.chunks(wide).zip(scalings).zip(sums) {
        let Some([first, second]) = scalings else { continue };
        for run in x.chunks(RUN) {
            let mut lanes = [[0f32; LANES]; 2];
            sixteen!(run, |_at, x| {
                add_errors(code, x, first, &mut lanes[0]);
                add_errors(code, x, second, &mut lanes[1]);
            });
            sums[0] += f64::from(halves(&lanes[0]));
            sums[1] += f64::from(halves(&lanes[1]));
        }
    }
}

/// Squared errors in units of the scale: squares of small weights would vanish in f32.
#[inline(always)]
fn add_errors<C: Round>(code: C, x: &[f32; LANES], by: &Scaling, sums: &mut [f32; LANES]) {
    for lane in 0..LANES {
        let y = x[lane] / by.divisor;
        let (value, _) = code.nearest(y + by.shift);
        let error = y - (value - by.zero);
        let square = error * error;
        sums[lane] += if x[lane].abs() < f32::INFINITY { square } else { 0.0 };
    }
}

/// The lanes added up in one fixed order.
#[inline(always)]
fn halves(lanes: &[f32; LANES]) -> f32 {
    let mut sums = *lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

kernel! {
    /// The codes of groups, a byte for each, and the numbers that they stand for: to nearest, or by draws, one for each
    /// element.
    pub(crate) fn encode(
        code: Code,
        x: &[f32],
        wide: usize,
        scalings: &[Scaling],
        draws: Option<&[u32]>,
        codes: &mut [u8],
        out: &mut [f32],
    ) {
        match code {
            Code::E4M3 => encode_as(E4M3, x, wide, scalings, draws, codes, out),
            Code::E5M2 => encode_as(E5M2, x, wide, scalings, draws, codes, out),
            Code::E2M1 => encode_as(E2M1, x, wide, scalings, draws, codes, out),
            Code::Signed(bits) => encode_as(Integer::new(bits, false), x, wide, scalings, draws, codes, out),
            Code::Offset(bits) => encode_as(Integer::new(bits, true), x, wide, scalings, draws, codes, out),
        }
    }
}

#[inline(always)]
fn encode_as<C: Round>(
    code: C,
    x: &[f32],
    wide: usize,
    scalings: &[Scaling],
    draws: Option<&[u32]>,
    codes: &mut [u8],
    out: &mut [f32],
) {
    let groups = x.chunks(wide).zip(scalings).zip(codes.chunks_mut(wide).zip(out.chunks_mut(wide)));
    match draws {
        None => {
            for ((x, by), (codes, out)) in groups {
                for ((x, slot), out) in x.iter().zip(codes.iter_mut()).zip(out.iter_mut()) {
                    let (value, code) = code.nearest(*x / by.divisor + by.shift);
                    *slot = code as u8;
                    *out = (value - by.zero) * by.scale;
                }
            }
        }
        Some(draws) => {
            for (((x, by), (codes, out)), draws) in groups.zip(draws.chunks(wide)) {
                for (((x, slot), out), draw) in x.iter().zip(codes.iter_mut()).zip(out.iter_mut()).zip(draws) {
                    let (value, code) = code.drawn(*x / by.divisor + by.shift, *draw);
                    *slot = code as u8;
                    *out = (value - by.zero) * by.scale;
                }
            }
        }
    }
}
