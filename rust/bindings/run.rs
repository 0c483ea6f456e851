//! Executing a plan.

#![allow(clippy::type_complexity)] // signatures that Python sees

use std::path::PathBuf;

use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use taskvec_core::file::heap::give_back;
use taskvec_core::output::folder::Options as FolderOptions;
use taskvec_core::run::contents::Asked;
use taskvec_core::run::ranges::Ranges;
use taskvec_core::run::Options;

use crate::errors::raise;
use crate::in_place::{Arrays, Borrowed};
use crate::watch::watch;

/// Runs a plan into a folder and returns the report as JSON text.
#[pyfunction]
#[pyo3(signature = (plan, out, *, threads=0, max_memory=None, progress=None, notice=None, resume=true,
                    overwrite=false, rehash=false, allow_non_finite=false, memories=Vec::new(), paths=Vec::new(), ends_only=false,
                    contents=Vec::new()))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn run<'py>(
    py: Python<'py>,
    plan: &[u8],
    out: PathBuf,
    threads: usize,
    max_memory: Option<u64>,
    progress: Option<&Bound<'_, PyAny>>,
    notice: Option<&Bound<'_, PyAny>>,
    resume: bool,
    overwrite: bool,
    rehash: bool,
    allow_non_finite: bool,
    memories: Vec<Arrays<'py>>,
    paths: Vec<PathBuf>,
    ends_only: bool,
    contents: Vec<(PathBuf, bool)>,
) -> PyResult<String> {
    let memories = Borrowed::borrow(py, memories)?;
    let memories = memories.tensors(py)?;
    let folder = FolderOptions { overwrite, resume, rehash };
    let options =
        Options { threads, max_memory, allow_non_finite, folder, paths, ends_only, contents: asked(contents) };
    // What planning has left behind, and then what the run has: each would stay while the other goes on.
    py.detach(|| give_back(plan));
    let report =
        watch(py, progress, notice, |monitor| taskvec_core::run::run_with(plan, &memories, &out, &options, monitor))?;
    py.detach(|| give_back(plan));
    Ok(report)
}

fn asked(files: Vec<(PathBuf, bool)>) -> Vec<Asked> {
    files.into_iter().map(|(path, digest)| Asked { path, digest }).collect()
}

/// The byte ranges of files that each shard of a plan reads, by the path of the file; `paths` says where its sources lie.
#[pyfunction]
pub(crate) fn ranges(py: Python<'_>, plan: &[u8], paths: Vec<PathBuf>) -> PyResult<Vec<Ranges>> {
    py.detach(|| taskvec_core::run::ranges::ranges(plan, &paths)).map_err(|error| raise(py, &error))
}

/// Extracts donor − reference into a folder and returns the report as JSON text.
#[pyfunction]
#[pyo3(signature = (plan, out, *, threads=0, progress=None, notice=None, resume=true, overwrite=false,
                    rehash=false, allow_non_finite=false, memories=Vec::new(), paths=Vec::new(), contents=Vec::new()))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn extract<'py>(
    py: Python<'py>,
    plan: &[u8],
    out: PathBuf,
    threads: usize,
    progress: Option<&Bound<'_, PyAny>>,
    notice: Option<&Bound<'_, PyAny>>,
    resume: bool,
    overwrite: bool,
    rehash: bool,
    allow_non_finite: bool,
    memories: Vec<Arrays<'py>>,
    paths: Vec<PathBuf>,
    contents: Vec<(PathBuf, bool)>,
) -> PyResult<String> {
    let memories = Borrowed::borrow(py, memories)?;
    let memories = memories.tensors(py)?;
    let folder = FolderOptions { overwrite, resume, rehash };
    let options = Options { threads, allow_non_finite, folder, paths, contents: asked(contents), ..Options::default() };
    py.detach(|| give_back(plan));
    let report = watch(py, progress, notice, |monitor| {
        taskvec_core::extract::extract(plan, &memories, &out, &options, monitor)
    })?;
    py.detach(|| give_back(plan));
    Ok(report)
}

/// Joins the pieces of a vector that was extracted in parts, in a folder that holds an unfinished run of the plan, and
/// returns the report as JSON text.
#[pyfunction]
#[pyo3(signature = (plan, pieces, out, *, threads=0, progress=None, notice=None, paths=Vec::new()))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn join_vector(
    py: Python<'_>,
    plan: &[u8],
    pieces: &[u8],
    out: PathBuf,
    threads: usize,
    progress: Option<&Bound<'_, PyAny>>,
    notice: Option<&Bound<'_, PyAny>>,
    paths: Vec<PathBuf>,
) -> PyResult<String> {
    let options = Options { threads, paths, ..Options::default() };
    watch(py, progress, notice, |monitor| taskvec_core::extract::join::join(plan, pieces, &out, &options, monitor))
}

/// Compares two sides tensor by tensor and returns the figures as JSON text.
#[pyfunction]
#[pyo3(signature = (plan, *, threads=0, progress=None, memories=Vec::new()))]
pub(crate) fn compare<'py>(
    py: Python<'py>,
    plan: &[u8],
    threads: usize,
    progress: Option<&Bound<'_, PyAny>>,
    memories: Vec<Arrays<'py>>,
) -> PyResult<String> {
    let memories = Borrowed::borrow(py, memories)?;
    let memories = memories.tensors(py)?;
    py.detach(|| give_back(plan));
    let report =
        watch(py, progress, None, |monitor| taskvec_core::compare::compare(plan, &memories, threads, monitor))?;
    py.detach(|| give_back(plan));
    Ok(report)
}

/// The data of a plan of one output and one shard, its tensors one after the other.
#[pyfunction]
#[pyo3(signature = (plan, *, threads=0, allow_non_finite=false, memories=Vec::new()))]
pub(crate) fn evaluate<'py>(
    py: Python<'py>,
    plan: &[u8],
    threads: usize,
    allow_non_finite: bool,
    memories: Vec<Arrays<'py>>,
) -> PyResult<Bound<'py, PyArray1<u8>>> {
    let memories = Borrowed::borrow(py, memories)?;
    let memories = memories.tensors(py)?;
    let data = watch(py, None, None, |monitor| {
        taskvec_core::evaluate::evaluate(plan, &memories, threads, allow_non_finite, monitor)
    })?;
    // as they are: a large matrix is not in memory twice
    Ok(data.into_pyarray(py))
}

/// The same with what was measured of each tensor that takes a step, as JSON.
#[pyfunction]
#[pyo3(signature = (plan, *, threads=0, allow_non_finite=false, memories=Vec::new()))]
pub(crate) fn evaluate_measured<'py>(
    py: Python<'py>,
    plan: &[u8],
    threads: usize,
    allow_non_finite: bool,
    memories: Vec<Arrays<'py>>,
) -> PyResult<(Bound<'py, PyArray1<u8>>, String)> {
    let memories = Borrowed::borrow(py, memories)?;
    let memories = memories.tensors(py)?;
    let (data, figures) = watch(py, None, None, |monitor| {
        taskvec_core::evaluate::measured(plan, &memories, threads, allow_non_finite, monitor)
    })?;
    Ok((data.into_pyarray(py), figures))
}
