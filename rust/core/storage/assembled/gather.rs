//! Copies a plane of elements from one order into another.

use super::piece::Dim;

/// Elements along each side of the squares in which a plane is turned: their lines of both orders fit the first cache.
const SIDE: usize = 32;

/// Copies the elements of `stored`, of `size` bytes each, to where they go in `out`, from element `to` on: `dims` are
/// the dimension that is further apart in `stored`, then the other one.
pub(super) fn gather(size: usize, stored: &[u8], dims: [Dim; 2], to: usize, out: &mut [u8]) {
    match size {
        1 => copy::<1>(stored, dims, to, out),
        2 => copy::<2>(stored, dims, to, out),
        4 => copy::<4>(stored, dims, to, out),
        _ => copy::<8>(stored, dims, to, out),
    }
}

/// Fills a plane in `out` with zeros.
pub(super) fn zero(size: usize, [slow, fast]: [Dim; 2], to: usize, out: &mut [u8]) {
    for row in 0..slow.n as usize {
        let start = to + row * slow.to as usize;
        match fast.to {
            1 => out[start * size..(start + fast.n as usize) * size].fill(0),
            step => (0..fast.n as usize).for_each(|i| {
                let at = (start + i * step as usize) * size;
                out[at..at + size].fill(0);
            }),
        }
    }
}

fn copy<const N: usize>(stored: &[u8], [slow, fast]: [Dim; 2], to: usize, out: &mut [u8]) {
    let (stored, out) = (stored.as_chunks::<N>().0, &mut out.as_chunks_mut::<N>().0[to..]);
    let step = |dim: Dim| (dim.n as usize, dim.to as usize, dim.from as usize);
    let ((rows, row_to, row_from), (columns, column_to, column_from)) = (step(slow), step(fast));
    if column_from == 1 && column_to == 1 {
        for row in 0..rows {
            let from = &stored[row * row_from..][..columns];
            out[row * row_to..][..columns].copy_from_slice(from);
        }
        return;
    }
    for row in (0..rows).step_by(SIDE) {
        for column in (0..columns).step_by(SIDE) {
            let ends = ((row + SIDE).min(rows), (column + SIDE).min(columns));
            for row in row..ends.0 {
                for column in column..ends.1 {
                    out[row * row_to + column * column_to] = stored[row * row_from + column * column_from];
                }
            }
        }
    }
}
