//! The end of a run in parts: what each part has put in place becomes an unfinished run of the whole plan, with a journal
//! that lists every shard, so that whoever runs that plan next measures nothing again and only ends it.

use std::ffi::OsStr;
use std::path::Path;

use super::admission::{hex, write_inputs};
use super::contents;
use super::journal::{Journal, JournalRecord};
use super::lock::Claim;
use super::overlap::{resolve, Inputs};
use super::whole::write_in;
use super::PLAN;
use crate::error::{Error, Result};

/// Makes a folder in which the shards lie an unfinished run of `plan` over `inputs`. `records` are the lines of the
/// parts' journals, one of each shard of the plan.
///
/// # Errors
/// `Kind::Output` where another run has the folder, a line is no record, or a shard is not in place as its record says.
pub fn assemble(path: &Path, inputs: &[&Path], plan: &[u8], records: &[&str]) -> Result<()> {
    let mut inputs = Inputs::examine(inputs)?;
    let path = resolve(path)?;
    inputs.refuse_overlap(&path)?;
    inputs.sample()?;
    let mut claim = Claim::take(&path)?;
    match claim.state.read(OsStr::new(PLAN))? {
        Some(saved) if saved == plan => return Ok(()),
        Some(_) => return Err(Error::unfinished_other(&path)),
        None => {}
    }
    for line in records {
        let record: JournalRecord =
            serde_json::from_str(line).map_err(|error| Error::damaged_state(claim.state.path(), &error.to_string()))?;
        if !contents::is_below(&claim.directory, Path::new(&record.shard), Some(record.size))? {
            return Err(Error::missing_shard(&path.join(&record.shard), record.size));
        }
    }
    write_inputs(&claim.state, &inputs)?;
    Journal::assemble(&claim.state, &hex(plan), records)?;
    write_in(&claim.state, OsStr::new(PLAN), plan)?;
    claim.directory.sync()?;
    claim.keep();
    Ok(())
}
