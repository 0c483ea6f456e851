//! One patch of a packed tensor: what is computed of it, the scale of each of its groups, and its codes.

use super::choose::Stored;
use super::chosen::Chosen;
use super::columns::Columns;
use super::form::{Form, Place};
use super::original::{read, Buffers};
use super::packed::{Originals, Packed};
use crate::error::Result;
use crate::kernels::philox::fill;
use crate::kernels::Level;
use crate::measure::Survival;
use crate::run::tile::{Place as TilePlace, Tiler};
use crate::storage::chunk::Scratch;

mod codes;
mod compute;
mod groups;

/// A patch, encoded.
#[derive(Default)]
pub(super) struct Patch {
    /// By output.
    pub outputs: Vec<Encoded>,
    /// By input, values that are not finite.
    pub bad: Vec<u64>,
    /// Elements that matter to no model.
    pub unweighted: u64,
}

/// A patch as one output has it.
#[derive(Default)]
pub(super) struct Encoded {
    /// Packed codes, row by row.
    pub codes: Vec<u8>,
    /// Stored scales of its groups.
    pub scales: Vec<u32>,
    /// Codes for zero of its groups.
    pub zeros: Vec<f32>,
    /// Stored biases of its groups.
    pub biases: Vec<u32>,
    /// What became of the step.
    pub survival: Survival,
    /// Values that are not finite.
    pub bad: u64,
}

/// One thread's buffers.
pub(crate) struct Bench {
    tiler: Tiler,
    scratch: Vec<Scratch>,
    x: Vec<Vec<f32>>,
    target: Vec<f32>,
    delta: Vec<f32>,
    out: Vec<f32>,
    draws: Vec<u32>,
    codes: Vec<u8>,
    room: (Vec<f32>, Vec<u32>, Vec<u8>),
    /// What the differences of donors and references in the patch are like.
    noise: Option<Survival>,
    originals: [Buffers; 3],
}

impl Bench {
    /// Buffers, empty.
    pub(crate) fn new(level: Level) -> Self {
        Bench {
            tiler: Tiler::new(level),
            scratch: Vec::new(),
            x: Vec::new(),
            target: Vec::new(),
            delta: Vec::new(),
            out: Vec::new(),
            draws: Vec::new(),
            codes: Vec::new(),
            room: Default::default(),
            noise: None,
            originals: Default::default(),
        }
    }

    /// Computes and encodes a patch.
    ///
    /// # Errors
    /// Unreadable input.
    pub(super) fn make(
        &mut self,
        packed: &Packed,
        tile: &TilePlace<'_>,
        place: &Place,
        chosen: &[Chosen],
    ) -> Result<Patch> {
        self.noise = Some(Survival::default());
        let (bad, unweighted) = self.compute(packed, tile, place)?;
        self.draw(packed, tile, place);
        let originals = packed.originals(tile.program);
        let mut buffers = std::mem::take(&mut self.originals);
        let [target, reference, donor] = &mut buffers;
        let form = &packed.form;
        let columns = self.columns(&originals, form)?;
        let alike = columns.is_none() || originals.are_in_one_order()?;
        let stored = Stored {
            target: read(originals.target.as_ref(), form, place, target)?,
            reference: read(originals.reference.as_ref().filter(|_| alike), form, place, reference)?,
            donor: read(originals.donor.as_ref().filter(|_| alike), form, place, donor)?,
            columns,
        };
        let outputs = (0..packed.steps.len()).map(|slot| self.output(packed, place, &stored, chosen.get(slot), slot));
        let outputs = outputs.collect();
        self.originals = buffers;
        Ok(Patch { outputs, bad, unweighted })
    }

    /// How the columns of groups are brought together; all that was computed of the patch has them so.
    fn columns(&mut self, originals: &Originals<'_>, form: &Form) -> Result<Option<Columns>> {
        let order = originals.target.as_ref().and_then(|target| target.order);
        let Some(order) = order.filter(|_| form.strewn) else { return Ok(None) };
        let columns = Columns::of(&order, form.wide, &mut self.room.2)?;
        let all = self.x.iter_mut().chain([&mut self.target, &mut self.delta]);
        all.for_each(|values| columns.gather(values, &mut self.room.0));
        columns.gather(&mut self.draws, &mut self.room.1);
        Ok(Some(columns))
    }

    fn draw(&mut self, packed: &Packed, tile: &TilePlace<'_>, place: &Place) {
        let Some(stream) = &tile.draws else { return };
        let columns = place.columns as usize;
        self.draws.resize(place.elements(), 0);
        for (row, draws) in self.draws.chunks_mut(columns).enumerate() {
            let row = place.first_row(&packed.form) + row as u64;
            fill(packed.level, stream, row * packed.form.columns + place.column, draws);
        }
    }
}
