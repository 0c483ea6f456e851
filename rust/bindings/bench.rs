//! The machine's own limits, measured.

use std::path::PathBuf;

use pyo3::prelude::*;
use taskvec_core::throughput as machine;

use crate::watch::watch;

/// Seconds to read every byte of `inputs` once and write the first of them to `output`, with no arithmetic.
#[pyfunction]
#[pyo3(signature = (inputs, output, *, threads=0))]
pub(crate) fn floor(py: Python<'_>, inputs: Vec<PathBuf>, output: PathBuf, threads: usize) -> PyResult<f64> {
    watch(py, None, None, |monitor| machine::floor(&inputs, &output, threads, monitor))
}

/// Bytes per second of copying `size` bytes from memory to memory with `threads` threads.
#[pyfunction]
#[pyo3(signature = (size, *, threads=0))]
pub(crate) fn memcpy_rate(py: Python<'_>, size: usize, threads: usize) -> PyResult<f64> {
    watch(py, None, None, |_| Ok(machine::memcpy_rate(size, threads)))
}
