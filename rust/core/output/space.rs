//! Is there room? Asked before the first byte, for all outputs of a run together.

use std::path::Path;

use super::system::is_not_offered;
use crate::error::{Error, Result};
use crate::file::platform::{Here, Platform};

/// What is about to be written to one folder.
pub(crate) struct Need<'a> {
    pub(crate) folder: &'a Path,
    /// Bytes of weights still to be written.
    pub(crate) bytes: u64,
    /// Bytes that are released before the first is written.
    pub(crate) released: u64,
}

/// Beyond the weights: journal, plan, config, tokenizer, and the file system's own bookkeeping.
fn slack(bytes: u64) -> u64 {
    (1 << 20) + bytes / 1024
}

/// The error where a file system has less room than the outputs on it need; none where there is enough.
///
/// # Errors
/// It cannot be found out.
pub(crate) fn lacking(needs: &[Need<'_>]) -> Result<Option<Error>> {
    let mut volumes: Vec<(u64, &Path, u64, u64)> = Vec::new();
    for need in needs {
        let stat = rustix::fs::stat(need.folder).map_err(|error| Error::io("examining", need.folder, &error.into()))?;
        let volume = Here::device(&stat);
        match volumes.iter_mut().find(|known| known.0 == volume) {
            Some(known) => {
                known.2 += need.bytes;
                known.3 += need.released;
            }
            None => volumes.push((volume, need.folder, need.bytes, need.released)),
        }
    }
    for (_, folder, bytes, released) in volumes {
        let needed = if bytes == 0 { 0 } else { bytes + slack(bytes) };
        // Some user-space file systems do not know their size, and say so, or answer with zeros.
        let status = match rustix::fs::statvfs(folder) {
            Err(error) if is_not_offered(error) => continue,
            other => other.map_err(|error| Error::io("asking for the free space of", folder, &error.into()))?,
        };
        let available = status.f_bavail.saturating_mul(status.f_frsize).saturating_add(released);
        if status.f_blocks != 0 && available < needed {
            return Ok(Some(Error::no_space(folder, needed, available)));
        }
    }
    Ok(None)
}
