//! Task vectors added in place to tensors that the embedding process holds. Arithmetic, rounding and random draws are
//! those of a run, and so are the bytes.

use std::sync::Mutex;

use rayon::prelude::*;
use serde_json::{json, Value};

use crate::error::{shown, Error, Kind, Result};
use crate::kernels::dispatch::ControlRegister;
use crate::kernels::{Level, TILE};
use crate::measure::{NonFinite, Place as Where, Survival};
use crate::monitor::Monitor;
use crate::plan::job::Job;
use crate::plan::Plan;
use crate::run::program::Program;
use crate::run::tile::{Place, Span, Target, Tiler};
use crate::storage::chunk::Scratch;
use crate::storage::input::Input;
use crate::storage::source::Buffers;
use crate::storage::sources::Sources;
use crate::storage::Storage;
use crate::threads::lock;
use crate::threads::pool;

/// Elements that a worker computes between two looks at the monitor; a multiple of [`TILE`], so that sums and draws
/// are those of any other division.
const PIECE: usize = 32 * TILE;

/// Adds task vectors to tensors in place: input 0 of every job is what stands in its target. With `write` false
/// everything is computed and nothing changed, which finds every error before the first byte is. With `write` true
/// `monitor` does not stop it half way.
///
/// # Errors
/// A plan that is not one of steps onto the targets, unreadable sources, or values that are not finite unless they
/// are allowed.
pub fn in_place(
    plan_json: &[u8],
    memories: &[Buffers<'_>],
    targets: Vec<&mut [u8]>,
    options: &InPlace,
    monitor: &Monitor,
) -> Result<Value> {
    // A thread that the embedding process starts inherits what that has set.
    let _ieee = ControlRegister::ieee();
    let plan = Plan::parse(plan_json)?;
    if plan.jobs.len() != targets.len() || plan.outputs.len() != 1 {
        return Err(unusable(format!("{} tensors for {} targets", plan.jobs.len(), targets.len())));
    }
    let (level, pool) = (Level::chosen()?, pool(options.threads)?);
    let sources = Sources::of(&plan.sources, memories)?;
    let non_finite = NonFinite::default();
    let mut programs = Vec::with_capacity(plan.jobs.len());
    for (index, (job, target)) in plan.jobs.iter().zip(&targets).enumerate() {
        check_length(job, target)?;
        let inputs = onto_itself(&plan, &sources, job)?;
        let program = Program::new(&plan, index, inputs, level, monitor, &non_finite)?;
        if program.prepares() || !Tiler::steps(&program) || job.packed.is_some() {
            return Err(unusable(format!("`{}` cannot be changed in place", shown(&job.name))));
        }
        programs.push(program);
    }
    monitor.expect(programs.iter().map(Program::cost).sum());
    let work = Work { plan: &plan, level, pool: &pool, non_finite: &non_finite, monitor };
    let stop = (!options.write).then_some(monitor);
    let sums = work.all(&programs, targets, stop, options.write)?;
    sources.unchanged()?;
    refuse(&plan, &non_finite, options.allow_non_finite)?;
    let mut total = Survival::default();
    sums.iter().for_each(|sum| total.merge(sum));
    let rows: Vec<_> = plan.jobs.iter().zip(&sums).map(|(job, sum)| sum.figures(Some(&job.name))).collect();
    Ok(json!({"total": total.figures(None), "tensors": rows}))
}

/// How to add in place.
#[derive(Clone, Copy, Debug, Default)]
pub struct InPlace {
    /// Threads; 0 is one per core.
    pub threads: usize,
    /// Change the targets, or only find out what there is to say against it.
    pub write: bool,
    /// Go on where inputs or results hold NaN or infinities.
    pub allow_non_finite: bool,
}

/// BLAKE3 of each of some byte strings, in hexadecimal.
///
/// # Errors
/// The threads cannot be started.
pub fn digests(data: &[&[u8]], threads: usize) -> Result<Vec<String>> {
    pool(threads)?.install(|| Ok(data.par_iter().map(|bytes| blake3::hash(bytes).to_hex().to_string()).collect()))
}

/// The inputs of a job whose input 0 is what stands in its target.
fn onto_itself<'a>(plan: &Plan, sources: &'a Sources<'_>, job: &Job) -> Result<Box<[Input<'a>]>> {
    let others = job.inputs[1..].iter();
    let opened = others
        .map(|(source, name)| sources.input(&plan.sources, (*source, name), (&job.shape, job.elements), false))
        .collect::<Result<Vec<_>>>()?;
    Ok([Input::target(job.target())].into_iter().chain(opened).collect())
}

fn check_length(job: &Job, bytes: &[u8]) -> Result<()> {
    let expected = job.target().bytes(&(0..job.elements));
    if bytes.len() as u64 == expected {
        return Ok(());
    }
    Err(unusable(format!("`{}` takes {expected} bytes, {} are given", shown(&job.name), bytes.len())))
}

fn refuse(plan: &Plan, non_finite: &NonFinite, allowed: bool) -> Result<()> {
    let describe = |job: usize, place: Where| {
        let job = &plan.jobs[job];
        match place {
            Where::Input(index) => plan.input_name(job, index),
            Where::Output(_) => format!("the result for `{}`", shown(&job.name)),
        }
    };
    if allowed {
        return Ok(());
    }
    non_finite.error(describe).map_or(Ok(()), Err)
}

fn unusable(what: String) -> Error {
    Error::new(Kind::Plan, format!("unusable plan: {what}"))
}

/// What all pieces share.
struct Work<'a> {
    plan: &'a Plan,
    level: Level,
    pool: &'a rayon::ThreadPool,
    non_finite: &'a NonFinite,
    monitor: &'a Monitor,
}

/// Some elements of one tensor.
struct Piece<'a, 't> {
    program: &'a Program<'a>,
    first: usize,
    bytes: &'t mut [u8],
}

/// One thread's buffers.
struct Worker {
    tiler: Tiler,
    scratch: Vec<Scratch>,
    spare: Vec<u8>,
}

impl Work<'_> {
    /// Computes every program into the target of the same index, piece by piece; returns the sums of each.
    fn all(
        &self,
        programs: &[Program<'_>],
        targets: Vec<&mut [u8]>,
        stop: Option<&Monitor>,
        write: bool,
    ) -> Result<Vec<Survival>> {
        let mut pieces = Vec::new();
        for (program, target) in programs.iter().zip(targets) {
            let size = program.job.target().bytes(&(0..PIECE as u64));
            let cut = target.chunks_mut(size as usize).enumerate();
            pieces.extend(cut.map(|(index, bytes)| Piece { program, first: index * PIECE, bytes }));
        }
        let sums: Mutex<Vec<(usize, usize, Survival)>> = Mutex::new(Vec::with_capacity(pieces.len()));
        let (queue, failed) = (Mutex::new(pieces.into_iter()), Mutex::new(None));
        self.pool.broadcast(|_| {
            let mut worker = Worker { tiler: Tiler::new(self.level), scratch: Vec::new(), spare: Vec::new() };
            loop {
                let next = lock(&queue).next();
                let (Some(piece), true) = (next, lock(&failed).is_none()) else { return };
                let (job, first) = (piece.program.index, piece.first);
                match stop.map_or(Ok(()), Monitor::check).and_then(|()| self.piece(&mut worker, piece, write)) {
                    Ok(sum) => lock(&sums).push((job, first, sum)),
                    Err(error) => drop(lock(&failed).get_or_insert(error)),
                }
            }
        });
        if let Some(error) = lock(&failed).take() {
            return Err(error);
        }
        let mut sums = sums.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        sums.sort_unstable_by_key(|(job, first, _)| (*job, *first));
        let mut totals = vec![Survival::default(); self.plan.jobs.len()];
        sums.iter().for_each(|(job, _, sum)| totals[*job].merge(sum));
        Ok(totals)
    }

    fn piece(&self, worker: &mut Worker, piece: Piece<'_, '_>, write: bool) -> Result<Survival> {
        let (program, target) = (piece.program, piece.program.job.target());
        let size = |n: usize| target.bytes(&(0..n as u64)) as usize;
        let n = target.elements_in(0..piece.bytes.len() as u64).end as usize;
        let elements = piece.first as u64..(piece.first + n) as u64;
        let mut survival = Survival::default();
        worker.scratch.resize_with(program.inputs.len().max(worker.scratch.len()), Scratch::default);
        let Worker { tiler, scratch, spare } = worker;
        let tile = size(TILE);
        spare.resize(piece.bytes.len().max(tile).max(spare.len()), 0);
        // What stands in the target is read while the result takes its place; where it may not, the result is spare.
        let (own, out): (&[u8], &mut [u8]) = if write {
            spare[..piece.bytes.len()].copy_from_slice(piece.bytes);
            (&spare[..piece.bytes.len()], piece.bytes)
        } else {
            (piece.bytes, &mut spare[..tile])
        };
        let mut chunks = Vec::with_capacity(program.inputs.len());
        chunks.push(target.chunk(own));
        for (input, scratch) in program.inputs.iter().zip(scratch).skip(1) {
            chunks.push(input.open(elements.clone(), scratch)?);
        }
        let place = Place::new(program, self.non_finite, self.plan.stochastic);
        for at in (0..n).step_by(TILE) {
            let m = (n - at).min(TILE);
            let span = Span { first: elements.start + at as u64, at, n: m, counted: true };
            let from = if write { size(at) } else { 0 };
            let bytes = &mut out[from..from + size(m)];
            let alpha = self.plan.outputs[0].alpha;
            tiler.tile(
                &place,
                &chunks,
                span,
                &mut [Target { alpha, output: 0, bytes, survival: write.then_some(&mut survival) }],
            )?;
        }
        program.inputs.iter().for_each(|input| input.storage().behind(elements.clone()));
        self.monitor.advance(program.inputs.iter().map(|input| input.cost(n as u64)).sum());
        Ok(survival)
    }
}
