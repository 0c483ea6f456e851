//! The k largest of a tensor's scores, exactly.

pub mod cut;
mod histogram;
pub mod select;
