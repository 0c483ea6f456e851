//! Sums over the difference of two models: what tells how much of it is a vector, and how much the noise of a format.

use super::real::LANES;
use super::stats::fold_all;

/// Sums of one tile, in the compute type: a lane has few elements of a tile.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NoiseSums {
    /// Σ difference².
    pub squares: f64,
    /// Σ |difference| where `equal` says so.
    pub magnitudes: f64,
    /// Σ reference².
    pub reference: f64,
}

kernel! {
    /// Of `donor` − `reference`; `equal` is 1 where an element counts among the magnitudes, and 0 where not.
    pub fn noise_sums<R>(donor: &[R], reference: &[R], equal: &[R]) -> NoiseSums {
        let mut sums = [[R::ZERO; LANES]; 3];
        macro_rules! lane {
            ($lane:expr, $d:expr, $r:expr, $e:expr) => {{
                let (difference, r) = ($d - $r, $r);
                sums[0][$lane] += difference * difference;
                sums[1][$lane] += difference.abs() * $e;
                sums[2][$lane] += r * r;
            }};
        }
        let n = donor.len();
        let whole = n - n % LANES;
        let (d, r, e) = (&donor[..whole], &reference[..whole], &equal[..whole]);
        for ((d, r), e) in d.chunks_exact(LANES).zip(r.chunks_exact(LANES)).zip(e.chunks_exact(LANES)) {
            for lane in 0..LANES {
                lane!(lane, d[lane], r[lane], e[lane]);
            }
        }
        for i in whole..n {
            lane!(i - whole, donor[i], reference[i], equal[i]);
        }
        let [squares, magnitudes, reference] = fold_all(&sums.map(|lanes| lanes.map(R::to_f64)));
        NoiseSums { squares, magnitudes, reference }
    }
}

kernel! {
    /// How many codes differ.
    pub fn differing(a: &[u8], b: &[u8]) -> u64 {
        a.iter().zip(b).map(|(a, b)| u32::from(a != b)).sum::<u32>().into()
    }
}
