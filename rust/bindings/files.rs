//! Digests of files, and small files written safely.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use taskvec_core::error::Error;
use taskvec_core::output::folder::Options;
use taskvec_core::output::hold::Hold;
use taskvec_core::output::{assembly, digest, publish};

use crate::errors::raise;
use crate::watch::watch;

/// Size in bytes and BLAKE3 of a file.
#[pyfunction]
#[pyo3(signature = (path, *, threads=0))]
pub(crate) fn digest_file(py: Python<'_>, path: PathBuf, threads: usize) -> PyResult<(u64, String)> {
    let threads = if threads > 0 { threads } else { std::thread::available_parallelism().map_or(1, |n| n.get()) };
    watch(py, None, None, |monitor| digest::digest_file(&path, threads, &|| monitor.is_cancelled()))
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

/// Makes a folder that holds all shards of a run in parts an unfinished run that lacks only its end.
#[pyfunction]
pub(crate) fn assemble_output(
    py: Python<'_>,
    path: PathBuf,
    inputs: Vec<PathBuf>,
    plan: &[u8],
    records: Vec<String>,
) -> PyResult<()> {
    let inputs: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
    let records: Vec<&str> = records.iter().map(String::as_str).collect();
    py.detach(|| assembly::assemble(&path, &inputs, plan, &records)).map_err(|e| raise(py, &e))
}

/// Puts an output that was made in the state folder of another in the place of that one.
#[pyfunction]
pub(crate) fn replace_output(py: Python<'_>, path: PathBuf) -> PyResult<()> {
    py.detach(|| publish::replace(&path)).map_err(|e| raise(py, &e))
}

/// The lock of an output folder, held from before a run until after what follows it.
#[pyclass(frozen, module = "taskvec._core")]
pub struct FolderLock {
    path: PathBuf,
    inputs: Vec<PathBuf>,
    run: Option<(Vec<u8>, Options)>,
    held: Mutex<Option<Hold>>,
}

#[pymethods]
impl FolderLock {
    #[new]
    #[pyo3(signature = (path, *, inputs=Vec::new(), plan=None, resume=true, overwrite=false))]
    fn new(path: PathBuf, inputs: Vec<PathBuf>, plan: Option<Vec<u8>>, resume: bool, overwrite: bool) -> Self {
        let run = plan.map(|plan| (plan, Options { overwrite, resume, rehash: false }));
        FolderLock { path, inputs, run, held: Mutex::new(None) }
    }

    fn __enter__(slf: Py<Self>, py: Python<'_>) -> PyResult<Py<Self>> {
        let lock = slf.get();
        let taken = py.detach(|| {
            let mut held = lock.held.lock().unwrap_or_else(PoisonError::into_inner);
            if held.is_some() {
                return Err(Error::engine("a folder's lock is taken twice"));
            }
            let inputs: Vec<&Path> = lock.inputs.iter().map(PathBuf::as_path).collect();
            let run = lock.run.as_ref().map(|(plan, options)| (plan.as_slice(), options));
            *held = Some(Hold::take(&lock.path, &inputs, run)?);
            Ok(())
        });
        taken.map_err(|error| raise(py, &error))?;
        Ok(slf)
    }

    fn __exit__(&self, py: Python<'_>, _kind: Py<PyAny>, _value: Py<PyAny>, _traceback: Py<PyAny>) {
        py.detach(|| self.held.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
