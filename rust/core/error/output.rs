//! What can be wrong with an output folder, and the way out of each.

use std::io;
use std::path::Path;

use super::{printable, shown, shown_path, way_out, Error, Kind};

const ANOTHER: &str = "choose another output folder";

fn refused(message: String, hint: impl Into<String>) -> Error {
    Error::new(Kind::Output, message).hint(hint)
}

/// A number of bytes as people read it, in powers of ten.
fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["bytes", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "bytes" { format!("{bytes} {unit}") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

impl Error {
    /// The output folder is an input.
    pub(crate) fn output_is_input(output: &Path, input: &Path) -> Self {
        let message = match output == input {
            true => format!("the output folder `{}` is an input", shown_path(output)),
            false => format!("the output folder `{}` is the input `{}`", shown_path(output), shown_path(input)),
        };
        refused(message, ANOTHER)
    }

    /// The output folder is somewhere below an input.
    pub(crate) fn output_in_input(output: &Path, input: &Path) -> Self {
        let message =
            format!("the output folder `{}` lies within the input `{}`", shown_path(output), shown_path(input));
        refused(message, ANOTHER)
    }

    /// An input is somewhere below the output folder.
    pub(crate) fn input_in_output(output: &Path, input: &Path) -> Self {
        let message = format!("the output folder `{}` contains the input `{}`", shown_path(output), shown_path(input));
        refused(message, ANOTHER)
    }

    /// A symbolic link to nowhere where a folder is to be made.
    pub(crate) fn dangling_link(path: &Path) -> Self {
        let message = format!("`{}` is a symbolic link to something that does not exist", shown_path(path));
        refused(message, "create the folder it points to, or remove the link")
    }

    /// Something else where a folder is expected.
    pub(crate) fn not_a_folder(path: &Path) -> Self {
        refused(format!("`{}` is not a folder", shown_path(path)), ANOTHER)
    }

    /// A path that ends in no name.
    pub(crate) fn not_a_file_name(path: &Path) -> Self {
        Error::new(Kind::Output, format!("`{}` does not name a file", shown_path(path)))
    }

    /// A folder or file that was there a moment ago.
    pub(crate) fn vanished(path: &Path) -> Self {
        Error::new(Kind::NotFound, format!("`{}` does not exist or disappeared", shown_path(path)))
    }

    /// Another process holds the lock.
    pub(crate) fn locked(folder: &Path, process: Option<u32>) -> Self {
        let who = process.map_or(String::new(), |process| format!(" (process {process})"));
        let message = format!("another run is writing to `{}`{who}", shown_path(folder));
        refused(message, "wait until it ends, or choose another output folder")
    }

    /// The folder is in use for something.
    pub(crate) fn not_empty(folder: &Path, finished: bool) -> Self {
        let (what, hint) = match finished {
            true => ("holds a finished output", "use --overwrite to replace it, or choose another output folder"),
            false => (
                "is not empty and holds no unfinished run",
                "use --overwrite to replace the checkpoint in it, or choose another output folder",
            ),
        };
        refused(format!("the output folder `{}` {what}", shown_path(folder)), hint)
    }

    /// `--overwrite` on a folder of something else.
    pub(crate) fn no_checkpoint_to_overwrite(folder: &Path) -> Self {
        let message = format!(
            "the output folder `{}` holds files but no checkpoint: found neither weights, an index nor a manifest",
            shown_path(folder)
        );
        refused(message, "only a checkpoint can be overwritten; choose an empty folder or one that does not exist")
    }

    /// An unfinished run of something else.
    pub(crate) fn unfinished_other(folder: &Path) -> Self {
        let message = format!("the output folder `{}` holds an unfinished run of a different plan", shown_path(folder));
        refused(
            message,
            "repeat the command that began it, use --overwrite to replace it, or choose another output folder",
        )
    }

    /// Parts of a run have been at work in the folder, and it has not been ended.
    pub(crate) fn in_parts(folder: &Path) -> Self {
        let message = format!("the output folder `{}` holds an unfinished run in parts", shown_path(folder));
        refused(
            message,
            "run the parts that are missing, or `taskvec finish` on the folder; to begin again, remove the folder or \
             choose another one",
        )
    }

    /// A shard that a part has written is not what it left.
    pub(crate) fn missing_shard(shard: &Path, size: u64) -> Self {
        let message = format!("`{}` is not found with the {size} bytes that a part has written", shown_path(shard));
        refused(message, "run the same parts again: those that are complete are kept")
    }

    /// A weight file of an input is not what it was.
    pub(crate) fn input_changed(file: &Path, state: &Path) -> Self {
        let message = format!(
            "`{}` is not the file it was when the unfinished run in `{}` began",
            shown_path(file),
            shown_path(state.parent().unwrap_or(state))
        );
        refused(
            message,
            "put the file back as it was, or use --no-resume or --overwrite to begin again with the inputs as they are",
        )
    }

    /// A file of an output that was whole is not there when it is to take another's place.
    pub(crate) fn lost_of_new(file: &Path) -> Self {
        let message =
            format!("`{}` is missing or cut short: something else changed the output during the run", shown_path(file));
        refused(
            message,
            "the old output is in its place again; run the same command again when nothing else writes there",
        )
    }

    /// A journal that no kill can have left like this.
    pub(crate) fn damaged_journal(journal: &Path, problem: &str) -> Self {
        let message = format!("the journal `{}` is damaged: {}", shown_path(journal), printable(problem));
        refused(message, "use --overwrite to begin again")
    }

    /// The same for another file of the state.
    pub(crate) fn damaged_state(file: &Path, problem: &str) -> Self {
        let message =
            format!("the state of the unfinished run in `{}` is damaged: {}", shown_path(file), printable(problem));
        refused(message, "use --overwrite to begin again")
    }

    /// A journal entry for a shard the plan does not have, or of another size.
    pub(crate) fn foreign_record(folder: &Path, shard: &str) -> Self {
        let message =
            format!("the journal in `{}` lists `{}`, which does not fit the plan", shown_path(folder), shown(shard));
        refused(message, "use --overwrite to begin again")
    }

    /// The journal could not be brought back to its last good state.
    pub(crate) fn broken_journal(journal: &Path) -> Self {
        let message = format!("the journal `{}` takes no more entries after a failed write", shown_path(journal));
        refused(message, "run the same command again: what the journal holds is kept")
    }

    /// Too little room.
    pub(crate) fn no_space(folder: &Path, needed: u64, available: u64) -> Self {
        let message = format!(
            "too little space for `{}`: {} needed, {} available",
            shown_path(folder),
            human(needed),
            human(available)
        );
        let missing = human(needed.saturating_sub(available));
        refused(message, format!("free {missing} on that file system or choose another output folder"))
    }

    /// A shard that is not a plain file name, occurs twice, or is not part of the output.
    pub(crate) fn bad_shard_name(name: &str) -> Self {
        Error::new(Kind::Plan, format!("`{}` is not a shard name of this output", shown(name)))
    }

    /// A folder where a weight file is to be.
    pub(crate) fn shard_is_folder(path: &Path) -> Self {
        refused(format!("`{}` is a folder, but a file of that name is to be written", shown_path(path)), ANOTHER)
    }

    /// A flush failed: the system may have dropped what was written.
    pub(crate) fn failed_flush(path: &Path, error: &io::Error) -> Self {
        let again = "the disk may be failing; run the same command again to write this file again";
        Error::io("flushing", path, error).hint(way_out(error).unwrap_or(again))
    }

    /// A file that changed under the writer or the copier.
    pub(crate) fn unexpected_size(path: &Path, expected: u64, found: u64) -> Self {
        Error::new(Kind::Output, format!("`{}` has {found} bytes, expected {expected}", shown_path(path)))
            .hint("something else changes that file: stop it and run the same command again")
    }

    /// An output is ended before its manifest is there.
    pub(crate) fn no_manifest(folder: &Path, manifest: &str) -> Self {
        Error::new(Kind::Engine, format!("`{}` has no `{manifest}`: the run is not finished", shown_path(folder)))
    }

    /// A defect in the engine itself.
    pub fn engine(message: impl Into<String>) -> Self {
        Error::new(Kind::Engine, message)
    }
}
