//! donor − reference as an artifact of its own: without loss, each tensor in the type and the encoding that take least
//! together with the elements that this type does not hold.
//!
//! Two passes: the first finds out what each tensor needs, from which the sizes of all files follow; the second writes.

use std::path::Path;
use std::time::Instant;

use serde::Deserialize;

use crate::dtype::Dtype;
use crate::error::{printable, shown, Error, Kind, Result};
use crate::kernels::dispatch::ControlRegister;
use crate::kernels::Level;
use crate::measure::{NonFinite, Place};
use crate::monitor::Monitor;
use crate::output::folder::{OutputFolder, Request};
use crate::plan::FORMAT;
use crate::run::contents::Contents;
use crate::run::program::Pair;
use crate::run::report::text;
use crate::run::Options;
use crate::storage::source::Source;
use crate::storage::source::{place, Buffers};
use crate::storage::sources::Sources;
use crate::threads::pool;

mod files;
mod item;
pub mod join;
mod passes;
mod report;

use files::{lay_out, Stored};
use item::Item;
use passes::Work;
use report::Report;

/// What to extract.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExtractPlan {
    format: u32,
    /// Donor and reference.
    sources: Vec<Source>,
    /// (name, shape, donor's name, reference's name)
    tensors: Vec<(String, Vec<u64>, String, String)>,
    /// Bytes after which a new file begins.
    max_shard_size: u64,
    /// A lossy, named choice of value type; lossless without it.
    dtype: Option<String>,
    /// Whether this is a piece of a vector that is joined later: the report then says what is stored of each tensor.
    #[serde(default)]
    piece: bool,
}

impl ExtractPlan {
    /// # Errors
    /// `Kind::Plan` where it is not a plan of this version.
    fn parse(json: &[u8]) -> Result<Self> {
        let plan: ExtractPlan = serde_json::from_slice(json).map_err(|e| bad(&e.to_string()))?;
        if plan.format != FORMAT || plan.sources.len() != 2 {
            return Err(bad(&format!("format {} with {} sources", plan.format, plan.sources.len())));
        }
        Ok(plan)
    }
}

fn bad(what: &str) -> Error {
    Error::new(Kind::Plan, format!("unusable plan: {}", printable(what)))
}

/// Extracts a vector into the folder `out` and returns the report as JSON; `memories` as in [`crate::run::run_with`].
///
/// # Errors
/// Whatever the sources or the output folder refuse.
pub fn extract(
    plan_json: &[u8],
    memories: &[Buffers<'_>],
    out: &Path,
    options: &Options,
    monitor: &Monitor,
) -> Result<String> {
    // A thread that the embedding process starts inherits what that has set.
    let _ieee = ControlRegister::ieee();
    let started = Instant::now();
    let mut plan = ExtractPlan::parse(plan_json)?;
    let lossy = match &plan.dtype {
        None => None,
        Some(name) => {
            let dtype = Dtype::from_name(name).filter(|dtype| dtype.is_float());
            Some(dtype.ok_or_else(|| bad(&format!("type `{}`", shown(name))))?)
        }
    };
    let level = Level::chosen()?;
    place(&mut plan.sources, &options.paths)?;
    let sources = Sources::of(&plan.sources, memories)?;
    let pool = pool(options.threads)?;
    let non_finite = NonFinite::default();
    let mut items = Vec::with_capacity(plan.tensors.len());
    for (name, shape, donor, reference) in &plan.tensors {
        items.push(Item::new(&plan.sources, &sources, name, shape, [donor, reference])?);
    }
    let inputs = sources.paths();
    OutputFolder::foresee(out, &inputs, plan_json, &options.folder)?;
    monitor.expect(2 * items.iter().map(Item::cost).sum::<u64>());

    let packed = plan.sources.iter().any(|source| !source.packed.is_empty());
    let pairs: &[Pair] = if packed { &[Pair { donor: 0, reference: 1, weight: 1.0 }] } else { &[] };
    let read = items.iter().flat_map(|item| &item.inputs);
    let contents = Contents::of(&options.contents, &sources, read);
    let work = Work { contents: &contents, level, monitor, pool: &pool, lossy, pairs };
    work.measure(&mut items, &non_finite)?;
    let counted = |job: usize, place| {
        let name = shown(items[job].name);
        let source = usize::from(place == Place::Input(1));
        format!("`{name}` of `{}`", plan.sources[source].path)
    };
    if let (false, Some(error)) = (options.allow_non_finite, non_finite.error(counted)) {
        return Err(error);
    }
    let beyond = items.iter().find(|item| item.total.largest.is_infinite());
    if let (false, Some(item)) = (options.allow_non_finite, beyond) {
        let (name, dtype) = (shown(item.name), lossy.unwrap_or(Dtype::F64));
        let message = format!("values that are not finite: a difference in `{name}` is beyond the range of {dtype}");
        return Err(Error::new(Kind::NonFinite, message)
            .hint("exclude the tensor (`--exclude`), choose a wider type, or go on with `--force non-finite`"));
    }
    for item in &mut items {
        item.choose(lossy);
    }
    let stored: Vec<Stored> = items.iter().map(Item::stored).collect();
    let files = lay_out(&stored, plan.max_shard_size)?;
    let sizes: Vec<(String, u64)> = files.iter().map(|file| (file.name.clone(), file.size)).collect();
    let requests = [Request { path: out, shards: &sizes }];
    let unchanged = || sources.unchanged();
    let admitted = OutputFolder::admit_over(&requests, &inputs, plan_json, &options.folder, &unchanged, monitor)?;
    let folder = admitted.into_iter().next().ok_or_else(|| Error::engine("an admitted folder is missing"))?;
    let resumed = folder.done().len();
    for file in &files {
        if !folder.done().contains_key(&file.name) {
            work.write(file, &items, &folder)?;
        }
    }
    let contents = contents.finish(&pool, monitor)?;
    sources.unchanged()?;
    let report = Report {
        seconds: started.elapsed().as_secs_f64(),
        bytes_read: items.iter().map(Item::cost).sum(),
        contents,
        bytes_written: files.iter().map(|file| file.size).sum(),
        threads: pool.current_num_threads(),
        cpu_level: level.name(),
        resumed_shards: resumed,
        replaces: folder.replaces(),
        shards: report::shards(&files, &folder),
        weight_map: report::WeightMap { stored: &stored, files: &files },
        tensors: report::tensors(&items, &stored, &files, plan.piece),
        noise: report::noise(&items),
    };
    let text = text(&report)?;
    folder.close()?;
    Ok(text)
}
