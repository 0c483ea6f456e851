//! The byte ranges of the input files that a plan reads, known from headers alone: whoever brings these to a machine, in
//! files of the right sizes, has brought all that a run of the plan needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::plan::Plan;
use crate::storage::source::place;
use crate::storage::sources::Sources;

/// A file, and the ranges of its bytes that are read, in order and apart from each other.
pub type Ranges = BTreeMap<PathBuf, Vec<(u64, u64)>>;

/// What each shard of a plan reads of sources that lie in files. Only headers are looked at.
///
/// # Errors
/// Sources that are not what the plan was made for, or tensors that do not fit.
pub fn ranges(plan_json: &[u8], paths: &[PathBuf]) -> Result<Vec<Ranges>> {
    let mut plan = Plan::parse(plan_json)?;
    place(&mut plan.sources, paths)?;
    let sources = Sources::of(&plan.sources, &[])?.only_headers(true);
    let mut shards: Vec<BTreeMap<&Path, Vec<(u64, u64)>>> = vec![BTreeMap::new(); plan.shards.len()];
    let mut opened = Vec::new();
    for job in plan.jobs.iter().filter(|job| !job.is_aside()) {
        let stored = plan.operations[job.operation].is_stored();
        let (_, shape, elements) = job.logical();
        for (source, name) in &job.inputs {
            let input = sources.input(&plan.sources, (*source, name), (shape, elements), stored)?;
            opened.push((job.shard, input));
        }
    }
    for (shard, part) in
        opened.iter().flat_map(|(shard, input)| input.storage().parts().into_iter().map(|p| (*shard, p)))
    {
        shards[shard].entry(part.file.path()).or_default().push((part.offset, part.offset + part.bytes()));
    }
    let owned = |found: BTreeMap<&Path, Vec<(u64, u64)>>| {
        found.into_iter().map(|(path, ranges)| (path.to_path_buf(), joined(ranges))).collect()
    };
    Ok(shards.into_iter().map(owned).collect())
}

/// The same bytes in ranges that do not touch.
pub(super) fn joined(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, stop) in ranges.into_iter().filter(|(start, stop)| start < stop) {
        match joined.last_mut() {
            Some((_, end)) if start <= *end => *end = stop.max(*end),
            _ => joined.push((start, stop)),
        }
    }
    joined
}
