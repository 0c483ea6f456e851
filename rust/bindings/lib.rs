//! The Python module `taskvec._core`: conversion, exceptions, GIL release and signal polling; no arithmetic.
#![deny(unsafe_code)]

mod bench;
mod checkpoint;
mod errors;
mod files;
mod in_place;
mod run;
mod watch;

use pyo3::prelude::*;

use errors::raise;

/// The CPU level that kernels use: the best there is, or the one that `TASKVEC_CPU` names.
#[pyfunction]
fn cpu_level(py: Python<'_>) -> PyResult<&'static str> {
    taskvec_core::kernels::Level::chosen().map(taskvec_core::kernels::Level::name).map_err(|e| raise(py, &e))
}

/// Every CPU level that this machine can run, lowest first.
#[pyfunction]
fn cpu_levels() -> Vec<&'static str> {
    taskvec_core::kernels::Level::available().into_iter().map(taskvec_core::kernels::Level::name).collect()
}

/// BLAKE3 of some bytes, in hexadecimal.
#[pyfunction]
fn blake3_hex(data: &[u8]) -> String {
    taskvec_core::output::digest::of_bytes(data)
}

#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::bench::{floor, memcpy_rate};
    #[pymodule_export]
    use super::checkpoint::Checkpoint;
    #[pymodule_export]
    use super::files::{assemble_output, digest_file, finish_folder, replace_output, write_atomic, FolderLock};
    #[pymodule_export]
    use super::in_place::{digest_arrays, in_place};
    #[pymodule_export]
    use super::run::{compare, evaluate, extract, join_vector, ranges, run};
    #[pymodule_export]
    use super::{blake3_hex, cpu_level, cpu_levels};
    use super::{Bound, PyModule, PyModuleMethods, PyResult};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
