//! One tensor of a vector: what it is made of, what was found out about it, and how it is stored.

use super::files::Stored;
use crate::dtype::{elements, Dtype};
use crate::error::{shown, Error, Kind, Result};
use crate::kernels::encode::Facts;
use crate::measure::Noise;
use crate::storage::encoding::{Encoding, Form};
use crate::storage::exact_elements::Written as Exact;
use crate::storage::input::Input;
use crate::storage::source::Source;
use crate::storage::sources::Sources;

/// One tensor of the vector.
pub(super) struct Item<'a> {
    pub(super) name: &'a str,
    pub(super) shape: &'a [u64],
    pub(super) elements: u64,
    pub(super) inputs: [Input<'a>; 2],
    /// Type that decides the compute type when the vector is applied.
    pub(super) origin: Dtype,
    /// Per chunk, and in all.
    pub(super) chunks: Vec<Facts>,
    pub(super) total: Facts,
    /// What the difference is like, where that is measured.
    pub(super) noise: Option<Noise>,
    pub(super) encoding: Encoding,
}

/// A stored tensor and where it goes.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) item: usize,
    /// Offset in its file of places and of values.
    pub(super) places: u64,
    pub(super) values: u64,
    /// Of the elements that are stored by themselves, in the order of [`exact_elements::PARTS`].
    pub(super) exact: [u64; 3],
}

impl<'a> Item<'a> {
    pub(super) fn new(
        plan: &'a [Source],
        sources: &'a Sources<'_>,
        name: &'a str,
        shape: &'a [u64],
        from: [&str; 2],
    ) -> Result<Self> {
        let elements = elements(shape)
            .ok_or_else(|| Error::new(Kind::Plan, format!("unusable plan: shape of `{}` overflows", shown(name))))?;
        let input = |source: usize| sources.input(plan, (source, from[source]), (shape, elements), false);
        let inputs = [input(0)?, input(1)?];
        let types = [inputs[0].dtype, inputs[1].dtype];
        if let Some(other) = types.iter().find(|dtype| !dtype.is_float()) {
            let message = format!("`{}` is {other}, not of a floating-point type", shown(name));
            return Err(Error::new(Kind::Plan, message));
        }
        let origin = if types.iter().all(|dtype| dtype.is_narrow()) { Dtype::BF16 } else { Dtype::F32 };
        let total = Facts::default();
        Ok(Item {
            name,
            shape,
            elements,
            inputs,
            origin,
            chunks: Vec::new(),
            total,
            noise: None,
            encoding: Encoding::zero(),
        })
    }

    pub(super) fn cost(&self) -> u64 {
        self.inputs.iter().map(|input| input.cost(self.elements)).sum()
    }

    /// Whether a run may add it in f32.
    pub(super) fn is_narrow(&self) -> bool {
        self.origin == Dtype::BF16
    }

    /// Chooses how it is stored.
    pub(super) fn choose(&mut self, lossy: Option<Dtype>) {
        // What an adapter makes is computed: a type that it is stored in does not hold it.
        let told = self.inputs.iter().all(|input| input.storage().exact().is_some());
        let each = self.exact().bytes(1);
        self.encoding = Encoding::smallest(self.elements, &self.total, lossy, each, told);
    }

    /// Elements that are stored by themselves.
    pub(super) fn apart(&self) -> u64 {
        self.total.apart(self.encoding.dtype)
    }

    /// Whether values of such elements are rounded: their differences are beyond the type.
    pub(super) fn is_rounded(&self) -> bool {
        self.apart() > 0 && self.total.is_beyond(self.encoding.dtype)
    }

    /// How the elements are stored that its values do not give back.
    pub(super) fn exact(&self) -> Exact {
        let held = |input: &Input<'_>| input.storage().exact().unwrap_or(input.dtype);
        Exact { types: [self.encoding.index, held(&self.inputs[0]), held(&self.inputs[1])] }
    }

    /// The stored tensors.
    pub(super) fn rows(&self) -> Vec<(String, Dtype, Vec<u64>)> {
        let mut rows = self.encoding.rows(self.name, self.shape, self.elements, self.total.changed);
        rows.extend(self.exact().rows(self.name, self.apart()));
        rows
    }

    /// What a file has of it.
    pub(super) fn stored(&self) -> Stored {
        let rows = if self.encoding.form == Form::Zero { Vec::new() } else { self.rows() };
        Stored {
            name: self.name.to_owned(),
            rows,
            bytes: self.bytes(),
            origin: self.origin,
            rounded: self.is_rounded(),
        }
    }

    /// Bytes stored.
    pub(super) fn bytes(&self) -> u64 {
        self.encoding.bytes(self.elements, self.total.changed) + self.exact().bytes(self.apart())
    }

    /// Where it goes in a file from `at` on.
    pub(super) fn place(&self, item: usize, at: u64) -> Place {
        let values = at + self.encoding.places_bytes(self.elements, self.total.changed);
        let behind = at + self.encoding.bytes(self.elements, self.total.changed);
        Place { item, places: at, values, exact: self.exact().offsets(behind, self.apart()) }
    }
}
