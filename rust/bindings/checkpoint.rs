//! Checkpoints seen from Python: headers, and single tensors on demand.

#![allow(clippy::type_complexity)] // rows that Python sees

use std::collections::hash_map::Entry;
use std::collections::HashMap;
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PyString, PyTuple};
use taskvec_core::checkpoint::Checkpoint as Opened;
use taskvec_core::dtype::Dtype;
use taskvec_core::storage::packed;

use crate::errors::raise;

/// (name, dtype, shape, file, offset in the file, bytes)
type Row<'py> = (&'py str, Py<PyString>, Py<PyTuple>, Py<PyString>, u64, Py<PyInt>);

/// An opened checkpoint; headers only until a tensor is read.
#[pyclass(frozen, module = "taskvec._core")]
pub struct Checkpoint {
    opened: Opened,
}

#[pymethods]
impl Checkpoint {
    #[new]
    #[pyo3(signature = (path, files=None))]
    fn new(py: Python<'_>, path: PathBuf, files: Option<Vec<String>>) -> PyResult<Self> {
        let open = || match &files {
            Some(files) => Opened::open_files(&path, files),
            None => Opened::open(&path),
        };
        let opened = py.detach(open).map_err(|e| raise(py, &e))?;
        Ok(Checkpoint { opened })
    }

    /// All tensors in file order, one at a time.
    fn tensors(slf: Py<Self>) -> Tensors {
        Tensors { checkpoint: slf, next: 0, kinds: HashMap::new(), files: HashMap::new() }
    }

    /// Weight files and their sizes.
    fn files(&self) -> Vec<(String, u64)> {
        self.opened.files.iter().map(|file| (file.name.clone(), file.size)).collect()
    }

    /// The metadata of the headers, all files together.
    #[getter]
    fn metadata(&self) -> std::collections::HashMap<String, String> {
        self.opened.metadata.clone().into_iter().collect()
    }

    /// BLAKE3 over the headers.
    #[getter]
    fn fingerprint(&self) -> &str {
        &self.opened.fingerprint
    }

    /// The bytes of one tensor.
    fn read<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| self.opened.read(name)).map_err(|e| raise(py, &e))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Elements `start .. start + count` of one tensor, widened to little-endian float32.
    fn sample<'py>(&self, py: Python<'py>, name: &str, start: u64, count: u64) -> PyResult<Bound<'py, PyBytes>> {
        let values = py.detach(|| self.opened.sample(name, start, count)).map_err(|e| raise(py, &e))?;
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(PyBytes::new(py, &bytes))
    }

    /// Elements `start .. start + count` of one tensor that is stored as codes with scales, as little-endian float32.
    /// `format` is JSON, as a plan has it.
    fn decode<'py>(
        &self,
        py: Python<'py>,
        format: &[u8],
        name: &str,
        shape: Vec<u64>,
        start: u64,
        count: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let decoded = py.detach(|| packed::decode(&self.opened, format, name, &shape, start, count));
        let values = decoded.map_err(|e| raise(py, &e))?;
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(PyBytes::new(py, &bytes))
    }
}

/// Goes through the tensors of a checkpoint. What many of them have in common is one object: a row of each would
/// otherwise be most of the memory that a checkpoint of a hundred thousand tensors takes.
#[pyclass(module = "taskvec._core")]
pub struct Tensors {
    checkpoint: Py<Checkpoint>,
    next: usize,
    kinds: HashMap<(Dtype, Vec<u64>), (Py<PyString>, Py<PyTuple>, Py<PyInt>)>,
    files: HashMap<usize, Py<PyString>>,
}

#[pymethods]
impl Tensors {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&'py mut self, py: Python<'py>) -> PyResult<Option<Row<'py>>> {
        let opened = &self.checkpoint.get().opened;
        let Some((name, tensor)) = opened.nth(self.next) else { return Ok(None) };
        self.next += 1;
        let key = (tensor.dtype, tensor.shape.to_vec());
        let (dtype, shape, bytes) = match self.kinds.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert((
                PyString::new(py, tensor.dtype.name()).unbind(),
                PyTuple::new(py, tensor.shape)?.unbind(),
                tensor.len.into_pyobject(py)?.unbind(),
            )),
        };
        let file = self.files.entry(tensor.file);
        let file = file.or_insert_with(|| PyString::new(py, &opened.files[tensor.file].name).unbind());
        let (dtype, shape, bytes) = (dtype.clone_ref(py), shape.clone_ref(py), bytes.clone_ref(py));
        Ok(Some((name, dtype, shape, file.clone_ref(py), tensor.offset, bytes)))
    }
}
