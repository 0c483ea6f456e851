//! Narrowing alone, at its boundaries: every tie between two neighbours of a format and the numbers next to it, against
//! the order of the bit patterns, which are those of the numbers.

use half::{bf16, f16};
use taskvec_core::dtype::Dtype;
use taskvec_core::kernels::narrow::{narrow, Rounding};
use taskvec_core::kernels::widen::widen;
use taskvec_core::kernels::{Level, Real};

/// A format, the bits of its largest finite number, and of what comes beyond that.
struct Format {
    dtype: Dtype,
    largest: u16,
    beyond: u16,
    /// Where its subnormal numbers end.
    normal: u16,
}

const FORMATS: [Format; 4] = [
    Format { dtype: Dtype::BF16, largest: 0x7F7F, beyond: 0x7F80, normal: 0x0080 },
    Format { dtype: Dtype::F16, largest: 0x7BFF, beyond: 0x7C00, normal: 0x0400 },
    // No infinity: what overflows is NaN.
    Format { dtype: Dtype::F8E4M3, largest: 0x7E, beyond: 0x7F, normal: 0x08 },
    Format { dtype: Dtype::F8E5M2, largest: 0x7B, beyond: 0x7C, normal: 0x04 },
];

impl Format {
    fn sign(&self) -> u16 {
        1 << (8 * self.dtype.size() - 1)
    }

    /// A number by its bits, by another road than that of the engine where there is one.
    fn number(&self, bits: u16) -> f64 {
        match self.dtype {
            Dtype::BF16 => bf16::from_bits(bits).to_f64(),
            Dtype::F16 => f16::from_bits(bits).to_f64(),
            Dtype::F8E5M2 => f16::from_bits(bits << 8).to_f64(),
            _ => {
                let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
                let size = if exponent == 0 { mantissa / 8.0 } else { 1.0 + mantissa / 8.0 };
                size * 2f64.powi(exponent.max(1) - 7)
            }
        }
    }

    /// The numbers from zero up behind each of which a boundary is looked at. Miri, an interpreter of programs, takes
    /// all of 8 bits, and of 16 bits every 61st, both ends, and the neighbours of the smallest normal number.
    fn places(&self) -> Vec<u16> {
        let step = if cfg!(miri) && self.dtype.size() == 2 { 61 } else { 1 };
        let mut places: Vec<u16> = (0..=self.largest).step_by(step).collect();
        places.extend([0, 1, 2, self.normal - 2, self.normal - 1, self.normal, self.largest - 1, self.largest]);
        places
    }

    /// Numbers around the middle between neighbours, with the bits that each is rounded to: below it down, above it up,
    /// on it to the even one.
    fn boundaries(&self) -> Vec<(f64, u16)> {
        let mut found = Vec::new();
        for low in self.places() {
            let high = low + 1;
            let (down, up) = (low, if low == self.largest { self.beyond } else { high });
            let below = self.number(low);
            let tie = if low == self.largest {
                below + (below - self.number(low - 1)) / 2.0
            } else {
                (below + self.number(high)) / 2.0
            };
            let even = if low % 2 == 0 { down } else { up };
            found.push((below, down));
            found.push((tie.next_down(), down));
            found.push((tie, even));
            found.push((tie.next_up(), up));
        }
        found.iter().flat_map(|&(x, bits)| [(x, bits), (-x, bits | self.sign())]).collect()
    }

    fn bits(&self, bytes: &[u8]) -> Vec<u16> {
        match self.dtype.size() {
            1 => bytes.iter().map(|byte| u16::from(*byte)).collect(),
            _ => bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect(),
        }
    }

    /// What numbers are narrowed to; what is left behind is what was stored.
    fn narrowed<R: Real>(&self, level: Level, numbers: &[R], rounding: Rounding<'_>) -> Vec<u16> {
        let (mut numbers, mut bytes) = (numbers.to_vec(), vec![0; numbers.len() * self.dtype.size()]);
        narrow(level, self.dtype, &mut numbers, rounding, &mut bytes);
        let mut again = vec![0f64; numbers.len()];
        widen(level, self.dtype, &bytes, &mut again);
        for (left, stored) in numbers.iter().map(|x| x.to_f64()).zip(again) {
            assert!(left == stored || !left.is_finite() && !stored.is_finite(), "{left} {stored}");
        }
        self.bits(&bytes)
    }
}

#[test]
fn every_boundary_from_float64() {
    for format in FORMATS {
        let (numbers, wanted): (Vec<f64>, Vec<u16>) = format.boundaries().into_iter().unzip();
        for level in Level::available() {
            let found = format.narrowed(level, &numbers, Rounding::Nearest);
            for ((x, found), wanted) in numbers.iter().zip(found).zip(&wanted) {
                assert_eq!(found, *wanted, "{} {} {x:e}", format.dtype, level.name());
            }
        }
    }
}

#[test]
fn every_boundary_from_float32() {
    for format in FORMATS {
        // What float32 holds of the middles and of the numbers; its own neighbours of the middles.
        let exact = |(x, _): &(f64, u16)| f64::from(*x as f32) == *x;
        let mut rows: Vec<(f32, u16)> =
            format.boundaries().into_iter().filter(exact).map(|(x, bits)| (x as f32, bits)).collect();
        for low in format.places().into_iter().filter(|low| *low < format.largest) {
            let tie = ((format.number(low) + format.number(low + 1)) / 2.0) as f32;
            if f64::from(tie) * 2.0 == format.number(low) + format.number(low + 1) {
                rows.extend([(tie.next_down(), low), (tie.next_up(), low + 1)]);
            }
        }
        let (numbers, wanted): (Vec<f32>, Vec<u16>) = rows.into_iter().unzip();
        for level in Level::available() {
            let found = format.narrowed(level, &numbers, Rounding::Nearest);
            for ((x, found), wanted) in numbers.iter().zip(found).zip(&wanted) {
                assert_eq!(found, *wanted, "{} {} {x:e}", format.dtype, level.name());
            }
        }
    }
}

#[test]
fn a_draw_decides_between_the_neighbours() {
    // A quarter of the way up: draws below a quarter of their range go up, others down; numbers stay.
    for format in FORMATS {
        let places: Vec<u16> = format.places().into_iter().filter(|low| *low < format.largest).collect();
        let number = |low: &u16| format.number(*low) * 0.75 + format.number(low + 1) * 0.25;
        let numbers: Vec<f64> = places.iter().map(number).collect();
        for level in Level::available() {
            for (draw, up) in [(0, 1), ((1 << 30) - 1, 1), (1 << 30, 0), (u32::MAX, 0)] {
                let draws = vec![draw; numbers.len()];
                let found = format.narrowed(level, &numbers, Rounding::Stochastic(&draws));
                assert!(found.iter().zip(&places).all(|(found, low)| *found == low + up), "{} {draw}", format.dtype);
                let exact: Vec<f64> = places.iter().map(|low| format.number(*low)).collect();
                assert_eq!(format.narrowed(level, &exact, Rounding::Stochastic(&draws)), places, "{}", format.dtype);
            }
        }
    }
}
