//! What a platform gives, in one place: the rest of the engine asks [`Here`] and has no `cfg` of a system in it.
//!
//! A platform that lacks something says so by the answer (`Unpopulated::Failed`, `false`, `None`), and the caller has a
//! way without it: files are read into buffers where they cannot be mapped safely, copied where blocks cannot be shared.
//! A new platform is a file beside `linux.rs` and two lines below; the compiler lists what it has to answer.

mod contract;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

pub(crate) use contract::{FileSystem, Platform, Unpopulated};
#[cfg(target_os = "linux")]
pub(crate) use linux::Linux as Here;
#[cfg(target_os = "macos")]
pub(crate) use macos::MacOs as Here;
