//! Merge methods.

pub mod arcee_fusion;
pub mod by_rank;
pub mod coin;
pub mod control;
pub mod dropped;
pub mod elementwise;
pub mod gram;
pub mod histogram;
pub mod linear;
pub mod mask;
pub mod ranks;
pub mod sce;
pub mod select;
pub mod task_arithmetic;
pub mod terms;
pub mod trimmed;
