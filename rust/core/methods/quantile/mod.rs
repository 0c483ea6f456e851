//! The k largest of a tensor's scores, exactly.

pub(crate) mod cut;
mod histogram;
pub(crate) mod select;
