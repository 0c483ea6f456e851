//! Files: opened as regular ones, mapped or read, watched for change. The first room where `unsafe` lives.

pub(crate) mod folder;
pub mod heap;
pub mod mapped;
pub(crate) mod platform;
pub(crate) mod regular;
