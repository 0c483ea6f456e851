//! The byte ranges of donor and reference that each tensor of a vector reads, known from headers alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::item::Item;
use super::ExtractPlan;
use crate::error::Result;
use crate::run::ranges::{joined, Ranges};
use crate::storage::source::place;
use crate::storage::sources::Sources;

/// What each tensor of the plan of a vector reads of sources that lie in files, as [`crate::run::ranges::ranges`] tells
/// it of a shard.
///
/// # Errors
/// Sources that are not what the plan was made for, or tensors that do not fit.
pub fn ranges(plan_json: &[u8], paths: &[PathBuf]) -> Result<Vec<Ranges>> {
    let mut plan = ExtractPlan::parse(plan_json)?;
    place(&mut plan.sources, paths)?;
    let sources = Sources::of(&plan.sources, &[])?;
    let mut found = Vec::with_capacity(plan.tensors.len());
    for (name, shape, donor, reference) in &plan.tensors {
        let item = Item::new(&plan.sources, &sources, name, shape, [donor, reference])?;
        let mut parts: Ranges = BTreeMap::new();
        for part in item.inputs.iter().flat_map(|input| input.storage().parts()) {
            let range = (part.offset, part.offset + part.bytes());
            parts.entry(part.file.path().to_path_buf()).or_default().push(range);
        }
        found.push(parts.into_iter().map(|(path, ranges)| (path, joined(ranges))).collect());
    }
    Ok(found)
}
