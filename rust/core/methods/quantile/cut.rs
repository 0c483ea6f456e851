//! A cut through a tensor's scores, and how a method hands out the scores that it is found among.

use crate::kernels::threshold::keep_by_score;
use crate::kernels::{Level, Real};
use crate::tensor::Tile;

/// Which elements are kept: a score above the threshold, or equal to it and before an index.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cut {
    /// The least score kept.
    pub threshold: f64,
    /// Elements of that score are kept before this index.
    pub until: u64,
}

impl Cut {
    /// Keeps everything.
    pub(crate) const ALL: Cut = Cut { threshold: -1.0, until: u64::MAX };
    /// Keeps nothing.
    pub(crate) const NONE: Cut = Cut { threshold: f64::INFINITY, until: 0 };

    fn before(&self, first: u64, n: usize) -> usize {
        self.until.saturating_sub(first).min(n as u64) as usize
    }

    /// The magnitude above which the elements `first .. first + n` are kept; none where it is not the same for all.
    pub(crate) fn above<R: Real>(&self, first: u64, n: usize) -> Option<R> {
        let threshold = R::from_f64(self.threshold);
        match self.before(first, n) {
            0 => Some(threshold),
            all if all == n => Some(threshold.next_down()),
            _ => None,
        }
    }

    /// Whether the element `index` of that magnitude is kept.
    pub(crate) fn keeps<R: Real>(&self, index: u64, magnitude: R) -> bool {
        let threshold = R::from_f64(self.threshold);
        magnitude > threshold || magnitude == threshold && index < self.until
    }

    /// Sets to zero what the cut does not keep by its score.
    pub(crate) fn keep_by<R: Real>(&self, level: Level, first: u64, scores: &[R], x: &mut [R]) {
        keep_by_score(level, R::from_f64(self.threshold), self.before(first, x.len()), scores, x);
    }
}

/// Hands out the scores of a tile, one kind after the other: the magnitudes of differences.
pub(crate) type Scores<'a, R> = dyn Fn(&Tile<'_, R>, &mut Each<'_, R>) + Sync + 'a;

/// Gets the kind, the values, and what is subtracted from them.
pub(crate) type Each<'a, R> = dyn FnMut(usize, &[R], Option<&[R]>) + 'a;

/// Magnitudes, one by one.
pub(crate) fn magnitudes<'a, R: Real>(values: &'a [R], subtrahends: Option<&'a [R]>) -> impl Iterator<Item = R> + 'a {
    let one = move |(i, x): (usize, &R)| subtrahends.map_or(*x, |y| *x - y[i]).abs();
    values.iter().enumerate().map(one)
}
