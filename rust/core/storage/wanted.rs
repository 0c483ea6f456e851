//! What a plan asks of one of its sources: a tensor by name, of a shape.

use std::path::Path;

use super::opened::Opened;
use super::part::Part;
use super::source::{Source, SourceKind};
use crate::dtype::Dtype;
use crate::error::{shown, shown_path, Error, Kind, Result};

/// A tensor that a plan names. Every storage looks here whether it is the one that holds it.
pub(crate) struct Wanted<'w, 'a> {
    /// Its name.
    pub name: &'w str,
    /// Its shape in the output.
    pub shape: &'w [u64],
    /// Elements.
    pub elements: u64,
    /// It is a stored tensor by its own name, whatever logical tensor it is a part of.
    pub stored: bool,
    /// Only headers may be looked at: the files may have holes where the data is. What is found so is not opened.
    pub only_headers: bool,
    /// All sources of the plan.
    pub sources: &'w [Source],
    /// The same, opened.
    pub all: &'a [Opened<'a>],
    /// Which of them is asked, in the plan.
    pub source: &'w Source,
    /// The same, opened.
    pub opened: &'a Opened<'a>,
}

impl<'w, 'a> Wanted<'w, 'a> {
    /// The same of the source that an adapter is added to, if the asked one is that.
    ///
    /// # Errors
    /// `Kind::Plan` where it is added to something that is not a checkpoint.
    pub(crate) fn base(&self) -> Result<Option<Wanted<'w, 'a>>> {
        let Some(base) = self.source.base else { return Ok(None) };
        match (self.sources.get(base), self.all.get(base)) {
            (Some(source), Some(opened)) if source.kind == SourceKind::Checkpoint => {
                Ok(Some(Wanted { source, opened, ..*self }))
            }
            _ => Err(Error::new(Kind::Plan, format!("an adapter on top of source {base}"))),
        }
    }

    /// The stored tensor of that name, and its shape.
    ///
    /// # Errors
    /// `Kind::NotFound`.
    pub(crate) fn tensor(&self) -> Result<(Part<'a>, &'a [u64])> {
        self.opened.get(self.name)
    }

    /// The shape of another tensor of the source.
    ///
    /// # Errors
    /// `Kind::NotFound`.
    pub(crate) fn stored_shape(&self, name: &str) -> Result<Vec<u64>> {
        match self.opened.buffers().map(|buffers| buffers.get(name)) {
            Some(Some(buffer)) => Ok(buffer.shape.clone()),
            Some(None) => {
                let message = format!("there is no tensor `{}` in the state dict", shown(name));
                Err(Error::new(Kind::NotFound, message))
            }
            None => self.opened.get(name).map(|(_, shape)| shape.to_vec()),
        }
    }

    /// The stored tensor of that name and an ending.
    pub(crate) fn part(&self, suffix: &str) -> Option<Part<'a>> {
        self.opened.find(&format!("{}.{suffix}", self.name)).map(|(part, _)| part)
    }

    /// The type of the models that a saved vector was made of: it is computed with as their difference.
    pub(crate) fn origin(&self) -> Option<Dtype> {
        if self.source.kind != SourceKind::Vector {
            return None;
        }
        let named = self.metadata(&format!("taskvec.origin.{}", self.name));
        Some(named.and_then(Dtype::from_name).unwrap_or(Dtype::BF16))
    }

    /// What the files of the source say under this key.
    pub(crate) fn metadata(&self, key: &str) -> Option<&'a str> {
        let (checkpoint, _) = self.opened.stored()?;
        checkpoint.metadata.get(key).map(String::as_str)
    }

    /// What is stored has the shape that is wanted.
    ///
    /// # Errors
    /// `Kind::Plan` naming both.
    pub(crate) fn check_shape(&self, found: &[u64]) -> Result<()> {
        if found == self.shape {
            return Ok(());
        }
        let folder = self.opened.stored().map_or(Path::new("the state dict"), |(checkpoint, _)| &checkpoint.folder);
        let (name, folder, shape) = (shown(self.name), shown_path(folder), self.shape);
        Err(Error::new(Kind::Plan, format!("`{name}` has shape {found:?} in `{folder}`, the output has {shape:?}")))
    }
}
