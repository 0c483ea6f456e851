//! f32 → codes of a few bits with scales: what groups hold, which codes they get under a scale and how far those are
//! off, which scale a rule gives them, and how codes lie in bytes. All of it is a pure function of a group.

pub(crate) mod bits;
pub(crate) mod code;
pub(crate) mod group;
pub(crate) mod rule;
pub(crate) mod scale;
