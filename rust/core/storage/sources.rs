//! The sources of a plan, opened.

use std::path::{Path, PathBuf};

use super::input::Input;
use super::opened::Opened;
use super::source::{Buffers, Source, SourceKind};
use super::wanted::Wanted;
use crate::checkpoint::Checkpoint;
use crate::error::{shown, Error, Kind, Result};
use crate::file::mapped::Mapped;

/// Every source of a plan: open files, and what the embedding process holds.
pub(crate) struct Sources<'m> {
    opened: Vec<Opened<'m>>,
    /// Those of the sources that lie in files.
    paths: Vec<PathBuf>,
    /// Nothing but headers is looked at.
    only_headers: bool,
}

impl<'m> Sources<'m> {
    /// Opens the headers, maps the files, and takes what the embedding process holds for the sources of kind memory,
    /// in their order.
    ///
    /// # Errors
    /// A source that cannot be opened, or is not the one that the plan was made for; too few or too many buffers,
    /// or bytes in one of them that do not fit their shape.
    pub(crate) fn of(sources: &[Source], buffers: &'m [Buffers<'m>]) -> Result<Sources<'m>> {
        let expected = sources.iter().filter(|source| source.kind == SourceKind::Memory).count();
        if buffers.len() != expected {
            let message = format!("{} state dicts are given, the plan has {expected}", buffers.len());
            return Err(Error::new(Kind::Plan, message));
        }
        let mut buffers = buffers.iter();
        let opened = sources.iter().map(|source| match (source.kind, &mut buffers) {
            (SourceKind::Memory, buffers) => checked(buffers.next()),
            _ => Opened::files(source),
        });
        let stored = sources.iter().filter(|source| source.kind != SourceKind::Memory);
        let paths = stored.flat_map(Source::paths).collect();
        Ok(Sources { opened: opened.collect::<Result<_>>()?, paths, only_headers: false })
    }

    /// The same, of which only headers have to be there, or not: then tensors tell their parts, and are not to be opened.
    pub(crate) fn only_headers(self, only_headers: bool) -> Sources<'m> {
        Sources { only_headers, ..self }
    }

    /// One tensor of one source, however that stores it, or as it is `stored` under its own name; `sources` are those
    /// that this was opened from.
    ///
    /// # Errors
    /// It is not there, has another shape, or is damaged.
    pub(crate) fn input<'a>(
        &'a self,
        sources: &[Source],
        (source, name): (usize, &str),
        (shape, elements): (&[u64], u64),
        stored: bool,
    ) -> Result<Input<'a>> {
        let (source, opened) = (&sources[source], &self.opened[source]);
        let (only_headers, all) = (self.only_headers, &self.opened[..]);
        Input::find(&Wanted { name, shape, elements, stored, only_headers, sources, all, source, opened })
    }

    /// What an output must not touch: the folder of each source, or its file where it is a single one, and its files in
    /// sub-folders. Other files beside a single one are no input.
    pub(crate) fn paths(&self) -> Vec<&Path> {
        self.paths.iter().map(PathBuf::as_path).collect()
    }

    /// No file has changed since it was opened.
    ///
    /// # Errors
    /// `Kind::Format` naming the file that did.
    pub(crate) fn unchanged(&self) -> Result<()> {
        self.files().try_for_each(Mapped::unchanged)
    }

    /// Every file of the sources that lie in files.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Mapped> {
        self.stored().flat_map(|(_, mapped)| mapped)
    }

    fn stored(&self) -> impl Iterator<Item = (&Checkpoint, &[Mapped])> {
        self.opened.iter().filter_map(Opened::stored)
    }
}

fn checked<'m>(buffers: Option<&'m Buffers<'m>>) -> Result<Opened<'m>> {
    let buffers = buffers.ok_or_else(|| Error::new(Kind::Plan, "a state dict is missing"))?;
    for (name, buffer) in buffers {
        if buffer.dtype.bytes(&buffer.shape) != Some(buffer.bytes.len() as u64) {
            let (name, found, dtype) = (shown(name), buffer.bytes.len(), buffer.dtype);
            let message = format!("`{name}` has {found} bytes, which is not {:?} of {dtype}", buffer.shape);
            return Err(Error::new(Kind::Plan, message));
        }
    }
    Ok(Opened::Buffers(buffers))
}
