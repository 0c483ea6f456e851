//! Decoders of stored codes against an oracle of a few lines, bit for bit, at every CPU level that this machine has.

use half::f16;
use proptest::prelude::*;
use taskvec_core::dtype::Dtype;
use taskvec_core::kernels::codes::{
    e2m1, fields, from_zero_by_column, from_zero_in_runs, looked_up, multiply_all, multiply_runs, nibbles,
    onto_bias_in_runs, scaled_runs, widen_codes,
};
use taskvec_core::kernels::noise::{differing, noise_sums};
use taskvec_core::kernels::Level;

/// The value of a code that is a number by itself.
fn value(dtype: Dtype, code: u8) -> f32 {
    let sign = if code > 127 { -1.0 } else { 1.0 };
    match dtype {
        Dtype::I8 => f32::from(code as i8),
        Dtype::F8E5M2 => f16::from_bits(u16::from(code) << 8).to_f32(),
        _ if code & 0x7F == 0x7F => f32::NAN,
        _ => match (i32::from(code >> 3 & 15), f32::from(code & 7)) {
            (0, mantissa) => sign * mantissa * 2f32.powi(-9),
            (exponent, mantissa) => sign * (8.0 + mantissa) * 2f32.powi(exponent - 10),
        },
    }
}

/// The same number, or none on both sides.
fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
}

/// Scales that hurt: zero, no number, subnormal, large.
fn scale() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => 1e-4..10f32,
        1 => prop::sample::select(vec![0.0, -0.0, -1.5, f32::NAN, f32::INFINITY, 1e-41, 2f32.powi(-127), 3e38]),
    ]
}

proptest! {
    #[test]
    fn codes_times_the_scales_of_their_runs(
        codes in prop::collection::vec(any::<u8>(), 1..520),
        all in prop::collection::vec(scale(), 520),
        run in 1usize..200,
        skip in 0usize..200,
        dtype in prop::sample::select(vec![Dtype::F8E4M3, Dtype::F8E5M2, Dtype::I8]),
    ) {
        let skip = skip % run;
        let of = |i: usize| all[(skip + i) / run];
        let scales = &all[..(skip + codes.len() - 1) / run + 1];
        let plain: Vec<f32> = codes.iter().map(|code| value(dtype, *code)).collect();
        let want: Vec<f32> = plain.iter().enumerate().map(|(i, x)| x * of(i)).collect();
        let twice: Vec<f32> = want.iter().map(|x| x * 0.3).collect();
        for level in Level::available() {
            let mut out = vec![7f32; codes.len()];
            let finite = scaled_runs(level, dtype, &codes, scales, (skip, run), &mut out);
            prop_assert!(same(&out, &want), "{}", level.name());
            prop_assert_eq!(finite, want.iter().all(|x| x.is_finite()));
            prop_assert_eq!(multiply_all(level, 0.3, &mut out), twice.iter().all(|x| x.is_finite()));
            prop_assert!(same(&out, &twice), "{}", level.name());
            widen_codes(level, dtype, &codes, &mut out);
            prop_assert!(same(&out, &plain), "{}", level.name());
            prop_assert_eq!(multiply_runs(level, scales, (skip, run), &mut out), finite);
            prop_assert!(same(&out, &want), "{}", level.name());
        }
    }

    #[test]
    fn integers_of_any_bits_from_anywhere(
        bytes in prop::collection::vec(any::<u8>(), 70..600),
        bits in 1u32..9,
        first in 0usize..70,
        high in any::<bool>(),
    ) {
        let bit = |i: usize| bytes[i / 8] >> (i % 8) & 1;
        let count = (bytes.len() * 8 / bits as usize).saturating_sub(first).min(512);
        let one = |i: usize| (0..bits as usize).fold(0u8, |x, b| x | bit((first + i) * bits as usize + b) << b);
        let want: Vec<u8> = (0..count).map(one).collect();
        let first_half = first % bytes.len();
        let n = (2 * bytes.len() - first_half).min(512);
        let half = |i: usize| {
            let byte = bytes[(first_half + i) / 2];
            if ((first_half + i) % 2 == 1) ^ high { byte >> 4 } else { byte & 15 }
        };
        let halves: Vec<u8> = (0..n).map(half).collect();
        for level in Level::available() {
            let mut out = vec![0xAA; count];
            fields(level, bits, &bytes, first, &mut out);
            prop_assert_eq!(&out, &want, "{} {}", bits, level.name());
            let mut out = vec![0xAA; n];
            nibbles(level, &bytes, first_half, high, &mut out);
            prop_assert_eq!(&out, &halves, "{}", level.name());
        }
    }

    #[test]
    fn integers_with_zero_points_and_biases(
        codes in prop::collection::vec(any::<u8>(), 1..520),
        all in prop::collection::vec((scale(), -300..300i32), 520),
        run in 1usize..70,
        skip in 0usize..70,
    ) {
        let skip = skip % run;
        let (scales, zeros): (Vec<f32>, Vec<f32>) = all.iter().map(|(s, z)| (*s, *z as f32)).unzip();
        let n = codes.len();
        let count = (skip + n - 1) / run + 1;
        let group = |i: usize| (skip + i) / run;
        let by_run: Vec<f32> = (0..n).map(|i| (f32::from(codes[i]) - zeros[group(i)]) * scales[group(i)]).collect();
        let by_column: Vec<f32> = (0..n).map(|i| (f32::from(codes[i]) - zeros[i]) * scales[i]).collect();
        let onto: Vec<f32> = (0..n).map(|i| f32::from(codes[i]) * scales[group(i)] + zeros[group(i)]).collect();
        let finite = |values: &[f32]| values.iter().all(|x| x.is_finite());
        for level in Level::available() {
            let mut out = vec![7f32; n];
            let found = from_zero_in_runs(level, &codes, &zeros[..count], &scales[..count], (skip, run), &mut out);
            prop_assert!(found == finite(&by_run) && same(&out, &by_run), "{}", level.name());
            let found = from_zero_by_column(level, &codes, &zeros[..n], &scales[..n], &mut out);
            prop_assert!(found == finite(&by_column) && same(&out, &by_column), "{}", level.name());
            let found = onto_bias_in_runs(level, &codes, &zeros[..count], &scales[..count], (skip, run), &mut out);
            prop_assert!(found == finite(&onto) && same(&out, &onto), "{}", level.name());
        }
    }

    #[test]
    fn four_bits_as_floats_and_into_tables(codes in prop::collection::vec(0u8..16, 0..520)) {
        const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let table: [f32; 16] = std::array::from_fn(|i| if i < 8 { E2M1[i] } else { -E2M1[i - 8] });
        let want: Vec<f32> = codes.iter().map(|code| table[usize::from(*code)]).collect();
        for level in Level::available() {
            let mut out = vec![7f32; codes.len()];
            e2m1(level, &codes, &mut out);
            prop_assert!(same(&out, &want), "{}", level.name());
            looked_up(level, &codes, &table, &mut out);
            prop_assert!(same(&out, &want), "{}", level.name());
        }
    }

    #[test]
    fn sums_of_a_difference(rows in prop::collection::vec((-9f32..9.0, -9f32..9.0, any::<bool>(), any::<u8>(), 0u8..3), 0..520)) {
        let column = |of: fn(&(f32, f32, bool, u8, u8)) -> f32| rows.iter().map(of).collect::<Vec<f32>>();
        let (donor, reference, equal) = (column(|r| r.0), column(|r| r.1), column(|r| f32::from(u8::from(r.2))));
        let (a, b): (Vec<u8>, Vec<u8>) = rows.iter().map(|r| (r.3, r.3 ^ (r.4 / 2))).unzip();
        let sum = |of: fn(f64, f64, bool) -> f64| -> f64 {
            rows.iter().map(|r| of(f64::from(r.0 - r.1), f64::from(r.1), r.2)).sum()
        };
        let want = [
            sum(|d, _, _| d * d),
            sum(|d, _, equal| if equal { d.abs() } else { 0.0 }),
            sum(|_, r, _| r * r),
        ];
        let base = noise_sums(Level::SCALAR, &donor, &reference, &equal);
        for (found, want) in [base.squares, base.magnitudes, base.reference].iter().zip(want) {
            prop_assert!((found - want).abs() <= 1e-5 * want.abs());
        }
        for level in Level::available() {
            prop_assert_eq!(noise_sums(level, &donor, &reference, &equal), base);
            prop_assert_eq!(differing(level, &a, &b), rows.iter().filter(|r| r.4 == 2).count() as u64);
        }
    }
}
