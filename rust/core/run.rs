//! Executes a plan: blocks of the output files over a pool of threads, in file order, in bounded memory.
//!
//! The unit of work is one block of one output shard, 1 MiB at a multiple of 1 MiB: small enough to stay in the
//! second-level cache until it is hashed and written, and aligned so that its BLAKE3 subtree can be computed alone.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Mutex;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::kernels::Level;
use crate::measure::{NonFinite, Place};
use crate::monitor::Monitor;
use crate::output::digest::BLOCK;
use crate::output::folder::{Options as FolderOptions, OutputFolder, Request};
use crate::output::shard::{copy_whole, Sharing};
use crate::plan::layout::Layout;
use crate::plan::{Output, Plan};
use crate::storage::source::Buffers;
use crate::storage::sources::Sources;
use crate::threads::{lock, one_by_one, pool, Threads};

pub mod block;
pub mod program;
pub(crate) mod report;
mod shards;
pub(crate) mod tile;

use block::{Block, Worker};
use program::{Program, Step};
use report::{Found, Journaled, Report, Written};
use shards::{ShardState, Shards};

/// Input bytes of tensors that are prepared together before their blocks are written: large enough to keep every
/// thread busy, small enough that the pages, on some machines the cache, still hold them for the second pass.
const GROUP: u64 = 64 << 20;

/// Blocks whose inputs are let go of together: unmapping interrupts the other cores, so not after every block.
const BEHIND: usize = 16;

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
    let started = Instant::now();
    let plan = Plan::parse(plan_json)?;
    let level = Level::chosen()?;
    let layout = plan.layout();
    let sources = Sources::of(&plan.sources, memories)?;
    let non_finite = NonFinite::default();
    let programs = Program::all(&plan, &sources, level, monitor, &non_finite)?;
    let folders = admit(&plan, plan_json, out, &layout, &sources, options, monitor)?;
    folders.iter().try_for_each(report::check)?;
    let threads = threads(&plan, options)?;
    let pool = pool(threads)?;

    let run = Run {
        plan: &plan,
        layout: &layout,
        sources: &sources,
        programs: &programs,
        folders: &folders,
        level,
        monitor,
        non_finite: &non_finite,
        options,
        pool: &pool,
        shards: Shards::new(&plan, &layout, &folders, &programs),
    };
    let resumed = run.shards.kept();
    monitor.expect(run.expected_bytes());
    run.execute()?;
    sources.unchanged()?;
    let report = run.report(started, threads, resumed)?;
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
    let inputs: Vec<PathBuf> = sources.paths();
    let inputs: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
    let place = |output: &Output| if output.folder.is_empty() { out.to_path_buf() } else { out.join(&output.folder) };
    let paths: Vec<PathBuf> = plan.outputs.iter().map(place).collect();
    let requests: Vec<Request<'_>> = paths.iter().map(|path| Request { path, shards: &sizes }).collect();
    OutputFolder::admit_all(&requests, &inputs, json, &options.folder, &|| monitor.is_cancelled())
}

/// As many threads as asked for, or as many as the memory bound allows.
fn threads(plan: &Plan, options: &Options) -> Result<usize> {
    let wanted = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    };
    let Some(bound) = options.max_memory else { return Ok(wanted) };
    let inputs = plan.jobs.iter().map(|job| job.inputs.len()).max().unwrap_or(1) as u64;
    let each = (plan.outputs.len() as u64 + inputs) * (BLOCK + (64 << 10)) + (256 << 10);
    let fixed = 16 << 20;
    match (bound.saturating_sub(fixed) / each).min(wanted as u64) {
        0 => Err(Error::new(
            crate::error::Kind::Plan,
            format!("{bound} bytes of memory are too few, one thread needs {}", fixed + each),
        )
        .hint("raise `--max-memory`")),
        n => Ok(n as usize),
    }
}

/// Everything that the threads of a run share.
struct Run<'a> {
    plan: &'a Plan,
    layout: &'a Layout,
    sources: &'a Sources<'a>,
    programs: &'a [Program<'a>],
    folders: &'a [OutputFolder],
    level: Level,
    monitor: &'a Monitor,
    non_finite: &'a NonFinite,
    options: &'a Options,
    pool: &'a rayon::ThreadPool,
    shards: Shards,
}

impl Run<'_> {
    fn execute(&self) -> Result<()> {
        let blocks: Vec<Block> = (0..self.layout.shards.len())
            .filter(|shard| !self.shards.is_done(*shard))
            .flat_map(|shard| Block::all(shard, self.layout))
            .collect();
        let worker = |_| Mutex::new(Worker::new(self.level, self.plan.outputs.len()));
        let workers: Vec<Mutex<Worker>> = (0..self.pool.current_num_threads()).map(worker).collect();
        let groups = self.groups(&blocks);
        self.round(&workers, &[], groups.first().copied().unwrap_or_default())?;
        for (index, group) in groups.iter().enumerate() {
            let next = groups.get(index + 1).copied().unwrap_or_default();
            self.round(&workers, group, next)?;
            // A group may be too short for its inputs to have been let go of on the way.
            if !next.is_empty() {
                Block::joined(group).for_each(|done| done.drop_behind(self.layout, self.programs));
            }
            for job in jobs(group) {
                if !jobs(next).contains(&job) {
                    self.programs[job].forget();
                }
            }
        }
        Ok(())
    }

    /// Blocks whose tensors are prepared together.
    fn groups<'b>(&self, blocks: &'b [Block]) -> Vec<&'b [Block]> {
        if self.programs.iter().all(|program| !program.prepares()) {
            return vec![blocks];
        }
        let (mut groups, mut from, mut cost, mut seen) = (Vec::new(), 0, 0, 0);
        for (to, block) in blocks.iter().enumerate() {
            let unseen = block.jobs.start.max(seen)..block.jobs.end.max(seen);
            let more: u64 = self.programs[unseen].iter().map(Program::cost).sum();
            if more > 0 && to > from && cost + more > GROUP {
                groups.push(&blocks[from..to]);
                (from, cost) = (to, 0);
            }
            cost += more;
            seen = seen.max(block.jobs.end);
        }
        groups.push(&blocks[from..]);
        groups
    }

    /// Writes the blocks of a group, and lets every tensor of the group that follows look at itself if it wants to:
    /// whichever thread finds no block left goes on to that, so that none waits for the others but once.
    fn round(&self, workers: &[Mutex<Worker>], blocks: &[Block], following: &[Block]) -> Result<()> {
        let mut wanting: Vec<&Program<'_>> =
            self.programs[jobs(following)].iter().filter(|p| p.prepares() && !p.ready()).collect();
        // The longest first: what is left over for one thread at the end is short.
        wanting.sort_by_key(|program| std::cmp::Reverse(program.cost()));
        let failed = Mutex::new(None);
        let (next, looked) = (AtomicUsize::new(0), AtomicUsize::new(0));
        self.pool.broadcast(|context| {
            let mut worker = lock(&workers[context.index()]);
            one_by_one(&next, blocks.len(), &failed, |index| self.nth(&mut worker, blocks, index));
            if lock(&failed).is_some() {
                return;
            }
            one_by_one(&looked, wanting.len(), &failed, |index| {
                self.monitor.check()?;
                let threads = if wanting[index].is_large() { Threads::Pool(self.pool) } else { Threads::Alone };
                wanting[index].prepare(threads)
            });
        });
        if let Some(error) = lock(&failed).take() {
            return Err(error);
        }
        self.refuse_non_finite()
    }

    fn nth(&self, worker: &mut Worker, blocks: &[Block], index: usize) -> Result<()> {
        let block = &blocks[index];
        // Values that are not finite end the run, but only once their tensor has been counted to its end.
        if !self.options.allow_non_finite && block.jobs.start > self.non_finite.first.load(Relaxed) {
            return Ok(());
        }
        if index.is_multiple_of(BEHIND) && index >= 2 * BEHIND {
            for done in Block::joined(&blocks[index - 2 * BEHIND..index - BEHIND]) {
                done.drop_behind(self.layout, self.programs);
            }
        }
        if let Some(later) = blocks.get(index + 2 * self.pool.current_num_threads()) {
            later.advise(self.layout, self.programs);
        }
        self.monitor.check()?;
        self.block(worker, block)
    }

    fn block(&self, worker: &mut Worker, block: &Block) -> Result<()> {
        let states = self.shards.computed(block.shard);
        for state in states {
            state.open(&self.layout.shards[block.shard], self.folders)?;
        }
        let steps = steps(self.plan, states);
        let read = worker.compute(block, self.layout, self.plan, self.programs, &steps, self.non_finite)?;
        for state in states {
            state.measured(block, worker);
            if state.write(block, worker)? {
                self.publish(block.shard, state)?;
            }
        }
        self.monitor.advance(read + (block.end - block.start) * states.len() as u64);
        Ok(())
    }

    /// All blocks of a shard are written: it gets its name, unless it holds what is not allowed.
    fn publish(&self, shard: usize, state: &ShardState) -> Result<()> {
        let jobs = self.layout.shards[shard].jobs.clone();
        let bad = self.non_finite.first.load(Relaxed);
        if !self.options.allow_non_finite && bad < jobs.end {
            return Ok(());
        }
        let counts = self.non_finite.counts().into_iter();
        let non_finite = counts
            .filter(|(job, place, _)| jobs.contains(job) && *place != Place::Output(usize::MAX))
            .map(|(job, place, count)| (self.plan.jobs[job].name.to_string(), self.describe(job, place), count))
            .collect();
        let found = state.found.get_or_init(|| Found { tensors: state.survivals(), non_finite });
        let extra = Journaled { found, plan: self.plan };
        let digest = state.digest()?;
        // What was read from a file that changed meanwhile must not get a name that a later run would keep.
        self.sources.unchanged()?;
        if let Some(file) = state.file() {
            file.publish(&digest, &extra)?;
        }
        self.share(shard, state, &digest, &extra)
    }

    /// Gives a shard that no alpha changes to the outputs for which it was not computed: as the same file, where the
    /// file system can.
    fn share(&self, shard: usize, from: &ShardState, digest: &str, extra: &Journaled<'_>) -> Result<()> {
        let name = &self.layout.shards[shard].name;
        let source = self.folders[from.output].path().join(name);
        for state in self.shards.shared(shard) {
            let cancelled = || self.monitor.is_cancelled();
            let folder = &self.folders[state.output];
            // One thread: the others are busy with the blocks that follow.
            let (file, _) = copy_whole(folder, &source, name, Sharing::File, Some(digest), 1, &cancelled)?;
            file.publish(digest, extra)?;
        }
        Ok(())
    }

    fn refuse_non_finite(&self) -> Result<()> {
        if self.options.allow_non_finite {
            return Ok(());
        }
        self.non_finite.error(|job, place| self.describe(job, place)).map_or(Ok(()), Err)
    }

    fn describe(&self, job: usize, place: Place) -> String {
        let job = &self.plan.jobs[job];
        match place {
            Place::Input(index) => {
                let (source, name) = &job.inputs[index];
                format!("input `{}` of `{}`", name.escape_debug(), self.plan.sources[*source].path)
            }
            Place::Output(index) => {
                format!("output `{}` (alpha {})", job.name.escape_debug(), self.plan.outputs[index].alpha)
            }
        }
    }

    /// Bytes that blocks still to be done will read and write.
    fn expected_bytes(&self) -> u64 {
        let mut bytes = 0;
        for (index, shard) in self.layout.shards.iter().enumerate() {
            let outputs = self.shards.computed(index).len() as u64;
            if outputs > 0 {
                let read: u64 = self.programs[shard.jobs.clone()].iter().map(Program::cost).sum();
                bytes += read + shard.size * outputs;
            }
        }
        bytes
    }

    fn report(&self, started: Instant, threads: usize, resumed: usize) -> Result<String> {
        let (done, _) = self.monitor.progress();
        let written: u64 = self
            .layout
            .shards
            .iter()
            .enumerate()
            .map(|(index, shard)| shard.size * self.shards.computed(index).len() as u64)
            .sum();
        let outputs = self.plan.outputs.iter().zip(self.folders).enumerate();
        let written_to = |(index, (output, folder))| {
            let found = self.shards.found(index);
            Written { output, folder, plan: self.plan, found }
        };
        report::text(&Report {
            bytes_read: done.saturating_sub(written),
            bytes_written: written,
            cpu_level: self.level.name(),
            outputs: outputs.map(written_to).collect(),
            plan: &self.plan.digest,
            resumed_shards: resumed,
            seconds: started.elapsed().as_secs_f64(),
            threads,
        })
    }
}

/// What the steps of one job's tiles need to know about an output.
fn steps(plan: &Plan, states: &[ShardState]) -> Vec<Step> {
    states.iter().map(|state| Step { alpha: plan.outputs[state.output].alpha, output: state.output }).collect()
}

/// The jobs of neighbouring blocks.
fn jobs(blocks: &[Block]) -> std::ops::Range<usize> {
    match (blocks.first(), blocks.last()) {
        (Some(first), Some(last)) => first.jobs.start..last.jobs.end.max(first.jobs.start),
        _ => 0..0,
    }
}
