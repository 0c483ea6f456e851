//! The blocks of a run in their order: groups whose tensors are prepared together, rounds of threads over them, and
//! shards that are published when their last block is written.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Mutex;
use std::time::Instant;

use super::block::{Block, Worker};
use super::contents::{Content, Contents};
use super::encode::bands::{Banded, Context};
use super::encode::tensors::Encodings;
use super::order::{in_order, jobs, Last};
use super::program::{Program, Step};
use super::report::{self, Found, Journaled, Report, Written};
use super::shards::{ShardState, Shards};
use crate::error::{shown, Result};
use crate::kernels::Level;
use crate::measure::{NonFinite, Place};
use crate::monitor::Monitor;
use crate::output::folder::OutputFolder;
use crate::output::shard::{copy_whole, Sharing};
use crate::plan::layout::Layout;
use crate::plan::Plan;
use crate::storage::input::unchanged;
use crate::threads::{lock, one_by_one, Threads};

/// Input bytes of tensors that are prepared together before their blocks are written: large enough to keep every
/// thread busy, small enough that the pages, on some machines the cache, still hold them for the second pass.
const GROUP: u64 = 64 << 20;

/// Bytes of what is kept of whole tensors, at most: those of two groups at a time.
pub(super) fn kept(programs: &[Program<'_>]) -> u64 {
    let of_group = |program: &Program<'_>| {
        let kept = program.keeps();
        kept.max((u128::from(kept) * u128::from(GROUP) / u128::from(program.cost().max(1))) as u64)
    };
    2 * programs.iter().map(of_group).max().unwrap_or(0)
}

/// Blocks whose inputs are let go of together: unmapping interrupts the other cores, so not after every block.
const BEHIND: usize = 16;

/// Everything that the threads of a run share.
pub(super) struct Run<'a> {
    pub(super) plan: &'a Plan,
    pub(super) layout: &'a Layout,
    pub(super) programs: &'a [Program<'a>],
    pub(super) folders: &'a [OutputFolder],
    pub(super) level: Level,
    pub(super) monitor: &'a Monitor,
    pub(super) non_finite: &'a NonFinite,
    pub(super) allow_non_finite: bool,
    pub(super) pool: &'a rayon::ThreadPool,
    pub(super) shards: Shards,
    pub(super) encodings: Encodings,
    pub(super) contents: &'a Contents<'a>,
}

impl Run<'_> {
    pub(super) fn execute(&self) -> Result<()> {
        let blocks: Vec<Block> = (0..self.layout.shards.len())
            .filter(|shard| !self.shards.is_done(*shard))
            .flat_map(|shard| Block::all(shard, self.layout))
            .collect();
        let blocks = in_order(blocks, self.layout, &self.encodings);
        let worker = |_| Mutex::new(Worker::new(self.level, self.plan.outputs.len()));
        let workers: Vec<Mutex<Worker>> = (0..self.pool.current_num_threads()).map(worker).collect();
        let groups = self.groups(&blocks);
        let last = Last::of(&groups);
        self.round(&workers, &[], groups.first().copied().unwrap_or_default())?;
        for (index, group) in groups.iter().enumerate() {
            let next = groups.get(index + 1).copied().unwrap_or_default();
            self.round(&workers, group, next)?;
            // A group may be too short for its inputs to have been let go of on the way.
            if !next.is_empty() {
                Block::joined(group).for_each(|done| done.drop_behind(self.layout, self.programs, &self.encodings));
            }
            last.of_group(index).iter().for_each(|job| self.programs[*job].forget());
        }
        Ok(())
    }

    /// Blocks whose tensors are prepared together.
    fn groups<'b>(&self, blocks: &'b [Block]) -> Vec<&'b [Block]> {
        if (0..self.programs.len()).all(|job| !self.prepares(job)) {
            return vec![blocks];
        }
        let (mut groups, mut from, mut cost) = (Vec::new(), 0, 0);
        let mut seen = vec![false; self.programs.len()];
        for (to, block) in blocks.iter().enumerate() {
            let unseen = block.jobs.clone().filter(|job| !std::mem::replace(&mut seen[*job], true));
            let more: u64 = unseen.map(|job| self.programs[job].cost()).sum();
            if more > 0 && to > from && cost + more > GROUP {
                groups.push(&blocks[from..to]);
                (from, cost) = (to, 0);
            }
            cost += more;
        }
        groups.push(&blocks[from..]);
        groups
    }

    /// Writes the blocks of a group, and lets every tensor of the group that follows look at itself if it wants to:
    /// whichever thread finds no block left goes on to that, so that none waits for the others but once.
    fn round(&self, workers: &[Mutex<Worker>], blocks: &[Block], following: &[Block]) -> Result<()> {
        let mut wanting: Vec<usize> =
            jobs(following).into_iter().filter(|job| self.prepares(*job) && !self.ready(*job)).collect();
        // The longest first: what is left over for one thread at the end is short.
        wanting.sort_by_key(|job| std::cmp::Reverse(self.programs[*job].cost()));
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
                let program = &self.programs[wanting[index]];
                let threads = if program.is_large() { Threads::Pool(self.pool) } else { Threads::Alone };
                match self.encodings.tensor(program.index) {
                    Some(packed) => packed.prepare(&self.context(), threads),
                    None => program.prepare(threads),
                }
            });
        });
        if let Some(error) = lock(&failed).take() {
            return Err(error);
        }
        self.refuse_non_finite()
    }

    /// Whether something has to look at all of a job's tensor first.
    fn prepares(&self, job: usize) -> bool {
        let program = &self.programs[job];
        let packed = self.encodings.tensor(job).filter(|_| !program.job.is_aside());
        program.prepares() || packed.is_some_and(Banded::prepares)
    }

    /// Whether that has been done.
    fn ready(&self, job: usize) -> bool {
        let program = &self.programs[job];
        (!program.prepares() || program.ready()) && self.encodings.tensor(job).is_none_or(Banded::ready)
    }

    fn context(&self) -> Context<'_, '_> {
        Context { plan: self.plan, layout: self.layout, programs: self.programs, non_finite: self.non_finite }
    }

    fn nth(&self, worker: &mut Worker, blocks: &[Block], index: usize) -> Result<()> {
        let block = &blocks[index];
        // Values that are not finite end the run, but only once their tensor has been counted to its end.
        if !self.allow_non_finite && block.jobs.start > self.non_finite.first.load(Relaxed) {
            return Ok(());
        }
        if index.is_multiple_of(BEHIND) && index >= 2 * BEHIND {
            for done in Block::joined(&blocks[index - 2 * BEHIND..index - BEHIND]) {
                done.drop_behind(self.layout, self.programs, &self.encodings);
            }
        }
        if let Some(later) = blocks.get(index + 2 * self.pool.current_num_threads()) {
            later.advise(self.layout, self.programs, &self.encodings);
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
        let read = worker.compute(block, &self.context(), &self.encodings, &steps)?;
        for state in states {
            state.measured(block, worker);
            if state.write(block, worker)? {
                self.publish(block.shard, state)?;
            }
        }
        if !self.contents.is_empty() {
            block.digest_inputs(self.layout, self.programs, &self.encodings, self.contents, worker.scratch())?;
        }
        self.monitor.advance(read + (block.end - block.start) * states.len() as u64);
        Ok(())
    }

    /// All blocks of a shard are written: it gets its name, unless it holds what is not allowed.
    fn publish(&self, shard: usize, state: &ShardState) -> Result<()> {
        let jobs = self.layout.shards[shard].jobs.clone();
        let bad = self.non_finite.first.load(Relaxed);
        if !self.allow_non_finite && bad < jobs.end {
            return Ok(());
        }
        let counts = self.non_finite.counts().into_iter();
        let non_finite = counts
            .filter(|(job, place, _)| jobs.contains(job) && *place != Place::Output(usize::MAX))
            .map(|(job, place, count)| (self.plan.jobs[job].name.to_string(), self.describe(job, place), count))
            .collect();
        let unweighted = self.non_finite.unweighted().into_iter().filter(|(job, _)| jobs.contains(job));
        let unweighted = unweighted.map(|(job, count)| (self.plan.jobs[job].name.to_string(), count)).collect();
        let found = state.found.get_or_init(|| Found { tensors: state.survivals(), non_finite, unweighted });
        let extra = Journaled { found, plan: self.plan };
        let digest = state.digest()?;
        // What was read from a file that changed meanwhile must not get a name that a later run would keep.
        unchanged(self.programs[jobs].iter().flat_map(|program| &program.inputs))?;
        state.publish(&digest, &extra)?;
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
        if self.allow_non_finite {
            return Ok(());
        }
        self.non_finite.error(|job, place| self.describe(job, place)).map_or(Ok(()), Err)
    }

    fn describe(&self, job: usize, place: Place) -> String {
        let job = &self.plan.jobs[job];
        match place {
            Place::Input(index) => self.plan.input_name(job, index),
            Place::Output(index) => {
                format!("output `{}` (alpha {})", shown(&job.name), self.plan.outputs[index].alpha)
            }
        }
    }

    /// Bytes that blocks still to be done will read and write.
    pub(super) fn expected_bytes(&self) -> u64 {
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

    pub(super) fn report(
        &self,
        started: Instant,
        threads: usize,
        resumed: usize,
        contents: Vec<Content>,
    ) -> Result<String> {
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
            contents,
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
