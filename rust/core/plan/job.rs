//! One output tensor of a plan.

use std::sync::Arc;

use crate::dtype::Dtype;
use crate::storage::target::Target;

/// One output tensor.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Its name.
    pub name: Arc<str>,
    /// Its type in the output.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Arc<[u64]>,
    /// Index of its shard.
    pub shard: usize,
    /// Index of its operation.
    pub operation: usize,
    /// (source, stored name) of each input.
    pub inputs: Box<[(usize, Arc<str>)]>,
    /// Elements.
    pub elements: u64,
}

impl Job {
    /// How it is stored in the output.
    pub(crate) fn target(&self) -> Target {
        Target { dtype: self.dtype, elements: self.elements }
    }
}
