//! Sums over a tile, in fixed lanes, for survival and difference statistics.

use super::real::{Real, LANES};

/// Sums of one tile: what a step was meant to do to the target, and what it did after rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepSums {
    /// Σ Δ².
    pub delta: f64,
    /// Σ step², with step = α·Δ.
    pub step: f64,
    /// Σ (out − target)².
    pub moved: f64,
    /// Σ step·(out − target).
    pub dot: f64,
    /// Σ ((out − target) − step)².
    pub error: f64,
    /// Σ target².
    pub target: f64,
    /// Elements whose Δ is not zero.
    pub changed: u64,
    /// Of those, elements where out = target.
    pub lost: u64,
}

impl StepSums {
    /// With another α, what does not depend on it kept: the rest is that of an output equal to the target.
    pub fn still(&self, alpha: f64) -> StepSums {
        StepSums { step: alpha * (alpha * self.delta), moved: 0.0, dot: 0.0, error: 0.0, lost: self.changed, ..*self }
    }
}

/// Calls `$lane!(lane, t, d, o)` for every element of three slices.
macro_rules! each_lane {
    ($lane:ident, $target:expr, $delta:expr, $out:expr) => {
        let n = $target.len();
        let whole = n - n % LANES;
        let (t, d, o) = (&$target[..whole], &$delta[..whole], &$out[..whole]);
        for ((t, d), o) in t.chunks_exact(LANES).zip(d.chunks_exact(LANES)).zip(o.chunks_exact(LANES)) {
            for lane in 0..LANES {
                $lane!(lane, t[lane], d[lane], o[lane]);
            }
        }
        for i in whole..n {
            $lane!(i - whole, $target[i], $delta[i], $out[i]);
        }
    };
}

/// The lanes added up in one fixed order: halves onto each other.
pub fn fold(lanes: &[f64; LANES]) -> f64 {
    fold_all(&[*lanes])[0]
}

/// The same of several sums. Not inlined: seeing the halves, the compiler sums in pairs of lanes what goes through whole
/// vectors, at four times the cost.
#[inline(never)]
pub(super) fn fold_all<const N: usize>(sums: &[[f64; LANES]; N]) -> [f64; N] {
    let mut sums = *sums;
    let mut width = LANES / 2;
    while width > 0 {
        for lanes in &mut sums {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        width /= 2;
    }
    sums.map(|lanes| lanes[0])
}

kernel! {
    /// Measures `out` (already rounded to the output type) against `target` and `alpha`·`delta`.
    pub fn step_sums<R>(target: &[R], delta: &[R], alpha: f64, out: &[R]) -> StepSums {
        let mut deltas = [0f64; LANES];
        let mut norm = [0f64; LANES];
        let mut moves = Moves::default();
        let mut changed = [0u32; LANES];
        macro_rules! lane {
            ($lane:expr, $t:expr, $d:expr, $o:expr) => {{
                changed[$lane] += u32::from($d != R::ZERO);
                let (t, d) = ($t.to_f64(), $d.to_f64());
                deltas[$lane] += d * d;
                norm[$lane] += t * t;
                moves.lane($lane, $t, $d, alpha, $o);
            }};
        }
        each_lane!(lane, target, delta, out);
        let (delta, sums) = (fold(&deltas), moves.sums());
        StepSums {
            delta,
            step: alpha * (alpha * delta),
            target: fold(&norm),
            changed: changed.iter().map(|c| u64::from(*c)).sum(),
            ..sums
        }
    }
}

kernel! {
    /// The same for another α and its `out`; `first` has what does not depend on them.
    pub fn more_step_sums<R>(target: &[R], delta: &[R], alpha: f64, out: &[R], first: &StepSums) -> StepSums {
        let mut moves = Moves::default();
        macro_rules! lane {
            ($lane:expr, $t:expr, $d:expr, $o:expr) => {
                moves.lane($lane, $t, $d, alpha, $o)
            };
        }
        each_lane!(lane, target, delta, out);
        let StepSums { moved, dot, error, lost, .. } = moves.sums();
        StepSums { moved, dot, error, lost, ..first.still(alpha) }
    }
}

/// The sums that depend on α, lane by lane.
#[derive(Default)]
struct Moves {
    moved: [f64; LANES],
    dot: [f64; LANES],
    error: [f64; LANES],
    lost: [u32; LANES],
}

impl Moves {
    #[inline(always)]
    fn lane<R: Real>(&mut self, lane: usize, t: R, d: R, alpha: f64, o: R) {
        self.lost[lane] += u32::from(d != R::ZERO) & u32::from(o == t);
        let (step, moved) = (alpha * d.to_f64(), o.to_f64() - t.to_f64());
        let error = moved - step;
        self.moved[lane] += moved * moved;
        self.dot[lane] += step * moved;
        self.error[lane] += error * error;
    }

    #[inline(always)]
    fn sums(&self) -> StepSums {
        StepSums {
            moved: fold(&self.moved),
            dot: fold(&self.dot),
            error: fold(&self.error),
            lost: self.lost.iter().map(|c| u64::from(*c)).sum(),
            ..StepSums::default()
        }
    }
}

/// Sums over a tile of two tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct PairSums {
    /// Σ x².
    pub left: f64,
    /// Σ y².
    pub right: f64,
    /// Σ x·y.
    pub dot: f64,
    /// Σ (x − y)².
    pub difference: f64,
    /// max |x − y|.
    pub largest: f64,
    /// Elements with x ≠ y.
    pub changed: u64,
    /// Elements with x ≠ 0.
    pub left_nonzero: u64,
    /// Elements with y ≠ 0.
    pub right_nonzero: u64,
    /// Elements where neither is zero.
    pub both_nonzero: u64,
    /// Of those, elements of the same sign.
    pub same_sign: u64,
}

impl PairSums {
    /// Adds those of the tile that follows.
    pub(crate) fn merge(&mut self, other: &PairSums) {
        self.left += other.left;
        self.right += other.right;
        self.dot += other.dot;
        self.difference += other.difference;
        self.largest = if other.largest > self.largest { other.largest } else { self.largest };
        self.changed += other.changed;
        self.left_nonzero += other.left_nonzero;
        self.right_nonzero += other.right_nonzero;
        self.both_nonzero += other.both_nonzero;
        self.same_sign += other.same_sign;
    }
}

kernel! {
    /// Compares two tiles.
    pub(crate) fn pair_sums(x: &[f64], y: &[f64]) -> PairSums {
        let mut sums = [[0f64; LANES]; 4];
        let mut largest = [0f64; LANES];
        let mut counts = [[0u32; LANES]; 5];
        macro_rules! lane {
            ($lane:expr, $a:expr, $b:expr) => {{
                let (lane, a, b) = ($lane, $a, $b);
                let d = a - b;
                sums[0][lane] += a * a;
                sums[1][lane] += b * b;
                sums[2][lane] += a * b;
                sums[3][lane] += d * d;
                largest[lane] = if d.abs() > largest[lane] { d.abs() } else { largest[lane] };
                let (left, right) = (u32::from(a != 0.0), u32::from(b != 0.0));
                counts[0][lane] += u32::from(a != b);
                counts[1][lane] += left;
                counts[2][lane] += right;
                counts[3][lane] += left & right;
                counts[4][lane] += left & right & u32::from((a > 0.0) == (b > 0.0));
            }};
        }
        let n = x.len().min(y.len());
        let whole = n - n % LANES;
        for (a, b) in x[..whole].chunks_exact(LANES).zip(y[..whole].chunks_exact(LANES)) {
            for lane in 0..LANES {
                lane!(lane, a[lane], b[lane]);
            }
        }
        for i in whole..n {
            lane!(i - whole, x[i], y[i]);
        }
        let count = |i: usize| counts[i].iter().map(|c| u64::from(*c)).sum();
        PairSums {
            left: fold(&sums[0]),
            right: fold(&sums[1]),
            dot: fold(&sums[2]),
            difference: fold(&sums[3]),
            largest: largest.iter().fold(0.0, |a, b| if *b > a { *b } else { a }),
            changed: count(0),
            left_nonzero: count(1),
            right_nonzero: count(2),
            both_nonzero: count(3),
            same_sign: count(4),
        }
    }
}

kernel! {
    /// Σ x·y.
    pub fn dot<R>(x: &[R], y: &[R]) -> f64 {
        let mut lanes = [0f64; LANES];
        let n = x.len().min(y.len());
        let whole = n - n % LANES;
        for (a, b) in x[..whole].chunks_exact(LANES).zip(y[..whole].chunks_exact(LANES)) {
            for lane in 0..LANES {
                lanes[lane] += a[lane].to_f64() * b[lane].to_f64();
            }
        }
        for i in whole..n {
            lanes[i - whole] += x[i].to_f64() * y[i].to_f64();
        }
        fold(&lanes)
    }
}

/// Inner products of every pair of `N` slices, each converted once.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // lanes side by side in all arrays: what makes vectors of it
fn pairs_of<R: super::Real, const N: usize>(all: &[&[R]], sums: &mut [f64]) {
    let n = all[0].len();
    let mut lanes = [[[0f64; LANES]; N]; N];
    macro_rules! add {
        ($x:ident) => {
            for i in 0..N {
                for j in i..N {
                    for lane in 0..LANES {
                        lanes[i][j][lane] += $x[i][lane] * $x[j][lane];
                    }
                }
            }
        };
    }
    let whole: [&[[R; LANES]]; N] = std::array::from_fn(|k| &all[k].as_chunks().0[..n / LANES]);
    for at in 0..n / LANES {
        let mut x = [[0f64; LANES]; N];
        for k in 0..N {
            for lane in 0..LANES {
                x[k][lane] = whole[k][at][lane].to_f64();
            }
        }
        add!(x);
    }
    let mut rest = [[0f64; LANES]; N];
    for k in 0..N {
        rest[k].iter_mut().zip(&all[k][n - n % LANES..]).for_each(|(x, value)| *x = value.to_f64());
    }
    add!(rest);
    let pairs = (0..N).flat_map(|i| (i..N).map(move |j| (i, j)));
    sums.iter_mut().zip(pairs).for_each(|(sum, (i, j))| *sum += fold(&lanes[i][j]));
}

kernel! {
    /// Adds Σ x·y of every pair of slices, each with itself included, in the order (0, 0), (0, 1), … (1, 1), ….
    pub(crate) fn add_pairs<R>(all: &[&[R]], sums: &mut [f64]) {
        match all.len() {
            0 => {}
            1 => pairs_of::<R, 1>(all, sums),
            2 => pairs_of::<R, 2>(all, sums),
            3 => pairs_of::<R, 3>(all, sums),
            4 => pairs_of::<R, 4>(all, sums),
            n => {
                // Pair by pair, which needs no more lanes than there are registers.
                let mut places = sums.iter_mut();
                for i in 0..n {
                    for j in i..n {
                        let mut three = [0.0; 3];
                        pairs_of::<R, 2>(&[all[i], all[j]], &mut three);
                        places.next().into_iter().for_each(|sum| *sum += three[1]);
                    }
                }
            }
        }
    }
}
