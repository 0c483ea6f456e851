//! What is kept of a difference: elements that a bit says, or whose magnitude lies within bounds.

use super::factor::Factor;
use super::real::{Real, LANES};

/// The elements of one difference in a tile, and which are kept: those whose bit is set and whose magnitude is above
/// `low` and not above `high`.
#[derive(Clone, Copy, Debug)]
pub struct Masked<'a, R> {
    /// The model, or the difference itself.
    pub model: &'a [R],
    /// What is subtracted from it.
    pub reference: Option<&'a [R]>,
    /// A bit for every element.
    pub words: &'a [u64],
    /// Magnitudes up to this are dropped.
    pub low: R,
    /// Magnitudes above this are dropped.
    pub high: R,
    /// What a kept element is multiplied by.
    pub factor: Factor<R>,
    /// What counts for it where the sum is divided by weights.
    pub weight: R,
}

/// What tells whether an element is kept: its bit, that it is above `low`, or everything.
pub(super) const BITS: u8 = 0;
pub(super) const SIZE: u8 = 1;
pub(super) const BOTH: u8 = 2;

/// Elements that are looked at together: those of one word.
pub(super) const MANY: usize = 4 * LANES;

impl<'a, R: Real> Masked<'a, R> {
    /// All of a difference, by itself.
    pub fn whole(model: &'a [R], reference: Option<&'a [R]>, words: &'a [u64]) -> Self {
        let (low, high) = (R::from_f64(-1.0), R::from_f64(f64::INFINITY));
        Masked { model, reference, words, low, high, factor: Factor::one(), weight: R::ONE }
    }

    /// What tells which elements are kept.
    pub(super) fn by(&self) -> u8 {
        let whole = self.words.iter().all(|word| *word == u64::MAX);
        match (self.low >= R::ZERO, self.high == R::from_f64(f64::INFINITY), whole) {
            (false, true, _) => BITS,
            (true, true, true) => SIZE,
            _ => BOTH,
        }
    }

    /// Element `lane` of a group, or zero if it is dropped.
    #[inline(always)]
    pub(super) fn keep<const BY: u8>(&self, x: R, bits: u32, lane: usize) -> R {
        // What is not a number is neither: it stays, to be found in the result.
        let low = (BY != BITS) & (x.abs() <= self.low);
        let high = (BY == BOTH) & (x.abs() > self.high);
        let marked = (BY == SIZE) | (bits & 1 << lane != 0);
        if marked & !low & !high {
            x
        } else {
            R::ZERO
        }
    }
}
