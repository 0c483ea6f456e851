//! Digests of files, and small files written safely.

use std::path::PathBuf;

use pyo3::prelude::*;
use taskvec_core::output::{digest, publish};

use crate::errors::raise;
use crate::watch::watch;

/// Size in bytes and BLAKE3 of a file.
#[pyfunction]
#[pyo3(signature = (path, *, threads=0))]
pub(crate) fn digest_file(py: Python<'_>, path: PathBuf, threads: usize) -> PyResult<(u64, String)> {
    let threads = if threads > 0 { threads } else { std::thread::available_parallelism().map_or(1, |n| n.get()) };
    watch(py, None, |monitor| digest::digest_file(&path, threads, &|| monitor.is_cancelled()))
}

/// Writes a small file through a temporary sibling: fsync, rename, fsync of the folder.
#[pyfunction]
pub(crate) fn write_atomic(py: Python<'_>, path: PathBuf, data: &[u8]) -> PyResult<()> {
    py.detach(|| publish::write_atomic(&path, data)).map_err(|e| raise(py, &e))
}

/// Removes the state of a run whose manifest is in place.
#[pyfunction]
pub(crate) fn finish_folder(py: Python<'_>, path: PathBuf) -> PyResult<()> {
    py.detach(|| publish::finish(&path)).map_err(|e| raise(py, &e))
}
