//! A few values of a stored tensor, for a look at weights before a run.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};
use crate::kernels::widen::widen;
use crate::kernels::Level;

/// Elements `start .. start + count` of a tensor, as far as it goes, widened to f32.
///
/// # Errors
/// `Kind::NotFound` where there is no such tensor, `Kind::Format` where it is not of a floating-point type or cannot
/// be read.
pub fn sample(checkpoint: &Checkpoint, name: &str, start: u64, count: u64) -> Result<Vec<f32>> {
    let tensor = checkpoint.get(name)?;
    if !tensor.dtype.is_float() {
        let message = format!("tensor `{}` is {}, not a floating-point type", name.escape_debug(), tensor.dtype);
        return Err(Error::new(Kind::Format, message));
    }
    let size = tensor.dtype.size() as u64;
    let elements = tensor.len / size;
    let range = start.min(elements)..start.saturating_add(count).min(elements);
    let mut scratch = Vec::new();
    let file = checkpoint.mapped(tensor.file)?;
    let bytes = file.read(tensor.offset + range.start * size..tensor.offset + range.end * size, &mut scratch)?;
    let mut values = vec![0.0; bytes.len() / tensor.dtype.size()];
    widen(Level::chosen()?, tensor.dtype, bytes, &mut values);
    Ok(values)
}
