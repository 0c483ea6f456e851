//! Executes a plan: blocks of the output files over a pool of threads, in file order, in bounded memory.
//!
//! The unit of work is one block of one output shard, 1 MiB at a multiple of 1 MiB: small enough to stay in the
//! second-level cache until it is hashed and written, and aligned so that its BLAKE3 subtree can be computed alone.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::error::{Error, Kind, Result};
use crate::kernels::dispatch::ControlRegister;
use crate::kernels::Level;
use crate::measure::NonFinite;
use crate::monitor::Monitor;
use crate::output::digest::BLOCK;
use crate::output::folder::{Options as FolderOptions, OutputFolder, Request};
use crate::plan::layout::Layout;
use crate::plan::{Output, Plan};
use crate::storage::source::{place, Buffers};
use crate::storage::sources::Sources;
use crate::threads::pool;
use crate::workers;

pub(crate) mod block;
pub mod contents;
pub(crate) mod encode;
pub(crate) mod noise;
mod order;
pub(crate) mod program;
pub mod ranges;
pub(crate) mod report;
mod rounds;
mod shards;
pub(crate) mod taken;
pub(crate) mod tile;

use contents::{Asked, Contents};
use encode::tensors::Encodings;
use program::Program;
use rounds::Run;
use shards::Shards;

/// How to run a plan; none of it changes a byte of the output.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Threads; 0 is one per core.
    pub threads: usize,
    /// Bound on anonymous memory in bytes; fewer threads are used where it asks for that.
    pub max_memory: Option<u64>,
    /// Go on where inputs or outputs hold NaN or infinities.
    pub allow_non_finite: bool,
    /// How to treat what is in the output folder already.
    pub folder: FolderOptions,
    /// Where each source lies, if not where the plan says; an empty path for one that lies there.
    pub paths: Vec<PathBuf>,
    /// Compute nothing: the sources may have holes in place of their data, and every shard has to be in place.
    pub ends_only: bool,
    /// Input files whose BLAKE3 digests the report is to have.
    pub contents: Vec<Asked>,
}

/// Runs `plan` into `out` and returns the report as JSON.
///
/// # Errors
/// Whatever the sources, the arithmetic or the output folder refuse; finished shards stay and are kept by the next run.
pub fn run(plan_json: &[u8], out: &Path, options: &Options, monitor: &Monitor) -> Result<String> {
    run_with(plan_json, &[], out, options, monitor)
}

/// Runs `plan` with what the embedding process holds for its sources of kind memory.
///
/// # Errors
/// As [`run`].
pub fn run_with(
    plan_json: &[u8],
    memories: &[Buffers<'_>],
    out: &Path,
    options: &Options,
    monitor: &Monitor,
) -> Result<String> {
    // A thread that the embedding process starts inherits what that has set.
    let _ieee = ControlRegister::ieee();
    let started = Instant::now();
    let mut plan = Plan::parse(plan_json)?;
    place(&mut plan.sources, &options.paths)?;
    let level = Level::chosen()?;
    let layout = plan.layout();
    // A run that only ends another one opens no tensor: where the data of its sources is there may be holes.
    let sources = Sources::of(&plan.sources, memories)?.only_headers(options.ends_only);
    let non_finite = NonFinite::default();
    let programs = Program::all(&plan, &sources, level, monitor, &non_finite)?;
    if options.max_memory.is_some() {
        // A bound that one thread cannot keep is refused before anything is made.
        let whole = Encodings::of(&plan, &programs, level, &|_| (0..plan.outputs.len()).collect())?;
        threads(&plan, &programs, whole.memory(), options)?;
    }
    let folders = admit(&plan, plan_json, out, &layout, &sources, options, monitor)?;
    folders.iter().try_for_each(report::check)?;
    let shards = Shards::new(&plan, &layout, &folders, &programs);
    let encodings = Encodings::of(&plan, &programs, level, &|shard| shards.outputs(shard))?;
    let threads = threads(&plan, &programs, encodings.memory(), options)?;
    let pool = pool(threads)?;

    let read = programs.iter().flat_map(|program| &program.inputs);
    let contents = Contents::of(&options.contents, &sources, read);
    let run = Run {
        plan: &plan,
        layout: &layout,
        programs: &programs,
        folders: &folders,
        level,
        monitor,
        non_finite: &non_finite,
        allow_non_finite: options.allow_non_finite,
        pool: &pool,
        shards,
        encodings,
        contents: &contents,
    };
    let resumed = run.shards.kept();
    if options.ends_only && !(0..plan.shards.len()).all(|shard| run.shards.is_done(shard)) {
        return Err(Error::engine("a run that only ends another one lacks a weight file"));
    }
    monitor.expect(run.expected_bytes());
    // What an input has become meanwhile says more than what was found in it.
    let done = run.execute().and_then(|()| contents.finish(&pool, monitor));
    if !matches!(&done, Err(error) if error.kind != Kind::NonFinite) {
        sources.unchanged()?;
    }
    let report = run.report(started, threads, resumed, done?)?;
    for folder in folders {
        folder.close()?;
    }
    Ok(report)
}

fn admit(
    plan: &Plan,
    json: &[u8],
    out: &Path,
    layout: &Layout,
    sources: &Sources<'_>,
    options: &Options,
    monitor: &Monitor,
) -> Result<Vec<OutputFolder>> {
    let sizes: Vec<(String, u64)> = layout.shards.iter().map(|shard| (shard.name.clone(), shard.size)).collect();
    let inputs = sources.paths();
    let place = |output: &Output| if output.folder.is_empty() { out.to_path_buf() } else { out.join(&output.folder) };
    let paths: Vec<PathBuf> = plan.outputs.iter().map(place).collect();
    let requests: Vec<Request<'_>> = paths.iter().map(|path| Request { path, shards: &sizes }).collect();
    let unchanged = || sources.unchanged();
    OutputFolder::admit_over(&requests, &inputs, json, &options.folder, &unchanged, monitor)
}

/// As many threads as asked for, or as many as the memory bound allows.
fn threads(plan: &Plan, programs: &[Program<'_>], packing: u64, options: &Options) -> Result<usize> {
    let wanted = workers::count(options.threads);
    let Some(bound) = options.max_memory else { return Ok(wanted) };
    let inputs = plan.jobs.iter().map(|job| job.inputs.len()).max().unwrap_or(1) as u64;
    let each = (plan.outputs.len() as u64 + inputs) * (BLOCK + (64 << 10)) + (256 << 10) + packing;
    let fixed = (16 << 20) + rounds::kept(programs);
    match (bound.saturating_sub(fixed) / each).min(wanted as u64) {
        0 => Err(Error::new(
            Kind::Plan,
            format!("{bound} bytes of memory are not enough: one thread needs {}", fixed + each),
        )
        .hint(format!("raise `--max-memory`, to {} MB at least", (fixed + each).div_ceil(1_000_000)))),
        n => Ok(n as usize),
    }
}
