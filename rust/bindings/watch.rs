//! Long work on a thread of its own while the calling thread polls signals and reports progress.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::{channel, RecvTimeoutError};
use std::time::Duration;

use pyo3::prelude::*;
use taskvec_core::error::{Error, Result};
use taskvec_core::monitor::Monitor;

use crate::errors::{panicked, raise};

/// How often signals are polled and progress is reported.
const EVERY: Duration = Duration::from_millis(50);

/// Runs `work` without the GIL. A signal or a failing callback cancels it; it has always ended when this returns. What it
/// has to say goes to `notice`.
pub(crate) fn watch<T: Send>(
    py: Python<'_>,
    progress: Option<&Bound<'_, PyAny>>,
    notice: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce(&Monitor) -> Result<T> + Send,
) -> PyResult<T> {
    let monitor = Monitor::default();
    monitor.listen();
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        let shared = &monitor;
        let worker = std::thread::Builder::new().name("taskvec".into()).spawn_scoped(scope, move || {
            let done = catch_unwind(AssertUnwindSafe(|| work(shared)));
            let _ = sender.send(done.unwrap_or_else(|payload| Err(panicked(payload.as_ref()))));
        });
        worker.map_err(|error| raise(py, &Error::no_threads(1, &error.to_string())))?;
        let mut stopped: Option<PyErr> = None;
        let receiver = std::sync::Mutex::new(receiver);
        loop {
            let got = py.detach(|| match receiver.lock() {
                Ok(receiver) => receiver.recv_timeout(EVERY),
                Err(_) => Err(RecvTimeoutError::Disconnected),
            });
            match got {
                Ok(done) => {
                    if let Some(error) = stopped {
                        return Err(error);
                    }
                    report(&monitor, progress, notice)?;
                    return done.map_err(|error| raise(py, &error));
                }
                Err(RecvTimeoutError::Timeout) if stopped.is_none() => {
                    let told = py.check_signals().and_then(|()| report(&monitor, progress, notice));
                    if let Err(error) = told {
                        monitor.cancel();
                        stopped = Some(error);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(stopped.unwrap_or_else(|| raise(py, &panicked(&"worker thread ended"))));
                }
            }
        }
    })
}

fn report(monitor: &Monitor, progress: Option<&Bound<'_, PyAny>>, notice: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    for words in monitor.notices() {
        if let Some(callback) = notice {
            callback.call1((words,))?;
        }
    }
    if let Some(callback) = progress {
        callback.call1(monitor.progress())?;
    }
    Ok(())
}
