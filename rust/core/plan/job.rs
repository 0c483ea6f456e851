//! One output tensor of a plan.

use std::sync::Arc;

use super::encoding::Role;
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
    /// What packed tensor it is a part of, if it is one.
    pub packed: Option<Box<PartOf>>,
}

/// A stored tensor of the output as a part of a packed one.
#[derive(Clone, Debug)]
pub(crate) struct PartOf {
    /// Index of its encoding.
    pub encoding: usize,
    /// Which part.
    pub role: Role,
    /// The logical name.
    pub name: Arc<str>,
    /// The logical shape.
    pub shape: Arc<[u64]>,
    /// Elements of that shape.
    pub elements: u64,
}

impl Job {
    /// The name, shape and elements of what is computed: of the packed tensor, where this is a part of one.
    pub(crate) fn logical(&self) -> (&Arc<str>, &Arc<[u64]>, u64) {
        match &self.packed {
            Some(part) => (&part.name, &part.shape, part.elements),
            None => (&self.name, &self.shape, self.elements),
        }
    }

    /// Whether another job computes it.
    pub(crate) fn is_aside(&self) -> bool {
        self.packed.as_ref().is_some_and(|part| part.role != Role::Codes)
    }

    /// How it is stored in the output.
    pub(crate) fn target(&self) -> Target {
        Target { dtype: self.dtype, elements: self.elements }
    }
}
