//! The engine depends on this crate where it cannot run: a crate of its own, so that its one sentence is all that a
//! build says there, and not the first of seventy errors.

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!(
    "the engine of taskvec runs on Linux and macOS only, since its file system calls, locks and signals are those of \
     POSIX; on Windows, install taskvec inside WSL 2"
);
