//! The output room from outside: admission and resume, digests, and everything that can go wrong with a disk.

#[path = "../again/mod.rs"]
mod again;
mod digest;
mod failures;
mod folder;
mod support;
