//! One source of a plan, opened and held against what the plan says of it.

use std::path::Path;

use super::part::Part;
use super::source::{Buffers, Source, SourceKind};
use crate::checkpoint::Checkpoint;
use crate::error::{shown_path, Error, Kind, Result};
use crate::file::mapped::Mapped;

/// A source whose tensors can be read.
pub(crate) enum Opened<'m> {
    /// In files: headers, and the files' maps.
    Files(Box<(Checkpoint, Vec<Mapped>)>),
    /// In the embedding process.
    Buffers(&'m Buffers<'m>),
}

impl<'m> Opened<'m> {
    /// Opens the headers of a source and maps its files.
    ///
    /// # Errors
    /// It cannot be opened, or is not the one that the plan was made for.
    pub(crate) fn files(source: &Source) -> Result<Self> {
        let path = Path::new(&source.path);
        let checkpoint = match (source.kind, source.listed()) {
            (_, Some(files)) => Checkpoint::open_files(path, &files)?,
            (SourceKind::Lora, _) => Checkpoint::open_file(path)?,
            (SourceKind::Checkpoint | SourceKind::Vector | SourceKind::Memory, _) => Checkpoint::open(path)?,
        };
        if checkpoint.fingerprint != source.fingerprint {
            return Err(Error::new(
                Kind::Format,
                format!("`{}` is not what it was when the plan was made", shown_path(path)),
            )
            .hint("run the command again from the start, with `--overwrite`"));
        }
        let mapped = checkpoint.map()?;
        Ok(Opened::Files(Box::new((checkpoint, mapped))))
    }

    /// What the embedding process holds, where that is the source.
    pub(crate) fn buffers(&self) -> Option<&'m Buffers<'m>> {
        match self {
            Opened::Files(_) => None,
            Opened::Buffers(buffers) => Some(buffers),
        }
    }

    /// Headers and maps, where the source lies in files.
    pub(crate) fn stored(&self) -> Option<(&Checkpoint, &[Mapped])> {
        match self {
            Opened::Files(files) => Some((&files.0, &files.1)),
            Opened::Buffers(_) => None,
        }
    }

    /// A stored tensor and its shape, if there is one of that name.
    pub(crate) fn find(&self, name: &str) -> Option<(Part<'_>, &[u64])> {
        let (checkpoint, mapped) = self.stored()?;
        let found = checkpoint.find(name)?;
        let (file, elements) = (&mapped[found.file], found.len / found.dtype.size() as u64);
        Some((Part { file, offset: found.offset, elements, dtype: found.dtype }, found.shape))
    }

    /// The same.
    ///
    /// # Errors
    /// `Kind::NotFound`.
    pub(crate) fn get(&self, name: &str) -> Result<(Part<'_>, &[u64])> {
        if let Some(found) = self.find(name) {
            return Ok(found);
        }
        let (checkpoint, _) = self.stored().ok_or_else(|| Error::new(Kind::Engine, "a source that lies in memory"))?;
        Err(checkpoint.missing(name))
    }
}
