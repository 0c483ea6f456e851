//! The tensors of a plan in memory: the bytes that a run would write, without a folder.

use std::sync::Mutex;

use crate::error::{shown, Error, Kind, Result};
use crate::file::heap::filled;
use crate::kernels::dispatch::ControlRegister;
use crate::kernels::Level;
use crate::measure::{NonFinite, Place, Survival};
use crate::monitor::Monitor;
use crate::plan::Plan;
use crate::run::block::{Block, Worker};
use crate::run::encode::bands::Context;
use crate::run::encode::tensors::Encodings;
use crate::run::program::{Program, Step};
use crate::storage::source::Buffers;
use crate::storage::sources::Sources;
use crate::threads::{each, pool};
use crate::threads::{lock, Threads};

/// The data of a plan of one output and one shard: its tensors one after the other, without a header. `memories` as
/// in [`crate::run::run_with`].
///
/// # Errors
/// A plan of several outputs or shards, and whatever the sources and the arithmetic refuse.
pub fn evaluate(
    plan_json: &[u8],
    memories: &[Buffers<'_>],
    threads: usize,
    allow_non_finite: bool,
    monitor: &Monitor,
) -> Result<Vec<u8>> {
    Ok(measured(plan_json, memories, threads, allow_non_finite, monitor)?.0)
}

/// The same with what was measured of each tensor that takes a step, as JSON: `[name, sums]` in the plan's order, of
/// which those of a run are made.
///
/// # Errors
/// As [`evaluate`].
pub fn measured(
    plan_json: &[u8],
    memories: &[Buffers<'_>],
    threads: usize,
    allow_non_finite: bool,
    monitor: &Monitor,
) -> Result<(Vec<u8>, String)> {
    // A thread that the embedding process starts inherits what that has set.
    let _ieee = ControlRegister::ieee();
    let plan = Plan::in_memory(plan_json)?;
    let ([output], [_]) = (&plan.outputs[..], &plan.shards[..]) else {
        return Err(Error::new(Kind::Plan, "unusable plan: expected one output and one shard"));
    };
    let level = Level::chosen()?;
    let layout = plan.layout();
    let sources = Sources::of(&plan.sources, memories)?;
    let non_finite = NonFinite::default();
    let programs = Program::all(&plan, &sources, level, monitor, &non_finite)?;
    let pool = pool(threads)?;
    let blocks = Block::all(0, &layout);
    let encodings = Encodings::of(&plan, &programs, level, &|_| vec![0])?;
    let context = Context { plan: &plan, layout: &layout, programs: &programs, non_finite: &non_finite };
    let first = layout.shards[0].header.len() as u64;
    monitor.expect(programs.iter().map(Program::cost).sum());
    for program in programs.iter().filter(|program| program.prepares()) {
        monitor.check()?;
        program.prepare(Threads::Pool(&pool))?;
    }
    let steps = [Step { alpha: output.alpha, output: 0 }];
    let data = Mutex::new(filled(layout.shards[0].size - first, 0)?);
    let sums = Mutex::new(Vec::new());
    each(&pool, monitor, blocks.len(), |index| {
        let block = &blocks[index];
        let mut worker = Worker::new(level, 1);
        let read = worker.compute(block, &context, &encodings, &steps)?;
        let start = block.start.max(first);
        if start < block.end {
            let bytes = &worker.bytes(0)[(start - block.start) as usize..];
            let at = (start - first) as usize;
            lock(&data)[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let rows = worker.measured(0).iter().map(|(job, sum)| (*job, block.index, sum.clone()));
        lock(&sums).extend(rows);
        monitor.advance(read);
        Ok(())
    })?;
    sources.unchanged()?;
    let describe = |job: usize, place: Place| {
        let job = &plan.jobs[job];
        match place {
            Place::Input(index) => plan.input_name(job, index),
            Place::Output(_) => format!("output `{}`", shown(&job.name)),
        }
    };
    match non_finite.error(describe) {
        Some(error) if !allow_non_finite => Err(error),
        _ => Ok((
            data.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner),
            rows(&plan, sums.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))?,
        )),
    }
}

/// The sums of each tensor from those of its blocks, added in the order of these.
fn rows(plan: &Plan, mut sums: Vec<(usize, u64, Survival)>) -> Result<String> {
    sums.sort_unstable_by_key(|(job, block, _)| (*job, *block));
    let mut tensors: Vec<(usize, Survival)> = Vec::new();
    for (job, _, sum) in sums {
        match tensors.last_mut().filter(|(last, _)| *last == job) {
            Some((_, tensor)) => tensor.merge(&sum),
            None => tensors.push((job, sum)),
        }
    }
    let named: Vec<_> = tensors.iter().map(|(job, sum)| (&*plan.jobs[*job].name, sum)).collect();
    serde_json::to_string(&named).map_err(|error| Error::engine(format!("the figures: {error}")))
}
