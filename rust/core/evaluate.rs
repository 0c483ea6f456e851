//! The tensors of a plan in memory: the bytes that a run would write, without a folder.

use std::sync::Mutex;

use crate::error::{shown, Error, Kind, Result};
use crate::file::heap::filled;
use crate::kernels::dispatch::ControlRegister;
use crate::kernels::Level;
use crate::measure::{NonFinite, Place};
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
        _ => Ok(data.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)),
    }
}
