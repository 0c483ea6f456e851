//! Tensors that Python holds: read where they lie, and changed in place.

#![allow(clippy::type_complexity)] // signatures that Python sees

use std::collections::HashMap;

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadwriteArray1, PyUntypedArrayMethods};
use pyo3::prelude::*;
use taskvec_core::dtype::Dtype;
use taskvec_core::error::{Error, Kind};
use taskvec_core::in_place::{digests, in_place as add, InPlace};
use taskvec_core::storage::source::{Buffer, Buffers};

use crate::errors::raise;
use crate::watch::watch;

/// The tensors of a state dict: name, type, shape, bytes.
pub(crate) type Arrays<'py> = Vec<(String, String, Vec<u64>, Bound<'py, PyArray1<u8>>)>;

/// State dicts, borrowed for the length of a call.
pub(crate) struct Borrowed<'py> {
    dicts: Vec<Vec<(String, Dtype, Vec<u64>, PyReadonlyArray1<'py, u8>)>>,
}

impl<'py> Borrowed<'py> {
    /// Borrows every array; none of them may be changed meanwhile.
    pub(crate) fn borrow(py: Python<'py>, dicts: Vec<Arrays<'py>>) -> PyResult<Self> {
        let tensor = |(name, dtype, shape, array): (String, String, Vec<u64>, Bound<'py, PyArray1<u8>>)| {
            let dtype = Dtype::from_name(&dtype).ok_or_else(|| refused(py, &name, "has an unknown type"))?;
            let array = array.try_readonly().map_err(|_| refused(py, &name, "is being changed"))?;
            Ok((name, dtype, shape, array))
        };
        let dict = |dict: Arrays<'py>| dict.into_iter().map(tensor).collect::<PyResult<_>>();
        Ok(Borrowed { dicts: dicts.into_iter().map(dict).collect::<PyResult<_>>()? })
    }

    /// The same as the engine takes them.
    pub(crate) fn tensors(&self, py: Python<'_>) -> PyResult<Vec<Buffers<'_>>> {
        let mut buffers = Vec::with_capacity(self.dicts.len());
        for dict in &self.dicts {
            let mut named = HashMap::with_capacity(dict.len());
            for (name, dtype, shape, array) in dict {
                let bytes = array.as_slice().map_err(|_| refused(py, name, "is not contiguous"))?;
                named.insert(name.clone(), Buffer { dtype: *dtype, shape: shape.clone(), bytes });
            }
            buffers.push(named);
        }
        Ok(buffers)
    }
}

fn refused(py: Python<'_>, name: &str, what: &str) -> PyErr {
    raise(py, &Error::new(Kind::Plan, format!("`{}` {what}", name.escape_debug())))
}

/// Adds task vectors to arrays of bytes in place, or without `write` finds out what there is to say against it; the
/// figures as JSON text.
#[pyfunction]
#[pyo3(signature = (plan, targets, *, memories=Vec::new(), threads=0, write=true, allow_non_finite=false,
                    progress=None))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn in_place<'py>(
    py: Python<'py>,
    plan: &[u8],
    targets: Vec<Bound<'py, PyArray1<u8>>>,
    memories: Vec<Arrays<'py>>,
    threads: usize,
    write: bool,
    allow_non_finite: bool,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<String> {
    let memories = Borrowed::borrow(py, memories)?;
    let memories = memories.tensors(py)?;
    let mut borrowed: Vec<PyReadwriteArray1<'py, u8>> = targets
        .iter()
        .map(|target| target.try_readwrite().map_err(|error| refused(py, "target", &error.to_string())))
        .collect::<PyResult<_>>()?;
    apart(py, &borrowed)?;
    let slices: Vec<&mut [u8]> = borrowed
        .iter_mut()
        .map(|target| target.as_slice_mut().map_err(|_| refused(py, "target", "is not contiguous")))
        .collect::<PyResult<_>>()?;
    let options = InPlace { threads, write, allow_non_finite };
    let figures = watch(py, progress, None, |monitor| add(plan, &memories, slices, &options, monitor))?;
    Ok(figures.to_string())
}

/// No two targets share a byte: arrays over one buffer of another owner are borrowed without anyone seeing that.
fn apart(py: Python<'_>, targets: &[PyReadwriteArray1<'_, u8>]) -> PyResult<()> {
    let mut places: Vec<(usize, usize)> = targets.iter().map(|target| (target.data() as usize, target.len())).collect();
    places.retain(|(_, length)| *length > 0);
    places.sort_unstable();
    match places.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        true => Err(refused(py, "target", "shares bytes with another target")),
        false => Ok(()),
    }
}

/// BLAKE3 of the bytes of each array, in hexadecimal.
#[pyfunction]
#[pyo3(signature = (arrays, *, threads=0))]
pub(crate) fn digest_arrays<'py>(
    py: Python<'py>,
    arrays: Vec<Bound<'py, PyArray1<u8>>>,
    threads: usize,
) -> PyResult<Vec<String>> {
    let borrowed: Vec<PyReadonlyArray1<'py, u8>> = arrays
        .iter()
        .map(|array| array.try_readonly().map_err(|_| refused(py, "array", "is being changed")))
        .collect::<PyResult<_>>()?;
    let slices: Vec<&[u8]> = borrowed
        .iter()
        .map(|array| array.as_slice().map_err(|_| refused(py, "array", "is not contiguous")))
        .collect::<PyResult<_>>()?;
    watch(py, None, None, |_| digests(&slices, threads))
}
