//! What a plan says of the packed tensors of a source: a few formats, and which tensors are stored in which of them.

use std::collections::HashMap;

use serde::Deserialize;

use super::format::Format;
use crate::error::{shown, Error, Kind, Result};

/// Packed tensors by their logical names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    formats: Vec<Format>,
    tensors: HashMap<Box<str>, Row>,
}

/// [position of the format, logical shape]
#[derive(Clone, Debug, Deserialize)]
struct Row(usize, Box<[u64]>);

impl Table {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The format and the shape of a tensor, if it is packed.
    ///
    /// # Errors
    /// `Kind::Plan` where the table has no such format.
    pub(crate) fn find(&self, name: &str) -> Result<Option<(&Format, &[u64])>> {
        let Some(Row(format, shape)) = self.tensors.get(name) else { return Ok(None) };
        let found = self.formats.get(*format).ok_or_else(|| {
            let count = self.formats.len();
            Error::new(Kind::Plan, format!("`{}` is in format {format} of {count}", shown(name)))
        })?;
        Ok(Some((found, shape)))
    }
}
