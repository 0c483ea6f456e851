//! The output shards that are still to be written, and one of them while its blocks arrive.

use std::sync::atomic::{AtomicUsize, Ordering::AcqRel};
use std::sync::{Arc, Mutex, OnceLock};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::measure::Survival;
use crate::output::digest::{FileDigest, BLOCK};
use crate::output::folder::OutputFolder;
use crate::output::shard::ShardFile;
use crate::plan::layout::{Layout, Shard};
use crate::plan::Plan;
use crate::run::block::{Block, Worker};
use crate::run::program::{Arithmetic, Program};
use crate::run::report::Found;
use crate::threads::lock;

/// Per shard, the outputs in which it is still to be written.
pub(crate) struct Shards {
    states: Vec<Vec<ShardState>>,
    /// Whether all tensors of a shard are the target's: it is the same in all outputs, and computed for the first.
    untouched: Vec<bool>,
    all: usize,
}

/// One shard of one output while it is being written.
pub(crate) struct ShardState {
    /// Index of the output.
    pub output: usize,
    /// Position among the outputs that this shard is written for.
    slot: usize,
    /// From its first block until it is in place; a run may have more shards than a process may have open files.
    file: Mutex<Option<Arc<ShardFile>>>,
    digest: FileDigest,
    left: AtomicUsize,
    survival: Mutex<Vec<(u64, usize, Survival)>>,
    /// Once the shard is in place.
    pub found: OnceLock<Found>,
}

impl Shards {
    /// What `folders` lack.
    pub(super) fn new(plan: &Plan, layout: &Layout, folders: &[OutputFolder], programs: &[Program<'_>]) -> Self {
        let is_raw = |program: &Program<'_>| matches!(program.arithmetic, Arithmetic::Raw);
        let untouched = layout.shards.iter().map(|shard| programs[shard.jobs.clone()].iter().all(is_raw)).collect();
        let states = layout
            .shards
            .iter()
            .map(|shard| {
                let missing =
                    (0..plan.outputs.len()).filter(|output| !folders[*output].done().contains_key(&shard.name));
                let state = |(slot, output)| ShardState {
                    output,
                    slot,
                    file: Mutex::new(None),
                    digest: FileDigest::new(shard.size),
                    left: AtomicUsize::new(shard.size.div_ceil(BLOCK) as usize),
                    survival: Mutex::new(Vec::new()),
                    found: OnceLock::new(),
                };
                missing.enumerate().map(state).collect()
            })
            .collect();
        Shards { states, untouched, all: plan.outputs.len() * layout.shards.len() }
    }

    /// The outputs in which a shard is to be written.
    pub(super) fn outputs(&self, shard: usize) -> Vec<usize> {
        self.states[shard].iter().map(|state| state.output).collect()
    }

    /// Whether nothing of a shard is to be written.
    pub(super) fn is_done(&self, shard: usize) -> bool {
        self.states[shard].is_empty()
    }

    /// The outputs for which a shard is computed.
    pub(super) fn computed(&self, shard: usize) -> &[ShardState] {
        let states = &self.states[shard];
        if self.untouched[shard] {
            &states[..states.len().min(1)]
        } else {
            states
        }
    }

    /// The outputs that are given the shard of the first.
    pub(super) fn shared(&self, shard: usize) -> &[ShardState] {
        &self.states[shard][self.computed(shard).len()..]
    }

    /// What was found out about each shard of an output where it was written for that.
    pub(super) fn found(&self, output: usize) -> Vec<Option<&Found>> {
        let states = self.states.iter().map(|states| states.iter().find(|state| state.output == output));
        states.map(|state| state?.found.get()).collect()
    }

    /// Shards that an earlier run finished.
    pub(super) fn kept(&self) -> usize {
        self.all - self.states.iter().map(Vec::len).sum::<usize>()
    }
}

impl ShardState {
    /// Creates the shard's file when its first block comes up.
    ///
    /// # Errors
    /// Those of the output folder.
    pub(super) fn open(&self, shard: &Shard, folders: &[OutputFolder]) -> Result<()> {
        let mut opened = lock(&self.file);
        if opened.is_none() {
            let file = ShardFile::create(&folders[self.output], &shard.name, shard.size)?;
            file.allocate(0..shard.size)?;
            *opened = Some(Arc::new(file));
        }
        Ok(())
    }

    /// The file, while it is open.
    fn file(&self) -> Result<Arc<ShardFile>> {
        lock(&self.file).clone().ok_or_else(Error::interrupted)
    }

    /// Puts the complete file in place and closes it.
    ///
    /// # Errors
    /// Those of the output folder.
    pub(super) fn publish(&self, digest: &str, extra: &impl Serialize) -> Result<()> {
        self.file()?.publish(digest, extra)?;
        *lock(&self.file) = None;
        Ok(())
    }

    /// Takes in what the worker found out about a block that it has computed.
    pub(super) fn measured(&self, block: &Block, worker: &Worker) {
        self.digest.leaf(block.index, worker.bytes(self.slot));
        let rows = worker.measured(self.slot).iter().map(|(job, survival)| (block.index, *job, survival.clone()));
        lock(&self.survival).extend(rows);
    }

    /// Writes the block that the worker has computed; whether the shard is complete then.
    ///
    /// # Errors
    /// Those of the output folder.
    pub(super) fn write(&self, block: &Block, worker: &Worker) -> Result<bool> {
        let file = self.file()?;
        file.write_at(block.start, worker.bytes(self.slot))?;
        file.write_behind(block.start..block.end)?;
        Ok(self.left.fetch_sub(1, AcqRel) == 1)
    }

    /// The digest of all blocks.
    ///
    /// # Errors
    /// `Kind::Engine` where one is missing.
    pub(super) fn digest(&self) -> Result<String> {
        self.digest.finish()
    }

    /// What was measured of each tensor, in their order: the sums of its blocks, added in the order of these.
    pub(super) fn survivals(&self) -> Vec<(usize, Survival)> {
        let mut sums = std::mem::take(&mut *lock(&self.survival));
        sums.sort_unstable_by_key(|(block, job, _)| (*job, *block));
        let mut tensors: Vec<(usize, Survival)> = Vec::with_capacity(sums.len());
        for (_, job, sum) in &sums {
            match tensors.last_mut().filter(|(last, _)| last == job) {
                Some((_, tensor)) => tensor.merge(sum),
                None => tensors.push((*job, sum.clone())),
            }
        }
        tensors
    }
}
