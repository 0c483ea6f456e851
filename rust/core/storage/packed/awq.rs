//! AWQ, the layout of its `gemm` kernels.

use super::format::Awq;
use super::grid::Grid;
use super::integers::SCALES;
use super::parts::Parts;
use super::transposed::{Packing, Transposed};
use crate::dtype::Dtype;
use crate::error::Result;

/// The parts of a tensor in this format, checked.
///
/// # Errors
/// A part that is missing, or has another type or shape.
pub(super) fn find<'a>(format: &Awq, parts: &Parts<'_, 'a>) -> Result<Transposed<'a>> {
    let (rows, columns) = match *parts.shape {
        [rows, columns] if rows % 8 == 0 => (rows, columns),
        _ => return Err(parts.unfit("which is not a matrix of a multiple of eight rows")),
    };
    let grid = Grid::new(parts.shape, [1, format.group]);
    let groups = grid.across();
    Ok(Transposed {
        codes: parts.exact(&format.parts.codes, &[Dtype::I32], &[columns, rows / 8])?,
        zeros: parts.exact(&format.parts.zeros, &[Dtype::I32], &[groups, rows / 8])?,
        scales: parts.exact(&format.parts.scales, &SCALES, &[groups, rows])?,
        order: None,
        packing: Packing::Interleaved,
        grid,
        rows,
    })
}
