//! A whole step in one loop: differences, sum, rounding to bf16 and what is measured of it, without a tile between.

mod lanes;
pub(crate) mod stored;
pub(crate) mod tiles;
