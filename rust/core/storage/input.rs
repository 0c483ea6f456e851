//! A logical tensor: what an operation reads, however it is stored.

use std::ops::Range;
use std::sync::Arc;

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::file::mapped::Mapped;
use crate::kernels::dispatch::prefetch;
use crate::kernels::widen::widen;
use crate::kernels::{Level, Real};
use crate::storage::exact_elements::{Exact, ExactChunk};
use crate::storage::lora::{Lora, LoraChunk};
use crate::storage::sparse::{Sparse, SparseChunk};

/// One input of a job.
#[derive(Clone)]
pub struct Input<'a> {
    storage: Storage<'a>,
    /// Of a saved vector: the donor where the differences do not give it back.
    exact: Option<Arc<Exact<'a>>>,
    /// The element type that decides the compute type: the stored one, or that of a vector's origin.
    pub dtype: Dtype,
    /// Elements.
    pub elements: u64,
}

// A plan may have hundreds of thousands of inputs: what is rare and large is not kept in place.
#[derive(Clone)]
enum Storage<'a> {
    Dense { file: &'a Mapped, offset: u64, dtype: Dtype },
    Sparse(Arc<Sparse<'a>>),
    Adapted(Arc<Adapted<'a>>),
    Buffer { bytes: &'a [u8], dtype: Dtype },
    Own,
}

/// A stored tensor with an adapter's change on top, or that change alone.
struct Adapted<'a> {
    base: Option<(&'a Mapped, u64, Dtype)>,
    lora: Lora<'a>,
}

/// Buffers for inputs that are not mapped.
#[derive(Debug, Default)]
pub struct Scratch {
    /// For the stored values.
    pub values: Vec<u8>,
    /// For what says where they go.
    pub places: Vec<u8>,
    /// For the second factor of an adapter.
    pub factor: Vec<u8>,
    /// For what is stored of a vector beside its differences.
    pub exact: [Vec<u8>; 4],
}

/// A range of elements of an input whose bytes are in memory.
pub enum Chunk<'a> {
    /// Every element is stored.
    Dense {
        /// Their type.
        dtype: Dtype,
        /// Their bytes.
        bytes: &'a [u8],
    },
    /// Elements that are not zero are stored.
    Sparse(SparseChunk<'a>),
    /// An adapter's change, on top of a stored tensor or alone.
    Adapted {
        /// Type and bytes of the stored tensor.
        base: Option<(Dtype, &'a [u8])>,
        /// What is added.
        lora: LoraChunk<'a>,
    },
    /// Differences of a saved vector, some of which do not give back what they were made of.
    Exact(Box<Chunk<'a>>, ExactChunk<'a>),
}

impl<'a> Input<'a> {
    /// A tensor stored as it is.
    pub fn stored(file: &'a Mapped, offset: u64, dtype: Dtype, elements: u64) -> Self {
        Input::of(Storage::Dense { file, offset, dtype }, dtype, elements)
    }

    /// A tensor of which only the elements that are not zero are stored.
    pub fn sparse(sparse: Sparse<'a>, elements: u64) -> Self {
        let dtype = sparse.values.dtype;
        Input::of(Storage::Sparse(Arc::new(sparse)), dtype, elements)
    }

    /// A stored tensor with an adapter's change on top, or that change alone.
    pub fn adapted(base: Option<(&'a Mapped, u64, Dtype)>, lora: Lora<'a>, elements: u64) -> Self {
        // Alone it leaves the compute type to the target.
        let dtype = base.map_or(Dtype::BF16, |(_, _, dtype)| dtype);
        Input::of(Storage::Adapted(Arc::new(Adapted { base, lora })), dtype, elements)
    }

    /// A tensor that the embedding process holds.
    pub fn held(bytes: &'a [u8], dtype: Dtype, elements: u64) -> Self {
        Input::of(Storage::Buffer { bytes, dtype }, dtype, elements)
    }

    /// What stands where the result goes: whoever writes that reads this.
    pub fn own(dtype: Dtype, elements: u64) -> Self {
        Input::of(Storage::Own, dtype, elements)
    }

    fn of(storage: Storage<'a>, dtype: Dtype, elements: u64) -> Self {
        Input { storage, exact: None, dtype, elements }
    }

    /// The same, with what its differences do not give back.
    pub fn with_exact(mut self, exact: Exact<'a>) -> Self {
        self.exact = Some(Arc::new(exact));
        self
    }

    /// Whether it is [`Input::own`].
    pub fn is_own(&self) -> bool {
        matches!(self.storage, Storage::Own)
    }

    /// The same, computed with as the difference of tensors of `dtype` that it was.
    pub fn originally(mut self, dtype: Dtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// Brings `elements` into memory.
    ///
    /// # Errors
    /// Where the file was truncated or cannot be read.
    pub fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<Chunk<'s>> {
        let Scratch { values, places, factor, exact } = scratch;
        let range = elements.clone();
        let chunk = match &self.storage {
            Storage::Dense { file, offset, dtype } => {
                let bytes = file.read(bytes(*offset, *dtype, &elements), values)?;
                Chunk::Dense { dtype: *dtype, bytes }
            }
            Storage::Sparse(sparse) => Chunk::Sparse(sparse.open(elements, places, values)?),
            Storage::Adapted(adapted) => {
                let Adapted { base, lora } = &**adapted;
                let base = match base {
                    Some((file, offset, dtype)) => {
                        Some((*dtype, file.read(bytes(*offset, *dtype, &elements), values)?))
                    }
                    None => None,
                };
                Chunk::Adapted { base, lora: lora.open(elements, places, factor)? }
            }
            Storage::Buffer { bytes: all, dtype } => {
                let range = bytes(0, *dtype, &elements);
                Chunk::Dense { dtype: *dtype, bytes: &all[range.start as usize..range.end as usize] }
            }
            Storage::Own => return Err(Error::new(Kind::Engine, "what is computed in place is not opened")),
        };
        Ok(match &self.exact {
            Some(kept) => Chunk::Exact(Box::new(chunk), kept.open(&range, exact)?),
            None => chunk,
        })
    }

    /// Stored bytes of a dense input, counted from the tensor's first; none where it is not dense.
    ///
    /// # Errors
    /// As [`Input::open`].
    pub fn raw<'s>(&'s self, range: Range<u64>, scratch: &'s mut Scratch) -> Result<Option<&'s [u8]>> {
        match &self.storage {
            Storage::Dense { file, offset, .. } => {
                file.read(offset + range.start..offset + range.end, &mut scratch.values).map(Some)
            }
            Storage::Buffer { bytes, .. } => Ok(Some(&bytes[range.start as usize..range.end as usize])),
            Storage::Sparse(_) | Storage::Adapted(_) | Storage::Own => Ok(None),
        }
    }

    /// Says that `elements` will be wanted soon.
    pub fn ahead(&self, elements: Range<u64>) {
        if let Storage::Dense { file, offset, dtype } = &self.storage {
            file.advise_ahead(bytes(*offset, *dtype, &elements));
        }
    }

    /// Says that `elements` are done with.
    pub fn behind(&self, elements: Range<u64>) {
        if let Storage::Dense { file, offset, dtype } = &self.storage {
            file.drop_behind(bytes(*offset, *dtype, &elements));
        }
    }

    /// Whether it is stored as it is in `dtype`, and nothing beside.
    pub fn is_plain(&self, dtype: Dtype) -> bool {
        self.exact.is_none()
            && matches!(&self.storage, Storage::Dense { dtype: stored, .. } | Storage::Buffer { dtype: stored, .. } if *stored == dtype)
    }

    /// Bytes that reading `elements` takes; for a sparse input, its share of all.
    pub fn cost(&self, elements: u64) -> u64 {
        let share = |bytes: u64| (u128::from(bytes) * u128::from(elements) / u128::from(self.elements.max(1))) as u64;
        let beside = self.exact.as_ref().map_or(0, |exact| share(exact.bytes()));
        beside
            + match &self.storage {
                Storage::Dense { dtype, .. } | Storage::Buffer { dtype, .. } => elements * dtype.size() as u64,
                Storage::Own => elements * self.dtype.size() as u64,
                Storage::Sparse(sparse) => share(sparse.bytes()),
                Storage::Adapted(adapted) => {
                    let Adapted { base, lora } = &**adapted;
                    share(lora.bytes()) + base.map_or(0, |(_, _, dtype)| elements * dtype.size() as u64)
                }
            }
    }
}

fn bytes(offset: u64, dtype: Dtype, elements: &Range<u64>) -> Range<u64> {
    let size = dtype.size() as u64;
    offset + elements.start * size..offset + elements.end * size
}

impl Chunk<'_> {
    /// Widens `out.len()` elements from element `at` of this chunk on; true if all are finite.
    pub fn tile<R: Real>(&self, level: Level, at: usize, out: &mut [R]) -> bool {
        match self {
            Chunk::Dense { dtype, bytes } => {
                self.ahead(at, out.len());
                widen(level, *dtype, &bytes[at * dtype.size()..(at + out.len()) * dtype.size()], out)
            }
            Chunk::Sparse(chunk) => chunk.tile(level, at, R::ZERO, out),
            Chunk::Exact(chunk, _) => chunk.tile(level, at, out),
            Chunk::Adapted { base, lora } => {
                let finite = match base {
                    Some((dtype, bytes)) => {
                        let size = dtype.size();
                        widen(level, *dtype, &bytes[at * size..(at + out.len()) * size], out)
                    }
                    None => {
                        out.fill(R::ZERO);
                        true
                    }
                };
                lora.add(level, at, out) && finite
            }
        }
    }

    /// Asks for the tile behind that of `n` elements from `at` on.
    pub fn ahead(&self, at: usize, n: usize) {
        if let Chunk::Dense { dtype, bytes } = self {
            let next = (at + n) * dtype.size();
            prefetch(&bytes[next.min(bytes.len())..(next + n * dtype.size()).min(bytes.len())]);
        }
    }

    /// The stored bytes of `n` elements from `at` on, where they are of this type.
    pub fn stored(&self, dtype: Dtype, at: usize, n: usize) -> Option<&[u8]> {
        match self {
            Chunk::Dense { dtype: stored, bytes } if *stored == dtype => {
                Some(&bytes[at * dtype.size()..(at + n) * dtype.size()])
            }
            _ => None,
        }
    }

    /// What is kept beside the differences of a saved vector, if there is anything.
    pub fn exact(&self) -> Option<&ExactChunk<'_>> {
        match self {
            Chunk::Exact(_, exact) if !exact.is_empty() => Some(exact),
            _ => None,
        }
    }
}
