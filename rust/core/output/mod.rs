//! The output folder: admitted before the first byte, written shard by shard, published by rename, resumed after a
//! kill. Nothing in it looks complete until all of it is.
//!
//! [`folder`] decides whether a folder may be used and takes its lock; [`shard`] is one weight file
//! being written by many threads; [`digest`] is its BLAKE3 digest, computed in the same pass; [`journal`] remembers what
//! is in place; [`swap`] puts an output in the place of another once it is whole; [`publish`] puts the small files there and ends the
//! run; [`assembly`] brings a run in parts to that point.

mod admission;
pub mod assembly;
mod contents;
pub mod digest;
#[doc(hidden)]
pub mod fault;
pub mod folder;
pub mod hold;
pub(crate) mod journal;
mod lock;
mod overlap;
pub mod publish;
pub mod shard;
mod shared;
mod space;
mod swap;
mod system;
mod whole;

/// The folder inside an output in which an unfinished run keeps its state.
pub(crate) const STATE: &str = ".taskvec";
/// The file whose presence says that an output is complete.
pub const MANIFEST: &str = "taskvec.json";
/// The plan of the run, byte for byte; in the state folder from the moment the run may be resumed.
const PLAN: &str = "plan.json";
/// The plan of a run in parts; in the state folder from the moment the first part begins until the last has ended.
const PARTS: &str = "parts.json";
/// The file that is locked while a run writes.
const LOCK: &str = "lock";
