//! Merge methods.

pub mod arcee_fusion;
pub mod control_vector;
pub mod difference;
pub mod elementwise;
pub mod gram;
pub mod linear;
pub mod method;
pub mod operation;
pub mod quantile;
pub mod sce;
pub mod task_arithmetic;
pub mod trim;
