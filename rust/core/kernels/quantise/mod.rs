//! f32 → codes of a few bits with scales: what groups hold, which codes they get under a scale and how far those are
//! off, which scale a rule gives them, and how codes lie in bytes. All of it is a pure function of a group.

pub(crate) mod bits;
pub(crate) mod code;
pub(crate) mod encode;
pub(crate) mod errors;
pub(crate) mod rule;
#[cfg(test)]
mod samples;
pub(crate) mod scale;
pub(crate) mod scaling;
pub(crate) mod seen;
