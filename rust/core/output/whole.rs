//! Small files: written next to their place, flushed and renamed, so that a reader sees the old or the new one, never
//! a part.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;

use super::fault::Operation;
use super::system::{flushed, part_name, Directory};
use crate::error::{Error, Result};

/// Writes a file as a whole or not at all.
pub(crate) fn write_in(directory: &Directory, name: &OsStr, bytes: &[u8]) -> Result<()> {
    let part = part_name(name);
    let written = write_part(directory, &part, bytes).and_then(|()| directory.rename(&part, name));
    if written.is_err() {
        // The first failure is the one to report.
        let _ = directory.remove(&part);
    }
    written.and_then(|()| directory.sync())
}

fn write_part(directory: &Directory, part: &OsStr, bytes: &[u8]) -> Result<()> {
    let failed = |action: &str, error: std::io::Error| Error::io(action, &directory.path().join(part), &error);
    let mut file: File = directory.create(part)?;
    directory.fault(Operation::Write).and_then(|()| file.write_all(bytes)).map_err(|error| failed("writing", error))?;
    directory.fault(Operation::Sync).and_then(|()| flushed(file.sync_data())).map_err(|error| failed("flushing", error))
}
