//! One row of groups at a time: what they hold, how far the codes under a scale are off, and the codes.
//!
//! A row begins with the first element of a group; the last group may be short.

use super::code::{Code, Integer, Round, Unsigned, E2M1, E4M3, E5M2};
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
    /// The smallest and the largest finite number, where [`range`] has looked and there is one.
    pub range: Option<[f32; 2]>,
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
        self.range = match (self.range, other.range) {
            (Some([a, b]), Some([c, d])) => Some([a.min(c), b.max(d)]),
            (one, another) => one.or(another),
        };
    }
}

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
                range: None,
            });
        }
    }
}

kernel! {
    /// Adds to `seen` the smallest and the largest finite number of each group of `wide` elements.
    pub(crate) fn range(x: &[f32], wide: usize, seen: &mut [Seen]) {
        for (x, seen) in x.chunks(wide).zip(seen) {
            let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
            let (whole, rest) = x.as_chunks::<LANES>();
            let mut add = |lane: usize, x: f32| {
                let finite = x.abs() < f32::INFINITY;
                low[lane] = if finite && x < low[lane] { x } else { low[lane] };
                high[lane] = if finite && x > high[lane] { x } else { high[lane] };
            };
            for x in whole {
                x.iter().enumerate().for_each(|(lane, x)| add(lane, *x));
            }
            rest.iter().enumerate().for_each(|(lane, x)| add(lane, *x));
            let low = low.iter().fold(f32::INFINITY, |a: f32, b| a.min(*b));
            let high = high.iter().fold(f32::NEG_INFINITY, |a: f32, b| a.max(*b));
            let found = (low <= high).then_some([low, high]);
            seen.merge(&Seen { range: found, ..Seen::default() });
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
            Code::Unsigned(bits) => errors_of(Unsigned::new(bits), x, wide, scalings, sums),
        }
    }
}

#[inline(always)]
fn errors_of<C: Round>(code: C, x: &[f32], wide: usize, scalings: &[Option<[Scaling; 2]>], sums: &mut [[f64; 2]]) {
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
        let y = above::<C>(by, x[lane]) / by.divisor;
        let (value, _) = code.nearest(y + by.shift);
        let error = y - (value - by.zero);
        let square = error * error;
        sums[lane] += if x[lane].abs() < f32::INFINITY { square } else { 0.0 };
    }
}

/// What of an element a code stands for.
#[inline(always)]
fn above<C: Round>(by: &Scaling, x: f32) -> f32 {
    if C::BIASED {
        x - by.bias
    } else {
        x
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
            Code::Unsigned(bits) => encode_as(Unsigned::new(bits), x, wide, scalings, draws, codes, out),
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
        // No closure over the groups: it would not be compiled for the CPU level.
        None => {
            for ((x, by), (codes, out)) in groups {
                each_code(x, x, codes, out, |x, _| one_code::<C>(by, x, |y| code.nearest(y)));
            }
        }
        Some(draws) => {
            for (((x, by), (codes, out)), draws) in groups.zip(draws.chunks(wide)) {
                each_code(x, draws, codes, out, |x, draw| one_code::<C>(by, x, |y| code.drawn(y, draw)));
            }
        }
    }
}

/// The code of an element, and the number that it stands for.
#[inline(always)]
fn one_code<C: Round>(by: &Scaling, x: f32, round: impl Fn(f32) -> (f32, u32)) -> (u8, f32) {
    let (value, code) = round(above::<C>(by, x) / by.divisor + by.shift);
    let value = (value - by.zero) * by.scale;
    (code as u8, if C::BIASED { value + by.bias } else { value })
}

/// [`LANES`] at a time: groups are too short for what a compiler makes of a loop of any length.
#[inline(always)]
fn each_code<T: Copy>(x: &[f32], with: &[T], codes: &mut [u8], out: &mut [f32], one: impl Fn(f32, T) -> (u8, f32)) {
    let (xs, x) = x.as_chunks::<LANES>();
    let (withs, with) = with.as_chunks::<LANES>();
    let (codess, codes) = codes.as_chunks_mut::<LANES>();
    let (outs, out) = out.as_chunks_mut::<LANES>();
    for (((x, with), codes), out) in xs.iter().zip(withs).zip(codess).zip(outs) {
        for lane in 0..LANES {
            (codes[lane], out[lane]) = one(x[lane], with[lane]);
        }
    }
    for (((x, with), code), out) in x.iter().zip(with).zip(codes).zip(out) {
        (*code, *out) = one(*x, *with);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::kernels::codes::{e2m1, widen_codes};
    use crate::kernels::narrow::{narrow, Rounding};
    use crate::kernels::quantise::bits::{bytes, pack};
    use crate::kernels::Level;

    const CODES: [Code; 7] =
        [Code::E4M3, Code::E5M2, Code::E2M1, Code::Signed(8), Code::Offset(3), Code::Offset(4), Code::Offset(8)];

    fn one() -> Scaling {
        Scaling::new(1.0, 0.0)
    }

    /// All bf16 numbers, and what lies between them.
    fn numbers() -> Vec<f32> {
        (0..=u16::MAX)
            .flat_map(|bits| [0, 0x7FFF, 0x8000, 0x8001].map(|low| f32::from_bits(u32::from(bits) << 16 | low)))
            .collect()
    }

    #[test]
    fn eight_bit_floats_as_narrowed_but_clamped() {
        let x = numbers();
        for (code, dtype, top) in [(Code::E4M3, Dtype::F8E4M3, 448.0f32), (Code::E5M2, Dtype::F8E5M2, 57344.0)] {
            let mut clamped: Vec<f32> = x.iter().map(|x| if x.is_nan() { *x } else { x.clamp(-top, top) }).collect();
            let mut want = vec![0; x.len()];
            narrow(Level::SCALAR, dtype, &mut clamped, Rounding::Nearest, &mut want);
            for level in Level::available() {
                let (mut codes, mut out) = (vec![0; x.len()], vec![0f32; x.len()]);
                encode(level, code, &x, x.len(), &[one()], None, &mut codes, &mut out);
                let mut back = vec![0f32; x.len()];
                widen_codes(level, dtype, &codes, &mut back);
                for i in 0..x.len() {
                    if x[i].is_nan() {
                        assert!(back[i].is_nan() && out[i].is_nan());
                    } else {
                        assert_eq!(codes[i], want[i], "{} {}", x[i], level.name());
                        assert_eq!(out[i].to_bits(), back[i].to_bits());
                    }
                }
            }
        }
    }

    #[test]
    fn four_bit_floats_to_the_nearest_and_ties_to_even() {
        let table = [0.0f32, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let nearest = |x: f32| {
            let distance = |code: usize| (f64::from(table[code]) - f64::from(x.abs().min(6.0))).abs();
            let best = (0..8).map(distance).fold(f64::MAX, f64::min);
            let code = (0..8).filter(|code| distance(*code) == best).max_by_key(|code| *code % 2 == 0).unwrap_or(0);
            if x.is_nan() {
                0
            } else {
                code as u8 | u8::from(x.is_sign_negative()) << 3
            }
        };
        let x = numbers();
        for level in Level::available() {
            let (mut codes, mut out) = (vec![0; x.len()], vec![0f32; x.len()]);
            encode(level, Code::E2M1, &x, x.len(), &[one()], None, &mut codes, &mut out);
            let mut back = vec![0f32; x.len()];
            e2m1(level, &codes, &mut back);
            for i in 0..x.len() {
                assert_eq!(codes[i], nearest(x[i]), "{}", x[i]);
                assert_eq!(out[i].to_bits(), back[i].to_bits());
            }
        }
    }

    #[test]
    fn integers_to_the_nearest_and_clamped() {
        let x = numbers();
        for level in Level::available() {
            for bits in 2..=8 {
                let (mut codes, mut out) = (vec![0; x.len()], vec![0f32; x.len()]);
                let by = Scaling::new(0.25, 1.0);
                encode(level, Code::Offset(bits), &x, x.len(), &[by], None, &mut codes, &mut out);
                let half = f64::from(1u32 << (bits - 1));
                for i in 0..x.len() {
                    let y = f64::from(x[i] / 0.25 + 1.0);
                    let want = if y.is_nan() { 0.0 } else { y.clamp(-half, half - 1.0).round_ties_even() };
                    assert_eq!(f64::from(codes[i]), want + half, "{} {bits}", x[i]);
                    assert_eq!(f64::from(out[i]), (want - 1.0) * 0.25);
                }
            }
        }
    }

    #[test]
    fn integers_counted_from_a_bias() {
        let x = numbers();
        for (scale, bias) in [(0.25f32, -1.5f32), (-0.125, 3.0)] {
            for (level, bits) in Level::available().iter().flat_map(|level| (2..=8).map(move |bits| (*level, bits))) {
                let (mut codes, mut out) = (vec![0; x.len()], vec![0f32; x.len()]);
                let by = Scaling::on_bias(scale, bias);
                encode(level, Code::Unsigned(bits), &x, x.len(), &[by], None, &mut codes, &mut out);
                for i in 0..x.len() {
                    let y = f64::from((x[i] - bias) / scale);
                    let top = f64::from((1u32 << bits) - 1);
                    let want = if y.is_nan() { 0.0 } else { y.clamp(0.0, top).round_ties_even() };
                    assert_eq!(f64::from(codes[i]), want, "{} {bits}", x[i]);
                    assert_eq!(out[i].to_bits(), (want as f32 * scale + bias).to_bits());
                }
            }
        }
    }

    #[test]
    fn the_range_of_a_group_is_that_of_its_finite_numbers() {
        let numbers: Vec<f32> = numbers().into_iter().step_by(131).collect();
        for (level, wide) in Level::available().iter().flat_map(|level| [1, 3, 16, 32, 100].map(|wide| (*level, wide)))
        {
            let x = &numbers[..];
            let mut seen = vec![Seen::default(); x.len().div_ceil(wide)];
            range(level, x, wide, &mut seen);
            for (seen, group) in seen.iter().zip(x.chunks(wide)) {
                let finite: Vec<f32> = group.iter().copied().filter(|x| x.is_finite()).collect();
                let edges = finite.iter().fold(None, |edges: Option<[f32; 2]>, x| match edges {
                    None => Some([*x, *x]),
                    Some([low, high]) => Some([low.min(*x), high.max(*x)]),
                });
                assert_eq!(seen.range, edges);
            }
        }
    }

    #[test]
    fn every_level_and_every_division_into_groups_gives_the_same() {
        let numbers: Vec<f32> = (0..1000).map(|i: i32| (i.wrapping_mul(7919) % 2003 - 1001) as f32 * 1e-4).collect();
        for (n, wide) in [(1, 1), (5, 3), (512, 128), (96, 32), (100, 16), (1000, 1000), (640, 48)] {
            let x = &numbers[..n];
            let count = n.div_ceil(wide);
            let by: Vec<Scaling> = (0..count).map(|g| Scaling::new(1e-3 * (g + 1) as f32, 0.0)).collect();
            let pairs: Vec<_> = by.iter().map(|s| Some([*s, Scaling::new(s.scale * 1.5, 0.0)])).collect();
            for code in CODES {
                let (mut firsts, mut codes, mut out) = (Vec::new(), vec![0; n], vec![0f32; n]);
                for level in Level::available() {
                    let mut seen = vec![Seen::default(); count];
                    look(level, x, &vec![0.0; n], wide, &mut seen);
                    let mut sums = vec![[0f64; 2]; count];
                    errors(level, code, x, wide, &pairs, &mut sums);
                    encode(level, code, x, wide, &by, None, &mut codes, &mut out);
                    for (g, group) in x.chunks(wide).enumerate() {
                        let high = group.iter().fold(0f32, |a, b| a.max(*b));
                        let low = group.iter().fold(0f32, |a, b| a.max(-*b));
                        assert_eq!((seen[g].high, seen[g].low, seen[g].non_finite), (high, low, 0));
                        let square = |(x, v): (&f32, &f32)| f64::from((x - v) / by[g].scale).powi(2);
                        let want: f64 = group.iter().zip(&out[g * wide..]).map(square).sum();
                        // A quotient near 127 is rounded to 4e-6, which an error of 0.1 shows in its square.
                        assert!((sums[g][0] - want).abs() <= 2e-4 * want + 1e-9, "{code:?} {} {want}", sums[g][0]);
                    }
                    firsts.push((seen, sums, codes.clone(), out.clone()));
                }
                assert!(firsts.windows(2).all(|pair| pair[0] == pair[1]));
            }
        }
    }

    #[test]
    fn draws_go_down_or_up_by_the_distance() {
        // an interpreter takes hours for all
        let step = if cfg!(miri) { 97 } else { 1 };
        let x: Vec<f32> = (0..600).step_by(step).map(|i| (i - 300) as f32 * 0.019).collect();
        for code in CODES {
            let mut sums = vec![0f64; x.len()];
            let (mut codes, mut out) = (vec![0; x.len()], vec![0f32; x.len()]);
            let by = Scaling::new(if code.top() < 6.0 { 2.0 } else { 1.0 }, 0.0);
            for draw in 0..256u32 {
                let draws = vec![draw << 24 | 1 << 23; x.len()];
                for level in Level::available() {
                    encode(level, code, &x, x.len(), &[by], Some(&draws), &mut codes, &mut out);
                }
                sums.iter_mut().zip(&out).for_each(|(sum, x)| *sum += f64::from(*x) / 256.0);
            }
            let top = f64::from(code.top() * by.scale);
            for (x, mean) in x.iter().zip(&sums) {
                let x = f64::from(*x);
                assert!((mean - x.min(top)).abs() < 0.02, "{code:?} {x} {mean}");
            }
        }
    }

    #[test]
    fn fields_are_dense_from_the_lowest_bit_on() {
        for level in Level::available() {
            for bits in 2..=8 {
                for n in [0, 1, 7, 8, 9, 33, 64] {
                    let codes: Vec<u8> = (0..n).map(|i| (i * 37 % (1 << bits)) as u8).collect();
                    let mut out = vec![0xFF; bytes(bits, n)];
                    pack(level, bits, &codes, &mut out);
                    for (i, code) in codes.iter().enumerate() {
                        let bit = |at: usize| out[at / 8] >> (at % 8) & 1;
                        let found = (0..bits as usize).fold(0, |sum, b| sum | bit(i * bits as usize + b) << b);
                        assert_eq!(found, *code);
                    }
                    let spare = out.len() * 8 - n * bits as usize;
                    assert!(spare == 0 || out[out.len() - 1] >> (8 - spare) == 0);
                }
            }
        }
    }
}
