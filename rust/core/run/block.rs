//! One block of an output shard: which elements of which tensors it holds, and how a worker computes them.

use std::ops::Range;

use crate::error::Result;
use crate::kernels::{Level, TILE};
use crate::measure::Survival;
use crate::output::digest::BLOCK;
use crate::plan::layout::Layout;
use crate::run::contents::Contents;
use crate::run::encode::bands::{Context, Wanted};
use crate::run::encode::patch::Bench;
use crate::run::encode::tensors::Encodings;
use crate::run::program::{Arithmetic, Program, Step};
use crate::run::tile::{Place, Span, Target, Tiler};
use crate::storage::chunk::Scratch;
use crate::storage::input::Input;
use crate::storage::Storage;

/// Room on either side of a block for the rest of an element that a block boundary cuts.
const SLACK: usize = 8;

/// A range of an output file.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Index of the shard.
    pub shard: usize,
    /// Index in the file.
    pub index: u64,
    /// First byte in the file.
    pub start: u64,
    /// Behind its last byte.
    pub end: u64,
    /// Jobs with at least one byte, or none but the place, in it.
    pub jobs: Range<usize>,
}

impl Block {
    /// All blocks of a shard, in order.
    pub(crate) fn all(shard: usize, layout: &Layout) -> Vec<Block> {
        let file = &layout.shards[shard];
        let mut job = file.jobs.start;
        (0..file.size.div_ceil(BLOCK))
            .map(|index| {
                let (start, end) = (index * BLOCK, ((index + 1) * BLOCK).min(file.size));
                // The job that holds byte `start`, or the first behind it.
                while job + 1 < file.jobs.end && layout.offsets[job + 1] <= start {
                    job += 1;
                }
                let after = layout.offsets[job..file.jobs.end].partition_point(|offset| *offset < end);
                Block { shard, index, start, end, jobs: job..job + after }
            })
            .collect()
    }

    /// Neighbours of one shard as one.
    pub(crate) fn joined(blocks: &[Block]) -> impl Iterator<Item = Block> + '_ {
        blocks.chunk_by(|a, b| a.shard == b.shard && a.end == b.start).filter_map(|run| {
            let (first, last) = (run.first()?, run.last()?);
            Some(Block { end: last.end, jobs: first.jobs.start..last.jobs.end, ..first.clone() })
        })
    }

    /// The elements of `job` that this block holds, cut ones included.
    fn elements(&self, job: usize, layout: &Layout, program: &Program<'_>) -> Range<u64> {
        let (target, offset) = (program.job.target(), layout.offsets[job]);
        let end = offset + target.bytes(&(0..target.elements));
        let (from, to) = (self.start.max(offset), self.end.min(end));
        if from >= to {
            return 0..0;
        }
        target.elements_in(from - offset..to - offset)
    }

    /// The bytes of `job` that this block holds, counted from its first.
    fn bytes(&self, job: usize, layout: &Layout, program: &Program<'_>) -> Range<u64> {
        let (target, offset) = (program.job.target(), layout.offsets[job]);
        let end = offset + target.bytes(&(0..target.elements));
        let (from, to) = (self.start.max(offset), self.end.min(end));
        from.min(to) - offset.min(to)..to - offset.min(to)
    }

    /// Asks for the inputs of this block ahead of time.
    pub(crate) fn advise(&self, layout: &Layout, programs: &[Program<'_>], encodings: &Encodings) {
        self.each_input(layout, programs, encodings, |input, elements| input.storage().ahead(elements));
    }

    /// Lets go of the inputs of this block.
    pub(crate) fn drop_behind(&self, layout: &Layout, programs: &[Program<'_>], encodings: &Encodings) {
        self.each_input(layout, programs, encodings, |input, elements| input.storage().behind(elements));
    }

    /// Digests what this block has read of its input files.
    ///
    /// # Errors
    /// A file that was truncated or cannot be read.
    pub(crate) fn digest_inputs(
        &self,
        layout: &Layout,
        programs: &[Program<'_>],
        encodings: &Encodings,
        contents: &Contents<'_>,
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        let mut done = Ok(());
        self.each_input(layout, programs, encodings, |input, elements| {
            if done.is_ok() {
                done = contents.touch(input, &elements, scratch);
            }
        });
        done
    }

    fn each_input(
        &self,
        layout: &Layout,
        programs: &[Program<'_>],
        encodings: &Encodings,
        mut each: impl FnMut(&Input<'_>, Range<u64>),
    ) {
        for job in self.jobs.clone() {
            let elements = match encodings.tensor(job) {
                Some(packed) => packed.elements(&self.bytes(job, layout, &programs[job])),
                None => self.elements(job, layout, &programs[job]),
            };
            // Small tensors are not worth a system call.
            if elements.end - elements.start >= 16 * 1024 {
                programs[job].inputs.iter().for_each(|input| each(input, elements.clone()));
            }
        }
    }
}

/// One thread's buffers, reused from block to block.
pub(crate) struct Worker {
    /// One per output: slack, block, slack.
    buffers: Vec<Vec<u8>>,
    length: usize,
    scratch: Vec<Scratch>,
    measured: Vec<Vec<(usize, Survival)>>,
    tiler: Tiler,
    bench: Bench,
    file: Vec<u8>,
}

/// The part of one job that a block holds.
struct Part<'a> {
    elements: Range<u64>,
    /// First element that begins in this block: those before it are counted by the block before.
    owned: u64,
    /// Where the first element goes in the buffers.
    at: usize,
    steps: &'a [Step],
}

impl Worker {
    /// Buffers for `outputs` outputs.
    pub(crate) fn new(level: Level, outputs: usize) -> Self {
        Worker {
            buffers: (0..outputs).map(|_| vec![0; SLACK + BLOCK as usize + SLACK]).collect(),
            length: 0,
            scratch: Vec::new(),
            measured: vec![Vec::new(); outputs],
            tiler: Tiler::new(level),
            bench: Bench::new(level),
            file: Vec::new(),
        }
    }

    /// The block's bytes for output `slot`.
    pub(crate) fn bytes(&self, slot: usize) -> &[u8] {
        &self.buffers[slot][SLACK..SLACK + self.length]
    }

    /// Room for the bytes of a file that is not mapped.
    pub(crate) fn scratch(&mut self) -> &mut Vec<u8> {
        &mut self.file
    }

    /// What was measured in the block for output `slot`.
    pub(crate) fn measured(&self, slot: usize) -> &[(usize, Survival)] {
        &self.measured[slot]
    }

    /// Computes a block for the output of every step; returns the input bytes read.
    ///
    /// # Errors
    /// Unreadable input.
    pub(crate) fn compute(
        &mut self,
        block: &Block,
        context: &Context<'_, '_>,
        encodings: &Encodings,
        steps: &[Step],
    ) -> Result<u64> {
        let Context { plan, layout, programs, non_finite } = *context;
        self.length = (block.end - block.start) as usize;
        self.measured.iter_mut().for_each(Vec::clear);
        let header = &layout.shards[block.shard].header;
        if block.start < header.len() as u64 {
            let part = &header[block.start as usize..header.len().min(block.end as usize)];
            for slot in 0..steps.len() {
                self.buffers[slot][SLACK..SLACK + part.len()].copy_from_slice(part);
            }
        }
        let mut read = 0;
        for index in block.jobs.clone() {
            let program = &programs[index];
            if let Some(packed) = encodings.tensor(index) {
                let bytes = block.bytes(index, layout, program);
                if !bytes.is_empty() {
                    let at = SLACK + (layout.offsets[index] + bytes.start - block.start) as usize;
                    let length = (bytes.end - bytes.start) as usize;
                    let outs = self.buffers[..steps.len()].iter_mut().map(|buffer| &mut buffer[at..at + length]);
                    let mut wanted = Wanted { job: index, bytes: bytes.clone(), steps, out: outs.collect() };
                    let sums = packed.fill(context, &mut self.bench, &mut wanted)?;
                    for (measured, sum) in self.measured.iter_mut().zip(sums) {
                        measured.extend(sum.map(|sum| (index, sum)));
                    }
                    read += share(program, &bytes);
                }
                continue;
            }
            let elements = block.elements(index, layout, program);
            if elements.is_empty() {
                continue;
            }
            let (target, offset) = (program.job.target(), layout.offsets[index]);
            let owned = elements.start.max(target.first_from(block.start.saturating_sub(offset)));
            let at = (SLACK as u64 + offset + target.bytes(&(0..elements.start)) - block.start) as usize;
            read += program.inputs.iter().map(|input| input.cost(elements.end - owned)).sum::<u64>();
            let part = Part { elements, owned, at, steps };
            match &program.arithmetic {
                Arithmetic::Raw => self.copy(program, &part)?,
                _ => self.calculate(&Place::new(program, non_finite, plan.stochastic), &part)?,
            }
        }
        Ok(read)
    }

    fn copy(&mut self, program: &Program<'_>, part: &Part<'_>) -> Result<()> {
        self.scratch.resize_with(self.scratch.len().max(1), Scratch::default);
        let n = (part.elements.end - part.elements.start) as usize;
        let chunk = program.inputs[0].open(part.elements.clone(), &mut self.scratch[0])?;
        if let Some(bytes) = chunk.stored(program.job.dtype, 0, n) {
            for buffer in &mut self.buffers[..part.steps.len()] {
                buffer[part.at..part.at + bytes.len()].copy_from_slice(bytes);
            }
        }
        Ok(())
    }

    fn calculate(&mut self, place: &Place<'_>, part: &Part<'_>) -> Result<()> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize_with(place.program.inputs.len().max(scratch.len()), Scratch::default);
        let result = self.opened(place, part, &mut scratch);
        self.scratch = scratch;
        result
    }

    fn opened(&mut self, place: &Place<'_>, part: &Part<'_>, scratch: &mut [Scratch]) -> Result<()> {
        let program = place.program;
        let mut chunks = Vec::with_capacity(program.inputs.len());
        for (input, scratch) in program.inputs.iter().zip(scratch) {
            chunks.push(input.open(part.elements.clone(), scratch)?);
        }
        let stepped = Tiler::steps(program);
        if stepped {
            for measured in &mut self.measured {
                measured.push((program.index, Survival::default()));
            }
        }
        let target = program.job.target();
        let size = |n: usize| target.bytes(&(0..n as u64)) as usize;
        let mut first = part.elements.start;
        while first < part.elements.end {
            // An element that the block boundary cuts makes a tile of its own, which is not measured.
            let until = if first < part.owned { part.owned } else { part.elements.end };
            let n = (until - first).min(TILE as u64) as usize;
            let at = (first - part.elements.start) as usize;
            let from = part.at + size(at);
            let mut outputs: Vec<Target<'_>> = part
                .steps
                .iter()
                .zip(&mut self.buffers)
                .zip(&mut self.measured)
                .map(|((step, buffer), measured)| Target {
                    alpha: step.alpha,
                    output: step.output,
                    bytes: &mut buffer[from..from + size(n)],
                    survival: measured.last_mut().filter(|_| stepped).map(|(_, survival)| survival),
                })
                .collect();
            let span = Span { first, at, n, counted: first >= part.owned };
            self.tiler.tile(place, &chunks, span, &mut outputs)?;
            first += n as u64;
        }
        Ok(())
    }
}

/// Input bytes that go with some bytes of packed codes.
fn share(program: &Program<'_>, bytes: &Range<u64>) -> u64 {
    let (target, cost) = (program.job.target(), u128::from(program.cost()));
    let all = u128::from(target.bytes(&(0..target.elements)).max(1));
    let before = |byte: u64| (cost * u128::from(byte) / all) as u64;
    before(bytes.end) - before(bytes.start)
}
