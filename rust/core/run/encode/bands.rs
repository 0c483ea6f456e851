//! Patches between the blocks that want them: a band of the tensor is computed once for all blocks that hold a part of
//! it, and again only where it is gone.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, TryLockError};

use super::chosen::{Chosen, Wholes};
use super::make::{self, Kept};
use super::packed::Packed;
use super::patch::{Bench, Patch};

use crate::error::{Error, Result};
use crate::measure::{NonFinite, Place as Where, Survival};
use crate::output::digest::BLOCK;
use crate::plan::encoding::Role;
use crate::plan::layout::Layout;
use crate::plan::Plan;
use crate::run::program::{Program, Step};
use crate::run::tile::Place as TilePlace;
use crate::threads::{lock, Threads};

/// Patches that are kept for codes which come later than the scales.
const LATER: usize = 256;

/// What is kept of a packed tensor while its blocks are written.
#[derive(Default)]
struct Bands {
    slots: Mutex<HashMap<u64, Arc<Mutex<Slot>>>>,
    kept: Mutex<Option<Kept>>,
    wholes: Mutex<Option<Arc<Wholes>>>,
    /// Bytes of all parts that are still to be written.
    left: AtomicU64,
}

/// A packed tensor with what is kept of it.
pub(crate) struct Banded {
    pub(super) packed: Packed,
    bands: Bands,
}

/// A patch, and how many blocks still want its codes.
#[derive(Default)]
struct Slot {
    wanted: Option<u64>,
    patch: Option<Arc<Patch>>,
}

/// A piece of a part that is wanted: bytes of it, and where they go.
pub(crate) struct Wanted<'w> {
    /// The job of the part.
    pub job: usize,
    /// Bytes of the stored tensor.
    pub bytes: Range<u64>,
    /// The outputs that want them.
    pub steps: &'w [Step],
    /// By output wanted: where the bytes go.
    pub out: Vec<&'w mut [u8]>,
}

/// What all pieces share.
#[derive(Clone, Copy)]
pub(crate) struct Context<'c, 'p> {
    pub plan: &'c Plan,
    pub layout: &'c Layout,
    pub programs: &'c [Program<'p>],
    pub non_finite: &'c NonFinite,
}

impl Banded {
    /// Of which nothing is kept; `left` bytes of its parts are to be written.
    pub(super) fn new(packed: Packed, left: u64) -> Self {
        Banded { packed, bands: Bands { left: AtomicU64::new(left), ..Bands::default() } }
    }

    /// Bytes that a thread has of its patches, and of bands between blocks.
    pub(super) fn memory(&self) -> u64 {
        let (form, outputs) = (&self.packed.form, self.packed.steps.len().max(1) as u64);
        let (patch, band) = (form.high * form.broad, form.high * form.row_bytes);
        // Values of each output, target, step, result, draws and codes; two bands of each output.
        patch * (4 * outputs + 17) + outputs * 2 * band
    }

    /// The logical elements of which `bytes` of the codes hold at least a part.
    pub(crate) fn elements(&self, bytes: &Range<u64>) -> Range<u64> {
        let (size, columns) = (self.packed.form.row_bytes, self.packed.form.columns);
        bytes.start / size * columns..bytes.end.div_ceil(size) * columns
    }

    /// Lets the operation, and what chooses scales for a whole, look at all of the tensor.
    ///
    /// # Errors
    /// Unreadable input, or the run was cancelled.
    pub(crate) fn prepare(&self, context: &Context<'_, '_>, threads: Threads<'_>) -> Result<()> {
        self.wholes(context, threads).map(drop)
    }

    /// Whether something has to look at all of the tensor first.
    pub(crate) fn prepares(&self) -> bool {
        self.packed.form.wholes > 0
    }

    /// Whether that has been done.
    pub(crate) fn ready(&self) -> bool {
        !self.prepares() || lock(&self.bands.wholes).is_some()
    }

    fn wholes(&self, context: &Context<'_, '_>, threads: Threads<'_>) -> Result<Arc<Wholes>> {
        let program = &context.programs[self.packed.job()];
        if program.prepares() && !program.ready() {
            program.prepare(threads)?;
        }
        if !self.prepares() {
            return Ok(Arc::new(Vec::new()));
        }
        if let Some(wholes) = &*lock(&self.bands.wholes) {
            return Ok(Arc::clone(wholes));
        }
        let tile = TilePlace::new(program, context.non_finite, context.plan.stochastic);
        let made = Arc::new(self.packed.choose(&tile, threads)?);
        *lock(&self.bands.wholes) = Some(Arc::clone(&made));
        Ok(made)
    }

    /// Fills in a piece of a part; returns what was measured, by output wanted, of patches that begin in it.
    ///
    /// # Errors
    /// Unreadable input.
    pub(crate) fn fill(
        &self,
        context: &Context<'_, '_>,
        bench: &mut Bench,
        wanted: &mut Wanted<'_>,
    ) -> Result<Vec<Option<Survival>>> {
        let role = self.packed.parts.iter().find(|(_, job)| *job == wanted.job).map_or(Role::Codes, |(role, _)| *role);
        let measured = if role == Role::Codes {
            self.codes(context, bench, wanted)?
        } else {
            self.aside(context, bench, wanted, role)?;
            vec![None; wanted.steps.len()]
        };
        let bytes = (wanted.bytes.end - wanted.bytes.start) * wanted.steps.len() as u64;
        if self.bands.left.fetch_sub(bytes, Relaxed) == bytes {
            *lock(&self.bands.kept) = None;
        }
        Ok(measured)
    }

    /// Position of each wanted output among those that are computed.
    fn positions(&self, steps: &[Step]) -> Vec<usize> {
        let position = |step: &Step| self.packed.steps.iter().position(|own| own.output == step.output);
        steps.iter().map(|step| position(step).unwrap_or(0)).collect()
    }

    fn codes(
        &self,
        context: &Context<'_, '_>,
        bench: &mut Bench,
        wanted: &mut Wanted<'_>,
    ) -> Result<Vec<Option<Survival>>> {
        let (form, positions) = (&self.packed.form, self.positions(wanted.steps));
        let row = |byte: u64| byte / form.row_bytes;
        let bands = form.band_of(row(wanted.bytes.start))..form.band_of(row(wanted.bytes.end - 1)) + 1;
        let first = form.patches_of(bands.start).start;
        let mut pending: Vec<u64> = (first..form.patches_of(bands.end - 1).end).collect();
        let mut sums: Vec<Option<Vec<Survival>>> = vec![None; pending.len()];
        while !pending.is_empty() {
            let before = pending.len();
            // What another thread is at comes later.
            let mut later = Vec::new();
            for index in pending {
                match self.patch(context, bench, index, false)? {
                    Some(patch) => {
                        sums[(index - first) as usize] = self.put(context, index, &patch, &positions, wanted)
                    }
                    None => later.push(index),
                }
            }
            if later.len() == before {
                let index = later.remove(0);
                if let Some(patch) = self.patch(context, bench, index, true)? {
                    sums[(index - first) as usize] = self.put(context, index, &patch, &positions, wanted);
                }
            }
            pending = later;
        }
        let mut totals: Vec<Option<Survival>> = vec![None; positions.len()];
        for sums in sums.into_iter().flatten() {
            for (total, sum) in totals.iter_mut().zip(&sums) {
                total.get_or_insert_default().merge(sum);
            }
        }
        Ok(totals.into_iter().map(|total| total.filter(|_| self.packed.measured)).collect())
    }

    /// A patch for one of the blocks that want its codes; none where another thread is at it and it is not waited for.
    fn patch(
        &self,
        context: &Context<'_, '_>,
        bench: &mut Bench,
        index: u64,
        wait: bool,
    ) -> Result<Option<Arc<Patch>>> {
        let slot = Arc::clone(lock(&self.bands.slots).entry(index).or_default());
        let mut slot = match slot.try_lock() {
            Ok(slot) => slot,
            Err(TryLockError::WouldBlock) if !wait => return Ok(None),
            Err(_) => lock(&slot),
        };
        let patch = match slot.patch.take() {
            Some(patch) => patch,
            None => self.make(context, bench, index)?,
        };
        let wanted = slot.wanted.unwrap_or_else(|| self.blocks(context, index)).saturating_sub(1);
        slot.wanted = Some(wanted);
        if wanted > 0 {
            slot.patch = Some(Arc::clone(&patch));
        } else {
            lock(&self.bands.slots).remove(&index);
        }
        Ok(Some(patch))
    }

    /// Blocks that hold codes of a patch's band and are to be written.
    fn blocks(&self, context: &Context<'_, '_>, index: u64) -> u64 {
        let (form, job) = (&self.packed.form, self.packed.job());
        let rows = form.band(index / form.strips());
        let offset = context.layout.offsets[job];
        let (first, end) = (offset + rows.start * form.row_bytes, offset + rows.end * form.row_bytes);
        (end - 1) / BLOCK - first / BLOCK + 1
    }

    fn make(&self, context: &Context<'_, '_>, bench: &mut Bench, index: u64) -> Result<Arc<Patch>> {
        let wholes = self.wholes(context, Threads::Alone)?;
        let program = &context.programs[self.packed.job()];
        let tile = TilePlace::new(program, context.non_finite, context.plan.stochastic);
        let place = self.packed.form.place(index);
        let chosen: &[Chosen] = wholes.get(self.packed.form.whole_of(place.matrix)).map_or(&[], |chosen| chosen);
        let patch = bench.make(&self.packed, &tile, &place, chosen)?;
        let mut kept = lock(&self.bands.kept);
        kept.get_or_insert_with(|| Kept::new(&self.packed)).take(&self.packed, index, &patch);
        Ok(Arc::new(patch))
    }

    /// Puts the rows of a patch where they are wanted; what was measured of it, if its band begins here.
    fn put(
        &self,
        context: &Context<'_, '_>,
        index: u64,
        patch: &Patch,
        positions: &[usize],
        wanted: &mut Wanted<'_>,
    ) -> Option<Vec<Survival>> {
        let (form, place) = (&self.packed.form, self.packed.form.place(index));
        let left = form.bytes_before(place.column) as u64;
        let size = form.bytes_before(place.column + place.columns) as u64 - left;
        for row in 0..place.rows {
            let from = (place.first_row(form) + row) * form.row_bytes + left;
            let (start, end) = (from.max(wanted.bytes.start), (from + size).min(wanted.bytes.end));
            if start >= end {
                continue;
            }
            let here = (row * size + start - from) as usize..(row * size + end - from) as usize;
            let there = (start - wanted.bytes.start) as usize..(end - wanted.bytes.start) as usize;
            for (out, position) in wanted.out.iter_mut().zip(positions) {
                out[there.clone()].copy_from_slice(&patch.outputs[*position].codes[here.clone()]);
            }
        }
        // The block that holds a band's first byte counts it.
        let begins = form.band(index / form.strips()).start * form.row_bytes;
        if begins < wanted.bytes.start {
            return None;
        }
        let job = self.packed.job();
        for (input, count) in patch.bad.iter().enumerate() {
            context.non_finite.note(job, Where::Input(input), *count);
        }
        let outputs = positions.iter().zip(wanted.steps).map(|(position, step)| {
            let encoded = &patch.outputs[*position];
            context.non_finite.note(job, Where::Output(step.output), encoded.bad);
            encoded.survival.clone()
        });
        Some(outputs.collect())
    }

    /// A piece of a part other than the codes.
    fn aside(&self, context: &Context<'_, '_>, bench: &mut Bench, wanted: &mut Wanted<'_>, role: Role) -> Result<()> {
        let (form, job) = (&self.packed.form, &context.plan.jobs[wanted.job]);
        let (size, positions) = (job.dtype.size(), self.positions(wanted.steps));
        if role == Role::Shape {
            wanted.out.iter_mut().for_each(|out| make::shape(form, size, &wanted.bytes, out));
            return Ok(());
        }
        if role == Role::Global || role == Role::Scales && form.wholes > 0 && form.global.is_none() {
            let wholes = self.wholes(context, Threads::Alone)?;
            let outs = wanted.out.iter_mut().zip(&positions);
            outs.for_each(|(out, position)| make::wholes(&wholes, *position, size, &wanted.bytes, out));
            return Ok(());
        }
        let patches = self.patches_behind(role, size as u64, &wanted.bytes);
        for index in patches {
            self.known(context, bench, index)?;
        }
        let kept = lock(&self.bands.kept);
        let Some(kept) = kept.as_ref() else { return Err(Error::engine("scales are gone before they are written")) };
        for (out, position) in wanted.out.iter_mut().zip(&positions) {
            match role {
                Role::Zeros => kept.zeros(form, *position, &wanted.bytes, out),
                Role::Biases => kept.biases(*position, &wanted.bytes, out),
                _ => kept.scales(*position, &wanted.bytes, out),
            }
        }
        Ok(())
    }

    /// The patches that bytes of scales, or of codes for zero, come from.
    fn patches_behind(&self, role: Role, size: u64, bytes: &Range<u64>) -> Range<u64> {
        let (form, across) = (&self.packed.form, self.packed.form.across());
        let (first, last) = (bytes.start / size, (bytes.end - 1) / size);
        let row = |index: u64, end: bool| match role {
            Role::Zeros => {
                let bits = u64::from(form.code.bits());
                let words = (form.rows * bits).div_ceil(32);
                let (matrix, word) = (index / across / words, index / across % words);
                let row = if end { (word * 32 + 31) / bits } else { word * 32 / bits };
                matrix * form.rows + row.min(form.rows - 1)
            }
            _ => {
                let down = index / across;
                down / form.down() * form.rows + down % form.down() * form.tall
            }
        };
        let (first, last) = (form.band_of(row(first, false)), form.band_of(row(last, true)));
        form.patches_of(first).start..form.patches_of(last).end
    }

    /// Sees to it that the scales of a patch are known.
    fn known(&self, context: &Context<'_, '_>, bench: &mut Bench, index: u64) -> Result<()> {
        let is_known = || lock(&self.bands.kept).as_ref().is_some_and(|kept| kept.knows(index));
        if is_known() {
            return Ok(());
        }
        let slot = Arc::clone(lock(&self.bands.slots).entry(index).or_default());
        let mut slot = lock(&slot);
        if !is_known() {
            let patch = self.make(context, bench, index)?;
            if self.packed.writes_codes && slot.wanted.is_none() && lock(&self.bands.slots).len() < LATER {
                slot.patch = Some(patch);
            }
        }
        if slot.patch.is_none() && slot.wanted.is_none() {
            lock(&self.bands.slots).remove(&index);
        }
        Ok(())
    }
}
