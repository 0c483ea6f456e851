//! Arithmetic on tiles, written once and instantiated per CPU level by `dispatch.rs`.
//!
//! Nothing here reassociates: elementwise bodies are plain IEEE operations without contraction, and sums run in
//! `LANES` fixed lanes that are added in a fixed order, so every level gives the same bits.

#[macro_use]
pub(crate) mod dispatch;
pub mod codes;
pub mod combine;
pub mod elementwise;
pub(crate) mod encode;
pub mod factor;
pub(crate) mod fused;
pub mod importance;
pub mod l1_norms;
pub(crate) mod marks;
pub mod masked;
pub mod masked_sum;
pub mod narrow;
pub mod noise;
pub mod normal;
pub mod philox;
pub(crate) mod quantise;
pub(crate) mod rank;
mod real;
pub mod stats;
pub mod threshold;
pub mod widen;

pub use dispatch::Level;
pub use real::{Floats, Real, TILE};
