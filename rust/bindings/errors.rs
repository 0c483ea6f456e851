//! The one place where an engine error becomes a Python exception.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use taskvec_core::error::{Error, Kind};

/// The exception of `taskvec.errors` that fits.
pub(crate) fn raise(py: Python<'_>, error: &Error) -> PyErr {
    if error.kind == Kind::Interrupted {
        return pyo3::exceptions::PyKeyboardInterrupt::new_err(());
    }
    let class = match error.kind {
        Kind::NotFound => "NotFoundError",
        Kind::Format => "FormatError",
        Kind::Plan => "RecipeError",
        Kind::Output => "OutputError",
        Kind::NonFinite => "NonFiniteError",
        Kind::Engine | Kind::Interrupted => "EngineError",
    };
    let made = py
        .import("taskvec.errors")
        .and_then(|module| module.getattr(class))
        .and_then(|class| class.call1((&error.message, error.hint.as_deref())));
    match made {
        Ok(instance) => PyErr::from_value(instance),
        Err(_) => PyRuntimeError::new_err(error.message.clone()),
    }
}

/// What a panic says, as an engine error.
pub(crate) fn panicked(payload: &(dyn std::any::Any + Send)) -> Error {
    let said = payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    Error::new(Kind::Engine, format!("the engine panicked: {said}"))
        .hint("this is a defect in taskvec: report it with the command that led to it")
}
