//! GPTQ, both versions of its files.

use super::format::Gptq;
use super::grid::Grid;
use super::integers::{words, Order, SCALES};
use super::parts::Parts;
use super::transposed::{Packing, Transposed};
use crate::dtype::Dtype;
use crate::error::Result;

/// The parts of a tensor in this format, checked.
///
/// # Errors
/// A part that is missing, or has another type or shape.
pub(super) fn find<'a>(format: &Gptq, parts: &Parts<'_, 'a>) -> Result<Transposed<'a>> {
    let bits = parts.bits(format.bits)?;
    let offset = format.zero_offset;
    if ![2, 3, 4, 8].contains(&bits) || offset > 1 {
        return Err(parts.contradiction(&format!("{bits} bits and the zero offset {offset}")));
    }
    let &[rows, columns] = parts.shape else {
        return Err(parts.unfit("which is not a matrix"));
    };
    let grid = Grid::new(parts.shape, [1, format.group]);
    let groups = grid.across();
    Ok(Transposed {
        codes: parts.exact(&format.parts.codes, &[Dtype::I32], &[words(columns, bits), rows])?,
        zeros: parts.exact(&format.parts.zeros, &[Dtype::I32], &[groups, words(rows, bits)])?,
        scales: parts.exact(&format.parts.scales, &SCALES, &[groups, rows])?,
        order: Order::find(parts, format.parts.order.as_deref(), columns, groups)?,
        packing: Packing::Dense { bits, offset },
        grid,
        rows,
    })
}
