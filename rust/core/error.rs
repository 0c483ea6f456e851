//! One error for the whole engine: a kind that callers act on, a message, and the way out.

use std::path::Path;

use rustix::io::Errno;

mod output;

/// What sort of failure it is; decides the Python exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file or tensor is not there.
    NotFound,
    /// A file is damaged, hostile or changed under the reader.
    Format,
    /// A plan or setting that cannot be honoured.
    Plan,
    /// Reading or writing failed: disk full, permissions, an unsafe output folder.
    Output,
    /// NaN or infinity where it is not allowed.
    NonFinite,
    /// The caller asked to stop.
    Interrupted,
    /// A defect in the engine itself.
    Engine,
}

/// Subject, what was found and what was expected; `hint` says the way out.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What sort of failure it is.
    pub kind: Kind,
    /// Lowercase, no full stop, names in backticks.
    pub message: String,
    /// The way out, where there is one.
    pub hint: Option<String>,
}

/// The engine's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` without a hint.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), hint: None }
    }

    /// The same with the way out.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A failed system call on `path`.
    pub fn io(action: &str, path: &Path, error: &std::io::Error) -> Self {
        let kind = if error.kind() == std::io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Output };
        let made = Error::new(kind, format!("{action} `{}` failed: {error}", shown_path(path)));
        match way_out(error) {
            Some(hint) => made.hint(hint),
            None if kind == Kind::NotFound => made,
            None => made.hint("look at the file system that it lies on, then run the same command again"),
        }
    }

    /// The same, found in the file or folder `path`.
    pub fn at(mut self, path: &Path) -> Self {
        self.message = format!("`{}`: {}", shown_path(path), self.message);
        self
    }

    /// The system gives no more memory.
    pub(crate) fn no_memory(bytes: u64) -> Self {
        Error::new(Kind::Output, format!("the system does not give {bytes} bytes of memory"))
            .hint("free memory, or use less of it (`--threads`, `--max-memory`), then run the same command again")
    }

    /// The system starts no more threads.
    pub fn no_threads(wanted: usize, cause: &str) -> Self {
        let plural = if wanted == 1 { "a thread" } else { &format!("{wanted} threads") };
        Error::new(Kind::Output, format!("the system does not start {plural}: {cause}")).hint(
            "use fewer (`--threads`), end other programs, or raise the limit of processes (`ulimit -u`, `pids.max` \
             of a container)",
        )
    }

    /// The run was cancelled.
    pub fn interrupted() -> Self {
        Error::new(Kind::Interrupted, "interrupted").hint("run the same command again to go on")
    }
}

/// What to do about a failed system call whose cause is known.
fn way_out(error: &std::io::Error) -> Option<&'static str> {
    use std::io::ErrorKind;
    if [Errno::MFILE, Errno::NFILE].iter().any(|errno| Some(errno.raw_os_error()) == error.raw_os_error()) {
        return Some("raise the limit of open files (`ulimit -n`), then run the same command again");
    }
    Some(match error.kind() {
        ErrorKind::OutOfMemory => {
            "free memory, or use less of it (`--threads`, `--max-memory`), then run the same command again"
        }
        ErrorKind::WouldBlock | ErrorKind::Interrupted => "the file system was busy: run the same command again",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "free space on that file system or choose another output folder, then run the same command again"
        }
        ErrorKind::FileTooLarge => {
            "a limit forbids files of this size (see `ulimit -f`); raise it or use --max-shard-size"
        }
        ErrorKind::PermissionDenied => "check the permissions of that path",
        ErrorKind::ReadOnlyFilesystem => "choose an output folder on a file system that can be written to",
        ErrorKind::StaleNetworkFileHandle => {
            "the network file system has changed: mount it again, then run the same command again"
        }
        _ => return None,
    })
}

/// `text` from a file, fit for a message: control characters escaped, at most [`SHOWN`] characters.
pub(crate) fn shown(text: &str) -> String {
    let escaped = |text: &str| text.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"");
    match text.char_indices().nth(SHOWN) {
        None => escaped(text),
        Some((end, _)) => format!("{}…", escaped(&text[..end])),
    }
}

/// A path fit for a message: control characters escaped; of one that no terminal shows whole, both ends.
pub(crate) fn shown_path(path: &Path) -> String {
    const START: usize = 100;
    const END: usize = 400;
    let text = printable(&path.to_string_lossy());
    let place = |nth: usize| text.char_indices().nth(nth).map(|(at, _)| at);
    let count = text.chars().count();
    match (place(START), place(count.saturating_sub(END))) {
        (Some(start), Some(end)) if start < end => format!("{}…{}", &text[..start], &text[end..]),
        _ => text,
    }
}

/// A foreign message as it is, but for control characters, which are escaped.
pub(crate) fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        match c.is_control() {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
        shown
    })
}

/// Characters of a name or a foreign message that are shown; real tensor names stay below it.
const SHOWN: usize = 200;
