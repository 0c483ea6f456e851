//! One input of a job: finds out how the tensor is stored.

use std::collections::HashSet;
use std::ops::Range;

use super::chunk::{Chunk, Scratch};
use super::dense::Dense;
use super::source::Buffer;
use super::target::Target;
use super::wanted::Wanted;
use super::{assembled, exact_elements, lora, packed, rows, sparse, Storage};
use crate::dtype::Dtype;
use crate::error::Result;

/// Says whether a tensor is stored its way.
type Find = for<'a> fn(&Wanted<'_, 'a>) -> Result<Option<Box<dyn Storage + 'a>>>;

/// The storages that are made of several stored tensors, in the order in which they are asked: a new one is a line.
const COMPOSED: &[Find] = &[sparse::find, packed::find];

/// A tensor in its storage.
pub(crate) struct Input<'a> {
    stored: Stored<'a>,
    /// The element type that decides the compute type: the stored one, or that of a vector's origin.
    pub dtype: Dtype,
}

// A plan may have hundreds of thousands of inputs: what most of them are is kept in place, and is small.
const _: () = assert!(size_of::<Input<'_>>() <= 40);

/// No file that holds a part of these inputs has changed since it was opened; each is looked at once.
///
/// # Errors
/// `Kind::Format` naming the file that did.
pub(crate) fn unchanged<'i, 'a: 'i>(inputs: impl Iterator<Item = &'i Input<'a>>) -> Result<()> {
    let mut seen = HashSet::new();
    for part in inputs.flat_map(|input| input.storage().parts()) {
        if seen.insert(std::ptr::from_ref(part.file)) {
            part.file.unchanged()?;
        }
    }
    Ok(())
}

enum Stored<'a> {
    Dense(Dense<'a>),
    Buffer(&'a Buffer<'a>),
    Target(Target),
    Composed(Box<dyn Storage + 'a>),
}

impl<'a> Input<'a> {
    /// A tensor of a source, however that stores it.
    ///
    /// # Errors
    /// It is not there, has another shape, or is damaged.
    pub(crate) fn find(wanted: &Wanted<'_, 'a>) -> Result<Self> {
        let stored = match lora::factors(wanted)? {
            None => Stored::find(wanted)?,
            Some(factors) => {
                let base = match lora::whole(wanted)? {
                    Some(whole) => Some(Input::dense(whole)),
                    None => wanted.base()?.map(|base| Input::find(&base)).transpose()?,
                };
                match (factors, base) {
                    (None, Some(base)) => return Ok(base),
                    (factors, base) => {
                        Stored::Composed(lora::over(wanted, factors, base.map(|base| base.stored.boxed()))?)
                    }
                }
            }
        };
        // What no arithmetic can be done with is that, whatever its origin is called.
        let found = stored.storage().dtype();
        let dtype = wanted.origin().filter(|_| found.is_float()).unwrap_or(found);
        Ok(Input { stored, dtype })
    }

    /// A stored tensor, every element as a number by itself.
    pub(crate) fn dense(dense: Dense<'a>) -> Self {
        Input { dtype: dense.dtype(), stored: Stored::Dense(dense) }
    }

    /// What stands where the result goes.
    pub(crate) fn target(target: Target) -> Self {
        Input { dtype: target.dtype, stored: Stored::Target(target) }
    }

    /// How it is stored.
    pub(crate) fn storage(&self) -> &(dyn Storage + 'a) {
        self.stored.storage()
    }

    /// Brings `elements` into memory; see [`Storage::open`].
    ///
    /// # Errors
    /// Where a file was truncated or cannot be read.
    pub(crate) fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<Chunk<'s>> {
        self.storage().open(elements, scratch)
    }

    /// Whether it is plain numbers of this type; see [`Storage::plain`].
    pub(crate) fn is_plain(&self, dtype: Dtype) -> bool {
        self.storage().plain() == Some(dtype)
    }

    /// Bytes that `count` elements take; see [`Storage::bytes`].
    pub(crate) fn cost(&self, count: u64) -> u64 {
        self.storage().bytes(&(0..count))
    }
}

impl<'a> Stored<'a> {
    fn find(wanted: &Wanted<'_, 'a>) -> Result<Self> {
        let Some(rows) = rows::wanted(wanted) else { return Stored::in_layout(wanted) };
        let open = |table: &Wanted<'_, 'a>| Stored::in_layout(table).map(Stored::boxed);
        rows::permute(wanted, rows, &open).map(Stored::Composed)
    }

    /// The tensor with its rows as its own source has them.
    fn in_layout(wanted: &Wanted<'_, 'a>) -> Result<Self> {
        match assembled::wanted(wanted) {
            Some(pieces) => {
                let open = |stored: &Wanted<'_, 'a>| Stored::under(stored)?.exact(stored).map(Stored::boxed);
                assembled::assemble(wanted, pieces, &open).map(Stored::Composed)
            }
            None => Stored::under(wanted)?.exact(wanted),
        }
    }

    /// The same with those elements of a saved vector that its values do not give back.
    fn exact(self, wanted: &Wanted<'_, 'a>) -> Result<Self> {
        Ok(match exact_elements::find(wanted)? {
            Some(exact) => Stored::Composed(exact.over(self.boxed())),
            None => self,
        })
    }

    /// The tensor under the name that its source has for it.
    fn under(wanted: &Wanted<'_, 'a>) -> Result<Self> {
        for find in COMPOSED {
            if let Some(found) = find(wanted)? {
                return Ok(Stored::Composed(found));
            }
        }
        match Buffer::find(wanted)? {
            Some(buffer) => Ok(Stored::Buffer(buffer)),
            None => Dense::find(wanted).map(Stored::Dense),
        }
    }

    fn storage(&self) -> &(dyn Storage + 'a) {
        match self {
            Stored::Dense(dense) => dense,
            Stored::Buffer(buffer) => *buffer,
            Stored::Target(target) => target,
            Stored::Composed(storage) => &**storage,
        }
    }

    /// For a storage that lies over it.
    fn boxed(self) -> Box<dyn Storage + 'a> {
        match self {
            Stored::Dense(dense) => Box::new(dense),
            Stored::Buffer(buffer) => Box::new(buffer.clone()),
            Stored::Target(target) => Box::new(target),
            Stored::Composed(storage) => storage,
        }
    }
}
