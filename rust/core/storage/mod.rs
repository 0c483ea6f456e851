//! How logical tensors are stored.

pub mod encoding;
pub mod exact_elements;
pub mod input;
pub mod lora;
pub mod source;
pub mod sources;
pub mod sparse;
