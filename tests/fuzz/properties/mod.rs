//! What must hold of any bytes where the engine reads a file of this kind: refused with an error of the one family that
//! can be shown, or read with every promise kept. The fuzz targets search for bytes of which it does not, and
//! `tests/fuzz.rs` tries those that are kept.

use std::path::Path;

use taskvec_core::error::{Error, Kind};

pub(crate) mod header;
pub(crate) mod index;
pub(crate) mod journal;
pub(crate) mod plan;
#[path = "../../plans/mod.rs"]
mod plans;
pub(crate) mod vector;

/// A folder of its own for the files of a target, in memory where there is such a place.
fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder")
}

/// The error can be shown, and is not one of the engine's own.
fn assert_told(error: &Error) {
    assert_ne!(error.kind, Kind::Engine, "{error}");
    assert!(!error.message.is_empty() && error.message.len() < 8000, "{} bytes", error.message.len());
    assert!(!error.message.contains(|c: char| c.is_control()), "{:?}", error.message);
}

fn put(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a file");
}
