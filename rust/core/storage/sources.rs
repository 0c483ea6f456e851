//! The checkpoints that a plan reads, opened and held against what the plan says of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::source::{Factors, Source, SourceKind};
use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::file::mapped::Mapped;
use crate::storage::exact_elements::{Exact, PARTS};
use crate::storage::input::Input;
use crate::storage::lora::Lora;
use crate::storage::sparse::{Places, Sparse, Stored};

/// A tensor that the embedding process holds.
#[derive(Clone, Debug)]
pub struct Buffer<'a> {
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its elements in row-major order, little-endian.
    pub bytes: &'a [u8],
}

/// The tensors of a source of kind [`SourceKind::Memory`], by name.
pub type Buffers<'a> = HashMap<String, Buffer<'a>>;

/// Every source of a plan: open files, and what the embedding process holds.
pub struct Sources<'m> {
    opened: Vec<Opened<'m>>,
}

enum Opened<'m> {
    Stored(Box<(Checkpoint, Vec<Mapped>)>),
    Buffer(&'m Buffers<'m>),
}

impl<'m> Sources<'m> {
    /// Opens the headers, maps the files, and takes what the embedding process holds for the sources of kind memory,
    /// in their order.
    ///
    /// # Errors
    /// A source that cannot be opened, or is not the one that the plan was made for; too few or too many memories,
    /// or bytes in one of them that do not fit their shape.
    pub fn of(sources: &[Source], memories: &'m [Buffers<'m>]) -> Result<Sources<'m>> {
        let expected = sources.iter().filter(|source| source.kind == SourceKind::Memory).count();
        if memories.len() != expected {
            let message = format!("{} state dicts are handed over, the plan has {expected}", memories.len());
            return Err(Error::new(Kind::Plan, message));
        }
        let mut memories = memories.iter();
        let opened = sources.iter().map(|source| match (source.kind, &mut memories) {
            (SourceKind::Memory, memories) => held(memories.next()),
            _ => open(source),
        });
        Ok(Sources { opened: opened.collect::<Result<_>>()? })
    }

    /// One tensor of one source, however that stores it.
    ///
    /// # Errors
    /// It is not there, has another shape, or is damaged.
    pub fn logical<'a>(
        &'a self,
        sources: &[Source],
        source: usize,
        name: &str,
        shape: &[u64],
        elements: u64,
    ) -> Result<Input<'a>> {
        match sources[source].kind {
            SourceKind::Checkpoint | SourceKind::Memory => self.stored(source, name, shape, elements),
            SourceKind::Vector => self.vector(source, name, shape, elements),
            SourceKind::Lora => self.adapted(sources, source, name, shape, elements),
        }
    }

    /// A tensor with an adapter's change on top, or that change alone.
    fn adapted<'a>(
        &'a self,
        sources: &[Source],
        source: usize,
        name: &str,
        shape: &[u64],
        elements: u64,
    ) -> Result<Input<'a>> {
        let base = match sources[source].base {
            Some(base) if base < sources.len() && sources[base].kind == SourceKind::Checkpoint => Some(base),
            Some(base) => return Err(Error::new(Kind::Plan, format!("an adapter on top of source {base}"))),
            None => None,
        };
        let Some(Factors(a, b, scale, transposed)) = sources[source].factors.get(name) else {
            let missing = || Error::new(Kind::Plan, format!("the adapter has no factors of `{}`", name.escape_debug()));
            return base.map_or_else(|| Err(missing()), |base| self.stored(base, name, shape, elements));
        };
        let (checkpoint, mapped) = self.store(source)?;
        let factor = |name: &str| -> Result<(Stored<'a>, &'a [u64])> {
            let stored = checkpoint.get(name)?;
            let elements = stored.shape.iter().product();
            let (file, offset, dtype) = (&mapped[stored.file], stored.offset, stored.dtype);
            Ok((Stored { file, offset, dtype, elements }, stored.shape))
        };
        let lora = Lora::new(name, shape, factor(a)?, factor(b)?, *scale, *transposed)?;
        let base = match base {
            Some(base) => {
                self.stored(base, name, shape, elements)?;
                let (checkpoint, mapped) = self.store(base)?;
                let stored = checkpoint.get(name)?;
                Some((&mapped[stored.file], stored.offset, stored.dtype))
            }
            None => None,
        };
        Ok(Input::adapted(base, lora, elements))
    }

    /// A tensor stored as it is.
    ///
    /// # Errors
    /// It is not there, or has another shape.
    pub fn stored<'a>(&'a self, source: usize, name: &str, shape: &[u64], elements: u64) -> Result<Input<'a>> {
        let (found, folder, input) = match &self.opened[source] {
            Opened::Stored(store) => {
                let (checkpoint, mapped) = &**store;
                let stored = checkpoint.get(name)?;
                let input = Input::stored(&mapped[stored.file], stored.offset, stored.dtype, elements);
                (stored.shape, checkpoint.folder.as_path(), input)
            }
            Opened::Buffer(memory) => {
                let held = memory.get(name).ok_or_else(|| {
                    Error::new(Kind::NotFound, format!("no tensor `{}` is handed over", name.escape_debug()))
                })?;
                (&held.shape[..], Path::new("the state dict"), Input::held(held.bytes, held.dtype, elements))
            }
        };
        if found != shape {
            let (name, folder) = (name.escape_debug(), folder.display());
            return Err(Error::new(
                Kind::Plan,
                format!("`{name}` has shape {found:?} in `{folder}`, the output has {shape:?}"),
            ));
        }
        Ok(input)
    }

    /// A tensor of a saved vector: dense under its own name, or `.values` with `.mask` or `.indices`; and what its
    /// differences do not give back.
    fn vector<'a>(&'a self, source: usize, name: &str, shape: &[u64], elements: u64) -> Result<Input<'a>> {
        let (checkpoint, mapped) = self.store(source)?;
        let origin = checkpoint.metadata.get(&format!("taskvec.origin.{name}"));
        let origin = origin.and_then(|name| Dtype::from_name(name)).unwrap_or(Dtype::BF16);
        let part = |suffix: &str| {
            checkpoint.find(&format!("{name}.{suffix}")).map(|stored| Stored {
                file: &mapped[stored.file],
                offset: stored.offset,
                dtype: stored.dtype,
                elements: stored.shape.iter().product(),
            })
        };
        let places = part("mask").map(|mask| (Places::Mask, mask));
        let places = places.or_else(|| part("indices").map(|indices| (Places::Index, indices)));
        let input = match (places, part("values")) {
            (Some((kind, places)), Some(values)) => {
                Input::sparse(Sparse::check(name, elements, kind, places, values)?, elements)
            }
            _ => self.stored(source, name, shape, elements)?,
        };
        let input = match PARTS.map(part) {
            [Some(indices), Some(donor), Some(reference)] => {
                input.with_exact(Exact::check(name, elements, [indices, donor, reference])?)
            }
            _ => input,
        };
        Ok(input.originally(origin))
    }

    /// Folders that the inputs lie in.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.stores().map(|(checkpoint, _)| checkpoint.folder.clone()).collect()
    }

    /// No file has changed since it was opened.
    ///
    /// # Errors
    /// `Kind::Format` naming the file that did.
    pub fn unchanged(&self) -> Result<()> {
        self.stores().flat_map(|(_, mapped)| mapped).try_for_each(Mapped::unchanged)
    }

    fn store(&self, source: usize) -> Result<(&Checkpoint, &[Mapped])> {
        match &self.opened[source] {
            Opened::Stored(store) => Ok((&store.0, &store.1)),
            Opened::Buffer(_) => Err(Error::new(Kind::Engine, format!("source {source} lies in memory"))),
        }
    }

    fn stores(&self) -> impl Iterator<Item = &(Checkpoint, Vec<Mapped>)> {
        self.opened.iter().filter_map(|source| match source {
            Opened::Stored(store) => Some(&**store),
            Opened::Buffer(_) => None,
        })
    }
}

fn open<'m>(source: &Source) -> Result<Opened<'m>> {
    let path = Path::new(&source.path);
    let checkpoint = match source.kind {
        SourceKind::Lora => Checkpoint::open_file(path)?,
        SourceKind::Checkpoint | SourceKind::Vector | SourceKind::Memory => Checkpoint::open(path)?,
    };
    if checkpoint.fingerprint != source.fingerprint {
        return Err(Error::new(
            Kind::Format,
            format!("`{}` is not what it was when the plan was made", path.display()),
        )
        .hint("run the command again from the start, with `--overwrite`"));
    }
    let mapped = checkpoint.map()?;
    Ok(Opened::Stored(Box::new((checkpoint, mapped))))
}

fn held<'m>(memory: Option<&'m Buffers<'m>>) -> Result<Opened<'m>> {
    let memory = memory.ok_or_else(|| Error::new(Kind::Plan, "a state dict is missing"))?;
    for (name, held) in memory {
        if held.dtype.bytes(&held.shape) != Some(held.bytes.len() as u64) {
            let (name, found, dtype) = (name.escape_debug(), held.bytes.len(), held.dtype);
            let message = format!("`{name}` has {found} bytes, which is not {:?} of {dtype}", held.shape);
            return Err(Error::new(Kind::Plan, message));
        }
    }
    Ok(Opened::Buffer(memory))
}
