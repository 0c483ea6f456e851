//! Merge methods.

pub(crate) mod arcee_fusion;
pub(crate) mod control_vector;
pub(crate) mod difference;
pub(crate) mod elementwise;
pub(crate) mod fisher;
pub(crate) mod gram;
pub(crate) mod importance;
pub(crate) mod linear;
pub(crate) mod method;
pub(crate) mod noised;
pub(crate) mod operation;
pub(crate) mod quantile;
pub(crate) mod sar;
pub(crate) mod sce;
pub(crate) mod task_arithmetic;
pub(crate) mod trim;
