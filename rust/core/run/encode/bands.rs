//! Patches between the blocks that want them: a band of the tensor is computed once for all blocks that hold a part of
//! it, and again only where it is gone.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, TryLockError};

use super::chosen::{Chosen, Wholes};
use super::make::Kept;
use super::packed::Packed;
use super::patch::{Bench, Patch};
use crate::error::Result;
use crate::measure::NonFinite;
use crate::output::digest::BLOCK;
use crate::plan::layout::Layout;
use crate::plan::Plan;
use crate::run::program::{Program, Step};
use crate::run::tile::Place as TilePlace;
use crate::threads::{lock, Threads};

mod pieces;

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
