//! The codes of groups under their scales, and the numbers that they stand for.

use super::code::{Code, Integer, Round, Unsigned, E2M1, E4M3, E5M2};
use super::scaling::Scaling;
use crate::kernels::real::LANES;

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
    let (value, code) = round(by.above::<C>(x) / by.divisor + by.shift);
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
    use crate::kernels::quantise::samples::{numbers, CODES};
    use crate::kernels::Level;

    fn one() -> Scaling {
        Scaling::new(1.0, 0.0)
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
}
