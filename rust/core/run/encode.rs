//! Packed tensors of the output: computed patch by patch, each once if it can be, for all of the stored tensors that
//! they are made of, in whichever files and order those lie.

pub(crate) mod bands;
mod choose;
mod chosen;
mod columns;
mod form;
mod make;
mod original;
mod packed;
pub(crate) mod patch;
pub(crate) mod tensors;
mod whole;
