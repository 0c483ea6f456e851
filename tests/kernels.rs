//! Every kernel against an oracle of a few lines, bit for bit, at every CPU level that this machine has.

use half::{bf16, f16};
use proptest::prelude::*;
use taskvec_core::dtype::Dtype;
use taskvec_core::kernels::combine::{
    add_difference, add_scaled, difference, keep_donor, odd, scale, scale_difference, step, step_again, Single,
};
use taskvec_core::kernels::elementwise::{elect_unweighted, largest_agreeing, overlap_mean, variance};
use taskvec_core::kernels::factor::Factor;
use taskvec_core::kernels::l1_norms::{add_norms, Norms};
use taskvec_core::kernels::masked::Masked;
use taskvec_core::kernels::masked_sum::{add_up, Sum};
use taskvec_core::kernels::narrow::{narrow, Rounding};
use taskvec_core::kernels::stats::{dot, more_step_sums, step_sums};
use taskvec_core::kernels::threshold::{bracket, keep_by_score, mark_below, mark_equal, Counts};
use taskvec_core::kernels::widen::widen;
use taskvec_core::kernels::{Level, Real};

const FLOATS: [Dtype; 6] = [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64, Dtype::F8E4M3, Dtype::F8E5M2];

/// Types whose values are few enough to list. Miri, an interpreter of programs, takes minutes for the longer lists.
const LISTED: &[Dtype] =
    if cfg!(miri) { &[Dtype::F8E4M3, Dtype::F8E5M2] } else { &[Dtype::BF16, Dtype::F16, Dtype::F8E4M3, Dtype::F8E5M2] };

/// Values that hurt: every exponent, ties, subnormals, zeros, infinities, NaN with payloads.
fn value() -> impl Strategy<Value = f64> {
    let special = vec![
        0.0,
        -0.0,
        1.0,
        -1.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        65504.0,
        65520.0,
        65519.9,
        448.0,
        464.0,
        57344.0,
        61440.0,
        3.3895313892515355e38,
        3.4e38,
        3.5e38,
        1e-40,
        -1e-45,
        6e-8,
        2.98e-8,
        1.5e-39,
        1e300,
        5e-324,
    ];
    prop_oneof![
        1 => prop::sample::select(special),
        3 => any::<u64>().prop_map(f64::from_bits),
        3 => any::<u32>().prop_map(|b| f64::from(f32::from_bits(b))),
        // Ties and their neighbours in bf16.
        3 => (any::<u16>(), -1i32..=1).prop_map(|(b, d)| {
            f64::from(f32::from_bits((u32::from(b) << 16 | 0x8000).wrapping_add_signed(d)))
        }),
        4 => -4.0..4.0f64,
    ]
}

fn bytes_of<R: Real>(level: Level, dtype: Dtype, values: &[R]) -> Vec<u8> {
    // One byte off any alignment.
    let mut bytes = vec![0xAA; values.len() * dtype.size() + 1];
    let mut stored = values.to_vec();
    let finite = narrow(level, dtype, &mut stored, Rounding::Nearest, &mut bytes[1..]);
    let again = back(dtype, &bytes[1..]);
    assert_eq!(finite, again.iter().all(|x| x.is_finite()), "{dtype}");
    assert!(again.iter().zip(&stored).all(|(a, b)| a.to_bits() == b.to_f64().to_bits() || !a.is_finite()), "{dtype}");
    bytes[1..].to_vec()
}

fn back(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let mut values = vec![0.0; bytes.len() / dtype.size()];
    widen(Level::SCALAR, dtype, bytes, &mut values);
    values
}

/// All finite values of a type, in order, by widening every bit pattern.
fn grid(dtype: Dtype) -> Vec<f64> {
    let bytes: Vec<u8> = match dtype.size() {
        1 => (0..=255u8).collect(),
        _ => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
    };
    let mut values: Vec<f64> = back(dtype, &bytes).into_iter().filter(|x| x.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values
}

#[test]
fn all_f32_bit_patterns_in_steps_round_to_bf16_as_half_does() {
    // 2^32 patterns in strides of a prime, plus every pattern near each tie: the upper sixteen bits run through all.
    for level in Level::available() {
        let mut values = Vec::new();
        let (upper_step, step) = if cfg!(miri) { (509, 65_521 * 4099) } else { (1, 65_521) };
        for upper in (0..=u16::MAX).step_by(upper_step) {
            for lower in [0u32, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                values.push(f32::from_bits(u32::from(upper) << 16 | lower));
            }
        }
        values.extend((0..u32::MAX).step_by(step).map(f32::from_bits));
        let wide: Vec<f64> = values.iter().map(|x| f64::from(*x)).collect();
        for bytes in [bytes_of(level, Dtype::BF16, &values), bytes_of(level, Dtype::BF16, &wide)] {
            for (x, pair) in values.iter().zip(bytes.chunks_exact(2)) {
                let (got, want) = (bf16::from_le_bytes([pair[0], pair[1]]), bf16::from_f32(*x));
                assert!(
                    got == want && got.is_sign_negative() == want.is_sign_negative() || x.is_nan() && got.is_nan(),
                    "{x:e} {got} {want}"
                );
            }
        }
    }
}

#[test]
fn nan_keeps_sign_and_payload_and_is_quiet() {
    for level in Level::available() {
        for bits in [0x7F80_0001u32, 0x7FA0_0000, 0xFF81_2345, 0x7FFF_FFFF, 0xFFC0_0000] {
            let bytes = bytes_of(level, Dtype::BF16, &[f32::from_bits(bits); 33]);
            let want = (bits >> 16) as u16 | 0x40;
            assert!(bytes.chunks_exact(2).all(|pair| u16::from_le_bytes([pair[0], pair[1]]) == want), "{bits:08x}");
        }
        for dtype in FLOATS {
            let values = back(dtype, &bytes_of(level, dtype, &[f64::NAN, -f64::NAN, f64::NAN]));
            assert!(values.iter().all(|x| x.is_nan()), "{dtype}");
        }
    }
}

#[test]
fn every_value_of_a_type_survives_the_round_trip() {
    for level in Level::available() {
        for &dtype in LISTED {
            let values = grid(dtype);
            let again = back(dtype, &bytes_of(level, dtype, &values));
            assert!(values.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()), "{dtype} from f64");
            let singles: Vec<f32> = values.iter().map(|x| *x as f32).collect();
            let again = back(dtype, &bytes_of(level, dtype, &singles));
            assert!(values.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()), "{dtype} from f32");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 300 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nearest_is_the_nearest_of_all_values(values in prop::collection::vec(value(), 1..70)) {
        for &dtype in LISTED {
            let grid = grid(dtype);
            let bytes = bytes_of(Level::SCALAR, dtype, &values);
            for level in Level::available() {
                prop_assert_eq!(&bytes, &bytes_of(level, dtype, &values), "{} {}", dtype, level.name());
            }
            for (x, got) in values.iter().zip(back(dtype, &bytes)) {
                if !x.is_finite() || !got.is_finite() {
                    let spacing = grid[grid.len() - 1] - grid[grid.len() - 2];
                    let overflows = x.abs() >= grid[grid.len() - 1] + spacing / 2.0;
                    prop_assert!(overflows || x.is_nan() && got.is_nan() || !x.is_finite(), "{} {:e} {}", dtype, x, got);
                    continue;
                }
                let at = grid.partition_point(|g| g < x);
                let near = grid[at.saturating_sub(1)..(at + 2).min(grid.len())].iter().map(|g| (g - x).abs());
                let best = near.fold(f64::INFINITY, f64::min);
                prop_assert_eq!((got - x).abs(), best, "{} {:e} {:e}", dtype, x, got);
            }
        }
    }

    #[test]
    fn f16_rounds_as_half_does(values in prop::collection::vec(value(), 1..70)) {
        let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
        let bytes = bytes_of(Level::SCALAR, Dtype::F16, &values);
        for (x, pair) in values.iter().zip(bytes.chunks_exact(2)) {
            let (got, want) = (f16::from_le_bytes([pair[0], pair[1]]), f16::from_f32(*x));
            prop_assert!(got.to_bits() == want.to_bits() || x.is_nan() && got.is_nan(), "{:e} {} {}", x, got, want);
        }
    }

    #[test]
    fn stochastic_goes_to_a_neighbour_and_keeps_what_is_exact(
        values in prop::collection::vec(value(), 1..70), draw in any::<u32>()
    ) {
        for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F8E4M3, Dtype::F8E5M2] {
            let draws = vec![draw; values.len()];
            let mut first = vec![0; values.len() * dtype.size()];
            narrow(Level::SCALAR, dtype, &mut values.clone(), Rounding::Stochastic(&draws), &mut first);
            for level in Level::available() {
                let mut bytes = vec![0; first.len()];
                narrow(level, dtype, &mut values.clone(), Rounding::Stochastic(&draws), &mut bytes);
                prop_assert_eq!(&bytes, &first, "{} {}", dtype, level.name());
            }
            if !LISTED.contains(&dtype) { continue; }
            let grid = grid(dtype);
            for (x, got) in values.iter().zip(back(dtype, &first)) {
                if x.is_finite() && x.abs() <= grid[grid.len() - 1] {
                    let at = grid.partition_point(|g| g < x);
                    let below = if grid.get(at) == Some(x) { *x } else { grid[at - 1] };
                    prop_assert!(got == below || got == grid[at], "{} {:e} {:e}", dtype, x, got);
                }
            }
        }
    }

    #[test]
    fn combinations_are_plain_ieee(
        rows in prop::collection::vec((value(), value(), value()), 1..150), weight in -3.0..3.0f32
    ) {
        let (x, (y, z)): (Vec<f32>, (Vec<f32>, Vec<f32>)) =
            rows.iter().map(|(a, b, c)| (*a as f32, (*b as f32, *c as f32))).unzip();
        let bits = |v: &[f32]| v.iter().map(|x| if x.is_nan() { 0x7FC0_0000 } else { x.to_bits() }).collect::<Vec<_>>();
        for level in Level::available() {
            let mut out = vec![0f32; x.len()];
            difference(level, &x, &y, &mut out);
            let want: Vec<f32> = x.iter().zip(&y).map(|(a, b)| a - b).collect();
            prop_assert_eq!(bits(&out), bits(&want));
            let factor = Factor::new(f64::from(weight));
            scale(level, &x, factor, &mut out);
            add_scaled(level, &y, factor, &mut out);
            let want: Vec<f32> = x.iter().zip(&y).map(|(a, b)| weight * a + weight * b).collect();
            prop_assert_eq!(bits(&out), bits(&want));
            scale_difference(level, &x, &y, weight, &mut out);
            add_difference(level, &y, &z, weight, &mut out);
            let want: Vec<f32> = (0..x.len()).map(|i| weight * (x[i] - y[i]) + weight * (y[i] - z[i])).collect();
            prop_assert_eq!(bits(&out), bits(&want));
            let fine = step(level, &x, &y, f64::from(weight), Single::Odd, &mut out);
            let plain = |(t, d): (&f32, &f32)| if *d == 0.0 || weight == 0.0 { *t } else { t + weight * d };
            let want: Vec<f32> = x.iter().zip(&y).map(plain).collect();
            prop_assert_eq!(bits(&out), bits(&want));
            let far = |t: f32, o: f32| o.abs() < t.abs() / 4096.0 || !o.is_finite();
            let cancelled = x.iter().zip(&y).zip(&out).any(|((t, d), o)| *d != 0.0 && far(*t, *o));
            prop_assert_eq!(fine, !cancelled || weight == 0.0);
            keep_donor(level, &x, &y, &z, &mut out);
            let same = |i: usize| x[i] == z[i] && x[i].to_bits() == z[i].to_bits();
            let want: Vec<f32> = (0..x.len()).map(|i| if same(i) { y[i] } else { want[i] }).collect();
            prop_assert_eq!(bits(&out), bits(&want));
        }
    }

    #[test]
    fn what_f32_cannot_do_is_within_one_unit_of_float64(
        rows in prop::collection::vec((any::<u16>(), any::<u16>(), any::<u16>()), 1..150), alpha in -2.0..2.0f64
    ) {
        let wide = |bits: u16| f64::from(bf16::from_bits(bits).to_f32());
        let sane = |x: f64| if x.is_finite() && x.abs() < 1e30 && (x == 0.0 || x.abs() > 1e-30) { x } else { 0.5 };
        let t: Vec<f64> = rows.iter().map(|r| sane(wide(r.0))).collect();
        let d: Vec<f64> = rows.iter().map(|r| sane(wide(r.1))).collect();
        let r: Vec<f64> = rows.iter().map(|r| sane(wide(r.2))).collect();
        let single = |v: &[f64]| v.iter().map(|x| *x as f32).collect::<Vec<_>>();
        let first = {
            let (mut delta, mut out) = (vec![0f32; t.len()], vec![0f32; t.len()]);
            difference(Level::SCALAR, &single(&d), &single(&r), &mut delta);
            step(Level::SCALAR, &single(&t), &delta, alpha, Single::Odd, &mut out);
            step_again(Level::SCALAR, &t, &[(&d, Some(&r), 1.0)], alpha, Single::Odd, &mut out);
            out
        };
        let rounded = back(Dtype::BF16, &bytes_of(Level::SCALAR, Dtype::BF16, &first));
        for i in 0..t.len() {
            let want = t[i] + alpha * (d[i] - r[i]);
            let unit = 2f64.powi(want.abs().log2().floor().max(-126.0) as i32 - 7);
            prop_assert!((rounded[i] - want).abs() <= unit, "{} + {} ({} - {}) = {}, got {}", t[i], alpha, d[i], r[i], want, rounded[i]);
        }
        for level in Level::available() {
            let (mut delta, mut out) = (vec![0f32; t.len()], vec![0f32; t.len()]);
            difference(level, &single(&d), &single(&r), &mut delta);
            step(level, &single(&t), &delta, alpha, Single::Odd, &mut out);
            step_again(level, &t, &[(&d, Some(&r), 1.0)], alpha, Single::Odd, &mut out);
            prop_assert_eq!(out.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), first.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn sums_have_the_same_bits_at_every_level(rows in prop::collection::vec((-2.0..2.0f32, -1e-3..1e-3f32), 1..3000)) {
        let (t, d): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
        let mut out = vec![0f32; t.len()];
        step(Level::SCALAR, &t, &d, 0.5, Single::Odd, &mut out);
        let first = step_sums(Level::SCALAR, &t, &d, 0.5, &out);
        let plain: f64 = t.iter().zip(&d).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        prop_assert!((dot(Level::SCALAR, &t, &d) - plain).abs() <= 1e-12);
        let steps: f64 = d.iter().map(|b| (0.5 * f64::from(*b)).powi(2)).sum();
        prop_assert!((first.step - steps).abs() <= 1e-12 * steps.max(1e-300));
        prop_assert_eq!(first.changed, d.iter().filter(|b| **b != 0.0).count() as u64);
        prop_assert_eq!(first.lost, t.iter().zip(&d).zip(&out).filter(|((t, d), o)| **d != 0.0 && o == t).count() as u64);
        for level in Level::available() {
            prop_assert_eq!(step_sums(level, &t, &d, 0.5, &out), first);
            // What the sums of another α have in common with these is not summed again.
            let mut other = vec![0f32; t.len()];
            step(level, &t, &d, -1.5, Single::Odd, &mut other);
            prop_assert_eq!(
                more_step_sums(level, &t, &d, -1.5, &other, &first),
                step_sums(level, &t, &d, -1.5, &other)
            );
            prop_assert_eq!(first.still(0.0), step_sums(level, &t, &d, 0.0, &t));
            prop_assert_eq!(dot(level, &t, &d).to_bits(), dot(Level::SCALAR, &t, &d).to_bits());
            let norms = |level| {
                let (words, mut norms) = (vec![0x5555_0F0F_3333_8421; t.len() / 64 + 1], Norms::default());
                add_norms(level, &Masked::whole(&t, Some(&d), &words), &mut norms);
                let (all, kept) = norms.sums();
                (all.to_bits(), kept.to_bits())
            };
            prop_assert_eq!(norms(level), norms(Level::SCALAR));
        }
    }

    #[test]
    fn rounding_to_odd_first_does_not_change_the_second_rounding(x in value()) {
        let direct = back(Dtype::BF16, &bytes_of(Level::SCALAR, Dtype::BF16, &[x]))[0];
        let via = back(Dtype::BF16, &bytes_of(Level::SCALAR, Dtype::BF16, &[odd(x)]))[0];
        prop_assert!(direct.to_bits() == via.to_bits() || direct.is_nan() && via.is_nan(), "{:e}", x);
    }
}

#[test]
#[cfg_attr(miri, ignore = "millions of draws; the same kernel is looked at above")]
fn stochastic_rounding_is_unbiased() {
    // 2^16 draws spread evenly: the mean of the results is the value itself up to one part in 2^16 of the spacing.
    let draws: Vec<u32> = (0..65_536u32).map(|i| (i << 16) | 0x8000).collect();
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F8E4M3, Dtype::F8E5M2] {
        for x in [1.000_123_456, -0.777_7, 3.3e-5, 1.0, 300.5] {
            let mut bytes = vec![0; draws.len() * dtype.size()];
            narrow(Level::SCALAR, dtype, &mut vec![x; draws.len()], Rounding::Stochastic(&draws), &mut bytes);
            let values = back(dtype, &bytes);
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let spread = values.iter().fold(f64::NEG_INFINITY, |m, v| m.max(*v))
                - values.iter().fold(f64::INFINITY, |m, v| m.min(*v));
            assert!((mean - x).abs() <= spread / 60_000.0 + 1e-12, "{dtype} {x}: {mean}, spacing {spread}");
        }
    }
}

/// Small numbers that are often equal.
fn small() -> impl Strategy<Value = f32> {
    (-6i8..=6).prop_map(|x| f32::from(x) * 0.25)
}

proptest! {
    #[test]
    fn what_a_cut_drops_is_zero(x in prop::collection::vec(small(), 0..300), share in 0.0..1.0f64, t in 0u8..8) {
        let (before, t) = ((share * x.len() as f64) as usize, f32::from(t) * 0.25);
        let kept = |i: usize| x[i].abs() > t || i < before && x[i].abs() == t;
        let want: Vec<f32> = (0..x.len()).map(|i| if kept(i) { x[i] } else { 0.0 }).collect();
        let scores: Vec<f32> = x.iter().map(|x| x.abs()).collect();
        for level in Level::available() {
            let mut left = x.clone();
            keep_by_score(level, t, before, &scores, &mut left);
            prop_assert_eq!(&left, &want);
        }
    }

    #[test]
    fn marks_are_the_draws_below(draws in prop::collection::vec(any::<u8>(), 1..2000), limit in 0..=1u32 << 8) {
        for level in Level::available() {
            for limit in [0, limit, 1 << 8] {
                let (mut below, mut equal) = (vec![u64::MAX; draws.len().div_ceil(64)], vec![u64::MAX; draws.len().div_ceil(64)]);
                mark_below(level, &draws, limit, &mut below);
                mark_equal(level, &draws, limit as u8, &mut equal);
                let bit = |words: &[u64], i: usize| words[i / 64] >> (i % 64) & 1 == 1;
                for (i, draw) in draws.iter().enumerate() {
                    prop_assert_eq!(bit(&below, i), u32::from(*draw) < limit);
                    prop_assert_eq!(bit(&equal, i), *draw == limit as u8);
                }
            }
        }
    }

    #[test]
    fn a_bracket_counts_and_lists(x in prop::collection::vec(small(), 0..300), low in 0u8..7, width in 0u8..4) {
        let (low, high) = (f32::from(low) * 0.25, f32::from(low + width) * 0.25);
        let count = |holds: &dyn Fn(f32) -> bool| x.iter().filter(|x| holds(x.abs())).count() as u64;
        let want = Counts { above: count(&|x| x > high), at_high: count(&|x| x == high), at_low: count(&|x| x == low) };
        let listed: Vec<f32> = x.iter().map(|x| x.abs()).filter(|x| *x > low && *x < high).collect();
        for level in Level::available() {
            let mut inside = Vec::new();
            prop_assert_eq!(bracket(level, &x, (low, high), &mut inside), want);
            prop_assert_eq!(&inside, &listed);
        }
    }

    #[test]
    fn elections_by_their_definition(rows in prop::collection::vec(prop::array::uniform6(small()), 1..100), n in 1usize..=6, normalize: bool) {
        let columns: Vec<Vec<f32>> = (0..n).map(|k| rows.iter().map(|row| row[k]).collect()).collect();
        let slices: Vec<&[f32]> = columns.iter().map(Vec::as_slice).collect();
        let weights = &[0.5f32, 0.25, 1.0, 0.75, 0.5, 2.0][..n];
        for level in Level::available() {
            let mut got: [Vec<f32>; 5] = std::array::from_fn(|_| vec![f32::NAN; rows.len()]);
            let all = [u64::MAX; 2];
            let whole = |k: usize| Masked { factor: Factor::new(f64::from(weights[k])), weight: weights[k], ..Masked::whole(slices[k], None, &all) };
            let terms: Vec<Masked<'_, f32>> = (0..n).map(whole).collect();
            add_up(level, &terms, if normalize { Sum::ElectedMean } else { Sum::Elected }, &mut got[0]);
            elect_unweighted(level, &slices, weights, 1e-6, &mut got[1]);
            variance(level, &slices, &mut got[2]);
            largest_agreeing(level, &slices, &mut got[3]);
            overlap_mean(level, &slices, weights, 0.3, &mut got[4]);
            for (i, row) in rows.iter().enumerate() {
                let (row, sum) = (&row[..n], |x: &dyn Fn(usize) -> f32| (0..n).map(x).fold(0.0, |a, b| a + b));
                let sides = |total: f32| move |x: f32| if total >= 0.0 { x > 0.0 } else { x < 0.0 };
                let (of_terms, of_deltas) = (sides(sum(&|k| weights[k] * row[k])), sides(sum(&|k| row[k])));
                let agreed = |agrees: &dyn Fn(f32) -> bool| sum(&|k| if agrees(row[k]) { weights[k] * row[k] } else { 0.0 });
                let divisor = |agrees: &dyn Fn(f32) -> bool| sum(&|k| if agrees(row[k]) { weights[k] } else { 0.0 });
                let by = divisor(&of_terms);
                let want = agreed(&of_terms) / if normalize && by != 0.0 { by } else { 1.0 };
                prop_assert!((got[0][i] - want).abs() <= 1e-6 * want.abs());
                prop_assert_eq!(got[1][i], agreed(&of_deltas) / divisor(&of_deltas).max(1e-6));
                let mean = sum(&|k| row[k]) / n as f32;
                prop_assert_eq!(got[2][i], sum(&|k| (row[k] - mean) * (row[k] - mean)) / n as f32);
                let most = (0..n).filter(|k| of_deltas(row[*k])).fold(0.0f32, |a, k| a.max(row[k].abs()));
                prop_assert_eq!(got[3][i].abs(), if sum(&|k| row[k]) == 0.0 { 0.0 } else { most });
                let touched = row.iter().filter(|x| x.abs() > 0.3).count();
                let factor = |k: usize| if touched == 1 { weights[k] } else { 1.0 };
                let kept = sum(&|k| if row[k].abs() > 0.3 { factor(k) * row[k] } else { 0.0 });
                prop_assert_eq!(got[4][i], kept / touched.max(1) as f32);
            }
        }
    }
}
