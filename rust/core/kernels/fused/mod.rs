//! A whole step, or a weighted sum, in one loop: what is computed, rounding to bf16 and what is measured of it, without a
//! tile between.

mod lanes;
pub(crate) mod stored;
pub(crate) mod sum;
pub(crate) mod tiles;
