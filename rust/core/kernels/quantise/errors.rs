//! How far codes under a scale are off, group by group.

use super::code::{Code, Integer, Round, Unsigned, E2M1, E4M3, E5M2};
use super::scaling::Scaling;
use crate::kernels::real::LANES;

/// Elements whose errors are added in f32 before f64 takes over.
const RUN: usize = 128;

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
        let y = by.above::<C>(x[lane]) / by.divisor;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::quantise::encode::encode;
    use crate::kernels::quantise::samples::CODES;
    use crate::kernels::quantise::seen::{look, Seen};
    use crate::kernels::Level;

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
}
