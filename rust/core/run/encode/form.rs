//! How a packed tensor is cut: groups that share a scale, rows as they are stored, patches that are computed at once.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::{shown, Error, Kind, Result};
use crate::kernels::quantise::bits::bytes;
use crate::kernels::quantise::code::Code;
use crate::storage::packed::format::{Format, Global};

/// Elements of a patch, about: values, target and step of one fit the second-level cache.
const PATCH: u64 = 1 << 16;

/// The kind of a packed tensor and its sizes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// What codes stand for.
    pub code: Code,
    /// Matrices, each with groups of its own.
    pub matrices: u64,
    /// Rows of a matrix.
    pub rows: u64,
    /// Columns.
    pub columns: u64,
    /// Rows of a group.
    pub tall: u64,
    /// Columns of a group.
    pub wide: u64,
    /// Bytes of a row of codes.
    pub row_bytes: u64,
    /// Scales that are chosen for all of the tensor, or for each matrix; 0 where every group chooses.
    pub wholes: u64,
    /// What a number for the whole tensor does to the scales of groups.
    pub global: Option<Global>,
    /// Zero has a code of its own in each group.
    pub zeros: bool,
    /// The columns of a group are not neighbours: the group of each is stored.
    pub strewn: bool,
    /// Rows of a patch.
    pub high: u64,
    /// Columns of a patch.
    pub broad: u64,
}

/// One patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its index.
    pub index: u64,
    /// Its matrix.
    pub matrix: u64,
    /// First row in the matrix.
    pub row: u64,
    /// Rows.
    pub rows: u64,
    /// First column.
    pub column: u64,
    /// Columns.
    pub columns: u64,
}

impl Form {
    /// Of a tensor of this shape, whose codes have this type; `wholes` is how many scales for a whole there are.
    ///
    /// # Errors
    /// `Kind::Plan` where nothing is written in this format.
    pub(crate) fn new(format: &Format, name: &str, shape: &[u64], codes: Dtype, wholes: u64) -> Result<Form> {
        let no = |what: &str| {
            let message = format!("`{}` cannot be written {what}", shown(name));
            Err(Error::new(Kind::Plan, message))
        };
        let side = |from_last: usize| shape.len().checked_sub(from_last).map_or(1, |axis| shape[axis]);
        let (rows, columns) = (side(2).max(1), side(1).max(1));
        let matrices = shape.iter().rev().skip(2).product::<u64>();
        let form = Form {
            code: Code::E4M3,
            matrices,
            rows,
            columns,
            tall: 1,
            wide: columns,
            row_bytes: columns,
            wholes: 0,
            global: None,
            zeros: false,
            strewn: false,
            high: 1,
            broad: columns,
        };
        let form = match format {
            Format::Scaled(scaled) => {
                let code = match codes {
                    Dtype::F8E4M3 | Dtype::U32 => Code::E4M3,
                    Dtype::F8E5M2 => Code::E5M2,
                    Dtype::I8 => Code::Signed(8),
                    _ => return no(&format!("as codes of {codes}")),
                };
                let [tall, wide] = scaled.block;
                let whole = tall == 0 && wide == 0;
                if scaled.factor.is_some() || (tall == 0 && wide != 0) {
                    return no("with these scales");
                }
                let (tall, wide) = (if whole { 1 } else { tall }, if wide == 0 { columns } else { wide.min(columns) });
                Form { code, tall: tall.min(rows), wide, wholes: if whole { wholes } else { 0 }, ..form }
            }
            Format::E2m1(e2m1) => {
                let (wide, global) = (e2m1.group.max(1), e2m1.global);
                if columns % 2 != 0 || wide % 2 != 0 || global.is_some() != e2m1.parts.global.is_some() {
                    return no("with two codes to a byte");
                }
                let wholes = if global.is_some() { wholes } else { 0 };
                Form { code: Code::E2M1, wide: wide.min(columns), row_bytes: columns / 2, wholes, global, ..form }
            }
            Format::PackedInt(packed) => {
                let wide = if packed.group == 0 { columns } else { packed.group.min(columns) };
                let bits = u64::from(packed.bits);
                let strewn = packed.parts.order.is_some();
                let fits = strewn || wide == columns || wide * bits % 8 == 0;
                if !fits || !(2..=8).contains(&bits) {
                    return no("with these groups of columns");
                }
                let (row_bytes, zeros) = ((columns * bits).div_ceil(32) * 4, packed.parts.zeros.is_some());
                Form { code: Code::Offset(packed.bits), wide, row_bytes, zeros, strewn, ..form }
            }
            Format::Mlx(mlx) => {
                let wide = if mlx.group == 0 { columns } else { mlx.group.min(columns) };
                let bits = u64::from(mlx.bits);
                if !(2..=8).contains(&bits) || !columns.is_multiple_of(wide) || wide * bits % 8 != 0 {
                    return no("with these groups of columns");
                }
                let row_bytes = (columns * bits).div_ceil(32) * 4;
                Form { code: Code::Unsigned(mlx.bits), wide, row_bytes, ..form }
            }
            Format::Gptq(_) | Format::Awq(_) | Format::Bnb4(_) => return no("in its format"),
        };
        Ok(form.cut())
    }

    /// With patches.
    fn cut(mut self) -> Form {
        // Whole bytes, whatever the bits of a code.
        let unit = if self.wide.is_multiple_of(8) { self.wide } else { self.wide * 8 };
        self.broad = ((PATCH / self.tall).max(1) / unit).max(1) * unit;
        self.broad = if self.strewn { self.columns } else { self.broad.min(self.columns) };
        self.high = if self.tall > 1 { self.tall } else { (PATCH / self.columns).clamp(1, self.rows) };
        self
    }

    /// Groups of a matrix, down.
    pub(crate) fn down(&self) -> u64 {
        self.rows.div_ceil(self.tall)
    }

    /// Groups of a matrix, across.
    pub(crate) fn across(&self) -> u64 {
        self.columns.div_ceil(self.wide)
    }

    /// Groups in all.
    pub(crate) fn groups(&self) -> u64 {
        self.matrices * self.down() * self.across()
    }

    /// Bands of a matrix: runs of rows, as high as a patch.
    fn bands(&self) -> u64 {
        self.rows.div_ceil(self.high)
    }

    /// Patches of a band.
    pub(crate) fn strips(&self) -> u64 {
        self.columns.div_ceil(self.broad)
    }

    /// Patches in all.
    pub(crate) fn patches(&self) -> u64 {
        self.matrices * self.bands() * self.strips()
    }

    /// The band that holds a row, counted through all matrices.
    pub(crate) fn band_of(&self, row: u64) -> u64 {
        row / self.rows * self.bands() + row % self.rows / self.high
    }

    /// The rows of a band, counted through all matrices.
    pub(crate) fn band(&self, band: u64) -> Range<u64> {
        let (matrix, first) = (band / self.bands(), band % self.bands() * self.high);
        let start = matrix * self.rows;
        start + first..start + (first + self.high).min(self.rows)
    }

    /// The patches of a band.
    pub(crate) fn patches_of(&self, band: u64) -> Range<u64> {
        band * self.strips()..(band + 1) * self.strips()
    }

    /// Where a patch lies.
    pub(crate) fn place(&self, index: u64) -> Place {
        let (band, strip) = (index / self.strips(), index % self.strips());
        let (rows, column) = (self.band(band), strip * self.broad);
        Place {
            index,
            matrix: rows.start / self.rows,
            row: rows.start % self.rows,
            rows: rows.end - rows.start,
            column,
            columns: self.broad.min(self.columns - column),
        }
    }

    /// Bytes of codes before this column of a row.
    pub(crate) fn bytes_before(&self, column: u64) -> usize {
        if column >= self.columns {
            self.row_bytes as usize
        } else {
            (column * u64::from(self.code.bits()) / 8) as usize
        }
    }

    /// Bytes of codes of all elements.
    pub(crate) fn bytes(&self) -> u64 {
        self.matrices * self.rows * self.row_bytes
    }

    /// The index of the scale for a whole that a matrix has.
    pub(crate) fn whole_of(&self, matrix: u64) -> usize {
        (if self.wholes > 1 { matrix } else { 0 }) as usize
    }

    /// Bytes of a matrix's row of `n` packed codes.
    pub(crate) fn packed(&self, n: u64) -> usize {
        bytes(self.code.bits(), n as usize)
    }
}

impl Place {
    /// Elements.
    pub(crate) fn elements(&self) -> usize {
        (self.rows * self.columns) as usize
    }

    /// Its rows of groups, in its matrix.
    pub(crate) fn down(&self, form: &Form) -> Range<u64> {
        self.row / form.tall..(self.row + self.rows).div_ceil(form.tall)
    }

    /// Its columns of groups.
    pub(crate) fn across(&self, form: &Form) -> Range<u64> {
        self.column / form.wide..(self.column + self.columns).div_ceil(form.wide)
    }

    /// The first of its elements' rows, counted through all matrices.
    pub(crate) fn first_row(&self, form: &Form) -> u64 {
        self.matrix * form.rows + self.row
    }

    /// The index of the first of a row of its groups, among all.
    pub(crate) fn group(&self, form: &Form, down: u64) -> u64 {
        (self.matrix * form.down() + down) * form.across() + self.column / form.wide
    }
}
